"""An oracle in NumPy for methods that prune and restore, and what else their tests share."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training

RATE, DECAY = {"sgd": 0.5, "adam": 0.1}, {"sgd": 0.01, "adam": 0.1}
WEIGHTS = ("1.weight", "3.weight")  # 48 and 24
POSITIONS = {"stem": 64, "grouped": 16, "dilated": 16, "twice": 3, "head": 1}  # of the fixture's ConvNet on 8x8 images


def perceptron() -> nn.Module:
    """72 weights behind standardised inputs, whose running statistics are buffers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = (nn.BatchNorm1d(6, affine=False), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        return nn.Sequential(*layers).double()


def samples(t: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(t)
    labels = torch.randint(3, (8,), generator=rng)
    return torch.randn(8, 6, generator=rng, dtype=torch.float64) + labels[:, None], labels


class Oracle:
    """`perceptron` in NumPy, trained by SGD with momentum 0.9 or by AdamW, with masks."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.values = {name: value.numpy().copy() for name, value in perceptron().state_dict().items()}
        self.masks = {name: np.ones(self.values[name].shape, dtype=bool) for name in WEIGHTS}
        self.forget()

    def forget(self) -> None:
        self.steps, self.first, self.second = 0, {}, {}  # type: ignore[var-annotated]

    def keep(self, total: int, scope: str = "global") -> None:
        """Prune to the `total` largest weights; zeros off the masks come last."""
        scores = [np.where(self.masks[name], np.abs(self.values[name]), -1.0) for name in WEIGHTS]
        groups = [scores] if scope == "global" else [[score] for score in scores]
        masks: list[np.ndarray] = []
        for group in groups:
            flat = np.concatenate([score.ravel() for score in group])
            chosen = np.zeros(flat.size, dtype=bool)
            chosen[np.argsort(-flat, kind="stable")[: total * flat.size // 72]] = True
            parts = np.split(chosen, np.cumsum([score.size for score in group])[:-1])
            masks += [part.reshape(score.shape) for part, score in zip(parts, group, strict=True)]
        self.masks = dict(zip(WEIGHTS, masks, strict=True))
        self.project()

    def project(self) -> None:
        for name, mask in self.masks.items():
            for tensors in (self.values, self.first, self.second):
                if name in tensors:
                    tensors[name] = tensors[name] * mask

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        v, n = self.values, len(x)
        mean, var = x.mean(0), x.var(0)
        v["0.running_mean"] = 0.9 * v["0.running_mean"] + 0.1 * mean
        v["0.running_var"] = 0.9 * v["0.running_var"] + 0.1 * var * n / (n - 1)
        v["0.num_batches_tracked"] = v["0.num_batches_tracked"] + 1
        z = (x - mean) / np.sqrt(var + 1e-5)
        h = np.tanh(z @ v["1.weight"].T + v["1.bias"])
        scores = np.exp(h @ v["3.weight"].T + v["3.bias"])
        d = (scores / scores.sum(1, keepdims=True) - np.eye(3)[labels]) / n
        e = (d @ v["3.weight"]) * (1 - h**2)
        return {"1.weight": e.T @ z, "1.bias": e.sum(0), "3.weight": d.T @ h, "3.bias": d.sum(0)}

    def step(self, t: int, lr: float) -> None:
        self.steps += 1
        for name, grad in self.gradients(*(tensor.numpy() for tensor in samples(t))).items():
            weight, decay = self.values[name], DECAY[self.kind] * (name in WEIGHTS)
            if self.kind == "sgd":
                self.first[name] = 0.9 * self.first.get(name, 0.0) + grad + decay * weight
                self.values[name] = weight - lr * self.first[name]
                continue
            self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * grad
            self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * grad**2
            m, v = self.first[name] / (1 - 0.9**self.steps), self.second[name] / (1 - 0.999**self.steps)
            self.values[name] = weight * (1 - lr * decay) - lr * m / (np.sqrt(v) + 1e-8)
        self.project()


def follow(
    method: Method,
    kind: str,
    kernel: str,
    steps: int,
    prunes: Callable[[Oracle, int], None],
    factor: Callable[[int], float],
) -> None:
    """Train method and oracle side by side: masks and all values agree after every step."""
    oracle = Oracle(kind)
    model = SparseModel(perceptron(), samples(0)[0], kernel=kernel)
    method.attach(model, Recipe(steps=steps, batch=8, lr=RATE, weight_decay=DECAY, optimizer=kind), seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    for t in range(steps):
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        model.zero_grad()
        inputs, labels = samples(t)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        method.step(t)
        prunes(oracle, t)
        oracle.step(t, RATE[kind] * factor(t))
        found = {**dict(model.net.named_parameters()), **dict(model.net.named_buffers())}
        found |= {layer.key: layer.weight for layer in model.layers}
        for name, value in oracle.values.items():
            assert np.allclose(found[name].detach().numpy(), value, rtol=1e-9, atol=1e-11), (t, name)
        for layer in model.layers:
            mask = np.ones(layer.shape, bool) if layer.forward_mask is None else layer.forward_mask.numpy()
            assert np.array_equal(mask, oracle.masks[layer.key]) and layer.grad_mask is layer.forward_mask


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def with_recipe(task: Any, **changes: Any) -> Any:
    return replace(task, recipe=replace(task.recipe, **changes))


def attached(method: Any, task: Any) -> Any:
    method.attach(SparseModel(task.build(0), task.example(), task.dense), task.recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    return method


def trained(task: Any, method: Method, kernel: str = "masked") -> Training:
    training = Training(task, method, seed=1, kernel=kernel)
    training.setup()
    training.run()
    return training


def same_after_resume(task: Any, make: Callable[[], Method], stop: int, kernel: str) -> None:
    """A run saved and taken up at step `stop` ends bit for bit as the one that went through."""
    whole = trained(task, make(), kernel)
    half = Training(task, make(), seed=1, kernel=kernel)
    half.setup()
    half.run(until=stop)
    file = io.BytesIO()
    torch.save(half.state(), file)
    file.seek(0)
    again = Training(task, make(), seed=1, kernel=kernel)
    again.load(torch.load(file, weights_only=True))
    again.run()
    assert again.curve == whole.curve and again.book == whole.book
    assert again.method.memory.keys() == whole.method.memory.keys()
    assert all(torch.equal(again.method.memory[k], v) for k, v in whole.method.memory.items())
    for a, b in zip(whole.model.layers, again.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and a.nnz() == b.nnz()
        assert a.state.keys() == b.state.keys() and all(torch.equal(v, b.state[k]) for k, v in a.state.items())
    for x, y in zip(whole.model.net.state_dict().items(), again.model.net.state_dict().items(), strict=True):
        assert x[0] == y[0] and torch.equal(x[1], y[1]), x[0]


def read(training: Training) -> float:
    """f of a pass as the masks are, a sample: two for every weight that is read and place that it is used in."""
    return sum(2 * POSITIONS.get(y.name, 1) * y.nnz() for y in training.model.layers)


def spent(task: Any, method: Method) -> tuple[float, list[float]]:
    """Papers' FLOPs a sample of a whole run, and f of every pass."""
    forward: list[float] = []
    descend = method.descend

    def watched(batch: Any) -> Tensor:
        forward.append(read(training))
        return descend(batch)

    method.descend = watched  # type: ignore[method-assign]
    training = Training(task, method)
    training.setup()
    training.run()
    return training.book.papers / task.recipe.batch, forward
