"""Networks as strangers bring them, and a task of noise for them: inputs (batch, 6, 8), four classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dstbench.suite import registry
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import Batch, Task
from dstbench.suite.train import Training

EXAMPLE = torch.zeros(2, 6, 8)


class Frozen(nn.Module):
    """A frozen convolution below, a frozen Linear beside a trained one, as with a frozen backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Conv1d(6, 8, 3, padding=1).requires_grad_(False)
        self.base, self.up, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.below(x)).mean(2)
        return self.head(F.relu(self.base(x) + self.up(x)))


class Adapted(nn.Linear):
    """LoRA: the weight is frozen, two thin matrices beside it learn; a Linear with a forward of its own."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs)
        self.back = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return super().forward(x) + scale * (x @ self.down.t() @ self.back.t())


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Adapted(48, 16), Adapted(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x.flatten(1))), scale=0.5)))


class Wrapped(nn.Module):
    """LoRA by modules of its own, named as peft's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, outputs, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Bottleneck(nn.Module):
    """A wrapped Linear, then an adapter beside frozen ones; and one of that name where nothing is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"body": Wrapped(48, 16), "my_adapter": nn.Sequential(nn.Linear(16, 4))})
        self.up, self.head = nn.Linear(4, 16), nn.ModuleDict({"adapter": nn.Linear(16, 4)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.block["body"](x.flatten(1)))
        return self.head["adapter"](F.relu(x + self.up(F.relu(self.block["my_adapter"](x)))))


class Teacher(nn.Module):
    """A branch under no_grad, whose weights could learn but do not."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.pupil, self.head = nn.Linear(48, 16), nn.Linear(48, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x.flatten(1))
        return self.head(F.relu(self.pupil(x.flatten(1)) + target))


class Dropped(nn.Module):
    """Blocks of attention and a Linear, left out at random in training."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3))
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                x = block(x)
        return self.head(x.flatten(1))


class Experts(nn.Module):
    """Each sample goes to one expert of four: on a batch of one, and on zeros, to one and the same."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.head = nn.Linear(48, 4), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(48, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        gate = self.route(x).softmax(1)
        best = gate.argmax(1)
        out = x.new_zeros(len(x), 16)
        for i in best.unique().tolist():
            out[best == i] = gate[best == i, i, None] * self.experts[i](x[best == i])
        return self.head(F.relu(out))


class Heads(nn.Module):
    """A second head in training, another in evaluation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(48, 16), nn.Linear(16, 4)
        self.extra, self.judge = nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x.flatten(1)))
        return self.head(x) + self.extra(x) if self.training else self.judge(self.head(x))


class Recomputed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        body = checkpoint(lambda y: F.relu(self.body(y)).square(), x, use_reentrant=self.reentrant)
        return self.head(body.flatten(1))


class Reentrant(Recomputed):
    """Recomputed, its first pass without a graph."""

    reentrant = True


class Cached(nn.Module):
    """A cache of tables, a counter and a plain tensor; chance by numpy's like; a decision on a number."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}
        self.calls = 0
        self.table = torch.randn(8)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.shape[1] not in self.cache:
            self.cache[x.shape[1]] = torch.arange(x.shape[1], device=x.device)[:, None] / 10
        x = self.body(x + self.table) + self.cache[x.shape[1]]
        return self.head((x if x.abs().max().item() < 100 else x / 100).flatten(1))


class Causal(nn.Module):
    """A mask of -inf that is a buffer, and a table whose unused places are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(48, 4)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))
        self.register_buffer("table", torch.full((3,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x, src_mask=self.mask).flatten(1))


class Convolutions(nn.Module):
    """Of one and three dimensions, transposed, grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.up = nn.Conv1d(6, 8, 3), nn.ConvTranspose1d(8, 4, 2, stride=2, groups=2)
        self.deep, self.back = nn.Conv3d(1, 4, 2), nn.ConvTranspose3d(4, 2, 2)
        self.head = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.one(x))))
        return self.head(self.back(F.relu(self.deep(x.view(-1, 1, 3, 4, 4)))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, torch.zeros(1, len(x), 16))[0][:, -1])


class Query(nn.Module):
    """A learned query that attends, and learned tokens that go through the same Linear as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.ask, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.query, self.tokens = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([self.both(x), self.both(self.tokens.expand(len(x), -1, -1))], 1)
        return self.head(F.scaled_dot_product_attention(self.ask(self.query.expand(len(x), -1, -1)), seen, seen)[:, 0])


class Holding(nn.Module):
    """Functions and a hook that hold the module itself, which no copy follows; the hook keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(48, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.steps = [lambda x: self.norm(self.a(x)).relu(), lambda x: self.b(x)]
        self.seen: dict[str, list[Tensor]] = {"a": []}
        self.a.register_forward_hook(lambda module, inputs, out: self.keep(out))

    def keep(self, out: Tensor) -> None:
        self.last = out
        self.seen["a"].append(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for step in self.steps:
            x = step(x)
        return x


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class Custom(nn.Linear):
    """A Linear by a Function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight) + self.bias


class Taught(Teacher):
    """As Teacher, with a pupil by a Function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pupil = Custom(48, 16)


@dataclass(frozen=True)
class Noise(Task):
    """Four noisy classes through a network of the kind `net`."""

    net: Callable[[], nn.Module] = Frozen

    def fingerprint(self) -> str:
        return "0" * 12

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        if width != 1:
            raise ValueError("the network has one width")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.net()

    def example(self) -> Tensor:
        return torch.zeros(2, 6, 8)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        t = start
        while split in ("train", "calibration") or t < 2:
            rng = torch.Generator().manual_seed(1000 * len(split) + 100 * seed + t)
            labels = torch.randint(4, (self.recipe.batch,), generator=rng)
            yield torch.randn(len(labels), 6, 8, generator=rng) + labels[:, None, None], labels
            t += 1


@dataclass(frozen=True)
class Views(Noise):
    """The loss wants what the network itself gives without a graph, as teachers of themselves do."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = model(batch[0]).softmax(1)
        out = model(batch[0])
        return F.cross_entropy(out, batch[1]) + (out.softmax(1) - target).square().sum()


def task(net: Callable[[], nn.Module], steps: int = 12, **more: Any) -> Noise:
    return Noise("noise", Recipe(steps=steps, batch=8, lr={"sgd": 0.02, "adam": 2e-3}), chance=0.25, net=net, **more)


def made(net: type[nn.Module], dense: tuple[str, ...] = (), kernel: str = "masked") -> SparseModel:
    torch.manual_seed(0)
    return SparseModel(net(), EXAMPLE, dense, kernel)


def trained(
    net: type[nn.Module], method: str = "dense", steps: int = 6, kernel: str = "masked", **more: Any
) -> Training:
    training = Training(task(net, steps, **more), registry.method(method), kernel=kernel)
    training.setup()
    training.run()
    training.method.finish()
    return training


def block(training: Training) -> dict[str, Any]:
    return training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
