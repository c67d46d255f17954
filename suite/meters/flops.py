"""FLOPs: what one dense pass costs, booked per parameter, and what the passes of a run add up to.

One multiply-add is 2 FLOPs. Costs come from formulas (`operations`) for what a forward and a backward pass dispatch; on
the `meta` device that needs neither memory nor arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from dstbench.suite.meters.copies import norms_of_one, stand_in, undisturbed
from dstbench.suite.meters.flopmeter import FlopMeter as FlopMeter
from dstbench.suite.weights import not_in_backward, uses, weights_of

SMALL = 1e6  # numbers in a network and its input


@dataclass(frozen=True)
class PassCost:
    """FLOPs per sample of one dense training pass: by parameter `forward`, `inputs`, `weights` (their gradients).

    `rest_*` are products of activations, forward also by module (`rest`). What the training pass did not reach and the
    evaluation pass did has the cost of that. `calls`: by parameter, how often the modules that hold it use it in a
    sample, where all of `forward` comes of calls; `learned`: how often under grad, recomputation included.
    `transformed`: parameters that enter a pass, and no product as they are. `uncounted`: calls of operations without a
    formula, a pass.
    """

    forward: dict[str, int]
    inputs: dict[str, int]
    rest_forward: int
    rest_backward: int
    weights: dict[str, int] = field(default_factory=dict)
    rest: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    learned: dict[str, int] = field(default_factory=dict)
    transformed: frozenset[str] = frozenset()
    uncounted: dict[str, int] = field(default_factory=dict)
    evaluation: PassCost | None = None

    @property
    def ahead(self) -> int:
        """Forward of one sample, everything dense."""
        return self.rest_forward + sum(self.forward.values())

    @property
    def dense(self) -> int:
        """Forward and backward of one sample, everything dense."""
        return self.ahead + self.rest_backward + sum(self.weights.values()) + sum(self.inputs.values())

    @property
    def inference(self) -> PassCost:
        """The forward pass of evaluation."""
        return self.evaluation or self

    def filled(self, other: PassCost) -> PassCost:
        """This pass, with what only `other`, the evaluation pass, reaches, as if it were part of training too."""
        lost, modules = other.forward.keys() - self.forward.keys(), other.rest.keys() - self.rest.keys()
        more = {k: other.rest[k] for k in modules}
        share = sum(more.values()) / max(1, other.rest_forward)

        def merged(mine: dict[str, int], theirs: dict[str, int]) -> dict[str, int]:
            return mine | {k: v for k, v in theirs.items() if k in lost}

        return PassCost(
            merged(self.forward, other.forward),
            merged(self.inputs, other.inputs),
            self.rest_forward + sum(more.values()),
            self.rest_backward + round(share * other.rest_backward),
            merged(self.weights, other.weights),
            self.rest | more,
            merged(self.calls, other.calls),
            merged(self.learned, other.learned),
            (self.transformed | other.transformed) - self.forward.keys() - other.forward.keys(),
            dict(Counter(self.uncounted) | Counter(other.uncounted)),
            other,
        )


def measure(net: nn.Module, example: Any, weights: Mapping[str, Tensor] | None = None) -> PassCost:
    """Count a training and an evaluation pass of `net` on one sample of `example` (leading dimension: the batch).

    A copy of the network runs, on `meta`, or where that fails on the network's own device (a small one there first,
    where it takes half the time); or where functions hold the network itself, which no copy follows, the network with
    copies of its tensors. Batch norm takes one sample as it does in evaluation. The weight gradient of a parameter
    costs what its forward products cost, where it takes one; what the backward pass counts beyond input and weight
    gradients belongs to products of activations. `weights` are those of parameters that are stored in another form.
    RuntimeError where the network cannot run.
    """
    why: Exception
    devices = (None, "meta") if _small(net, example) else ("meta", None)
    for copied, device in product((True, False), devices):
        try:
            with undisturbed():
                one = _one(example, device or _device(net))
                with stand_in(net, device, weights, copied) as stand:
                    training = _pass(stand, one)
                with stand_in(net, device, weights, copied) as stand:
                    return training.filled(_pass(stand, one, training.forward))
        except Exception as error:  # a network may raise anything, and where there are no numbers more than elsewhere
            if device is None:
                why = error
    raise RuntimeError(
        f"counting FLOPs: the network does not run forward and backward on one sample of the example, a batch of one "
        f"({type(why).__name__}: {why}); the task's example() has to be a batch that build(seed) takes"
    ) from why


def _small(net: nn.Module, example: Any) -> bool:
    """Whether arithmetic on a CPU is faster than torch's way to do without, which is through Python."""
    tensors = [*net.parameters(), *net.buffers(), *(t[:1] for t in tree_leaves(example) if isinstance(t, Tensor))]
    return _device(net).type == "cpu" and sum(t.numel() for t in tensors) < SMALL


def _one(example: Any, device: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t[:1].detach().to(device, copy=True), example)


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def _pass(net: nn.Module, one: Any, known: Container[str] | None = None) -> PassCost:
    """A training pass of a copy, which is spent then; with `known`, an evaluation pass.

    That one runs backward only where it reads other parameters than those.
    """
    net.train(known is None)
    parameters = dict(net.named_parameters())
    names = {p: n for n, p in parameters.items()}
    layers = {names[m._parameters[a]] for m in net.modules() for a in weights_of(m)}  # type: ignore[index]
    ahead, calls, learned = FlopMeter(parameters, layers), Counter[str](), Counter[str]()
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        with _watched(net, names, ahead.inside, calls, learned), norms_of_one(net), ahead:
            out = net(one)
        leaves = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        back = FlopMeter({n: parameters[n] for n in ahead.read}, layers)
        with _watched(net, names, back.inside, calls, learned), back:
            if leaves and not (known is not None and all(n in known for n in ahead.read)):
                torch.autograd.backward([(t.abs() if t.is_complex() else t).sum() for t in leaves])
    # Inside a custom Function.forward no product looks like one that a gradient goes through.
    taken = {
        n: (max(ahead.trained[n], back.trained[n]) or ahead.read[n]) if parameters[n].grad is not None else 0
        for n in ahead.read
    }
    called = {n: calls[n] for n in calls if 2 * parameters[n].numel() * calls[n] == ahead.read[n]}
    rest = back.total - sum(back.read.values()) - sum(taken.values())
    return PassCost(
        dict(ahead.read), dict(back.read), sum(ahead.rest.values()), rest, taken, dict(ahead.rest), called,
        dict(learned), frozenset(ahead.touched - ahead.read.keys()), dict(ahead.uncounted + back.uncounted)
    )  # fmt: skip


@contextmanager
def _watched(
    net: nn.Module, names: Mapping[nn.Parameter, str], inside: list[str], calls: Counter[str], learned: Counter[str]
) -> Iterator[None]:
    """Keep the path of the module that runs on top of `inside`, and add up how often modules use their weights.

    `learned` takes the uses under grad.
    """

    def enter(path: str, module: nn.Module, inputs: Any) -> None:
        inside.append(path)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        inside.pop()
        weight = module._parameters.get("weight")
        if inputs and weight is not None and (count := uses(module, inputs[0], output)):
            calls[names[weight]] += count * not_in_backward()
            learned[names[weight]] += count * torch.is_grad_enabled()

    hooks: list[Any] = []
    for path, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(enter, path)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Cost:
    """FLOPs per sample of the training pass that the present masks ask for.

    `inference` is the forward pass of evaluation. `reached` is what the pass would cost dense, as a share of the dense
    pass that was measured: 1 but where blocks were skipped or samples routed. `papers` follows the papers' convention
    (RigL, arXiv 1911.11134, App. H): weighted products alone, the first layer's
    input gradient included: 2 f_S + f_S where the weight gradient is sparse, 2 f_S + f_D where it is dense.
    """

    forward: float
    inputs: float
    weights: float
    papers: float
    dense_gradient: bool
    inference: float = 0.0
    reached: float = 1.0

    @property
    def total(self) -> float:
        """Forward, input gradients and weight gradients."""
        return self.forward + self.inputs + self.weights


@dataclass
class FlopBook:
    """What a run has spent, FLOPs; the record's `flops` block. `papers` follows the papers' convention, see `Cost`."""

    forward: int = 0
    inputs: int = 0
    weights: int = 0
    setup: int = 0
    charged: int = 0
    papers: int = 0
    samples: int = 0
    dense_gradient_steps: int = 0
    source: str = "masks"
    reached: float = 0.0  # the sum over samples of `Cost.reached`
    uncounted: dict[str, int] = field(default_factory=dict)  # calls of operations without a formula, by name

    @property
    def total(self) -> int:
        """Training FLOPs: all passes, setup and charged work."""
        return self.forward + self.inputs + self.weights + self.setup + self.charged

    def add(self, cost: Cost, samples: int) -> None:
        """Book one pass over `samples`."""
        self.forward += round(cost.forward * samples)
        self.inputs += round(cost.inputs * samples)
        self.weights += round(cost.weights * samples)
        self.papers += round(cost.papers * samples)
        self.samples += samples
        self.dense_gradient_steps += cost.dense_gradient
        self.reached += cost.reached * samples

    def block(self, dense: PassCost, now: Cost, samples: int) -> dict[str, Any]:
        """The record's "flops": the sums, dense training on the run's own `samples`, and inference per sample.

        `samples` is what the task and the run's budget ask for: a method that trains longer, or repeats passes, pays.
        Where passes differ, dense training is that of the run's own passes.
        """
        passed = samples if self.reached == self.samples else samples * self.reached / self.samples
        papers = round((2 * sum(dense.forward.values()) + sum(dense.weights.values())) * passed)
        everything = round(dense.dense * passed)
        return {
            **asdict(self),
            "total": self.total,
            "dense_total": everything,
            "dense_papers": papers,
            "ratio": self.total / max(1, everything),
            "papers_ratio": self.papers / max(1, papers),
            "inference": now.inference,
            "dense_inference": dense.inference.ahead,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)
