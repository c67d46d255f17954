"""What tests of methods that change masks share: what a Layer holds between a pass and what a method makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dstbench.suite.layer import Layer
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from nets import STEPS, backward

SIZES = (108, 1920, 80)  # of the Layers of `nets.network`


class Held(NamedTuple):
    """A Layer's tensors in NumPy."""

    mask: np.ndarray
    weight: np.ndarray
    grad: np.ndarray
    state: dict[str, np.ndarray]


def held(layer: Layer) -> Held:
    mask = torch.ones(layer.shape, dtype=torch.bool) if layer.forward_mask is None else layer.forward_mask
    state = {name: value.numpy().copy() for name, value in layer.state.items()}
    return Held(mask.numpy(), layer.weight.numpy().copy(), layer.grad.numpy().copy(), state)


def same_stream(rng: torch.Generator) -> torch.Generator:
    """A generator that will draw what this one will."""
    other = torch.Generator()
    other.set_state(rng.get_state())
    return other


def uniform(rng: torch.Generator, shape: Any) -> np.ndarray:
    return torch.rand(shape, generator=rng).numpy().astype(np.float64)


def largest(score: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` largest entries, the first in memory among ties."""
    chosen = np.zeros(score.size, dtype=bool)
    chosen[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(score.shape)


def steps(method: Method, model: SparseModel, count: int = STEPS) -> Iterator[tuple[int, list[Held], list[Held]]]:
    """Train; yields t, and every Layer after the pass, and after the optimiser's step if one was made."""
    after: list[Held] = []
    step = method.optimizer.step

    def stepped(closure: None = None) -> Any:
        step()
        after[:] = [held(layer) for layer in model.layers]

    method.optimizer.step = stepped  # type: ignore[method-assign]
    for t in range(count):
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        backward(model, t)
        before = [held(layer) for layer in model.layers]
        after.clear()
        method.step(t)
        yield t, before, list(after)


def same(layer: Layer, mask: np.ndarray, weight: np.ndarray, state: dict[str, np.ndarray] | None = None) -> None:
    """The Layer holds this, to rounding, and computes the gradient of nothing else."""
    assert layer.forward_mask is not None and np.array_equal(layer.forward_mask.numpy(), mask)
    np.testing.assert_allclose(layer.weight.numpy(), weight, rtol=1e-12, atol=1e-15)
    if state is not None:
        assert state.keys() == layer.state.keys()
        for name, value in state.items():
            np.testing.assert_allclose(layer.state[name].numpy(), value, rtol=1e-12, atol=1e-15)


def zeroed(tensors: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    """What is left of state where `where` is true."""
    return {name: np.where(where, value, 0.0) for name, value in tensors.items()}
