"""What sparsity can speed up: the share of a dense training step that is spent on the Layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dstbench.suite.train import Training

PAIRS, SECONDS = 3, 0.5  # at least
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Stopwatch(TorchDispatchMode):
    """Seconds of the operations that sparsity thins out: products with the Layers' weights, and their updates.

    An operation counts that reads or writes the storage of a Layer's weight or of its optimiser state, and a matrix
    product whose result has the shape of a weight, which is a weight gradient. Sums over bias gradients do not count.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        state, weights = training.method.optimizer.state, [layer.parameter for layer in training.model.layers]
        held = [*weights, *(t for w in weights for t in tree_leaves(dict(state[w])) if isinstance(t, Tensor))]
        self.storages = {t.untyped_storage()._cdata for t in held}
        self.shapes = {shape for w in weights if w.dim() == 2 for shape in (w.shape, w.shape[::-1])}
        self.seconds = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = function(*args, **(kwargs or {}))
        spent = time.perf_counter() - start
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if function in PRODUCTS and out.shape in self.shapes:
            self.seconds += spent
        elif tensors:
            mine = sum(t.numel() for t in tensors if t.untyped_storage()._cdata in self.storages)
            # An operation over lists of tensors is shared out by their sizes, any other is the Layer's as a whole.
            listed = any(isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor) for a in args)
            self.seconds += spent * (mine / sum(t.numel() for t in tensors) if listed else mine > 0)
        return out


def share(training: Training) -> float:
    """The share of a dense step that sparsity could save at most, from steps timed plain and by operation in turn."""
    plain, layers = zip(*_pairs(training), strict=True)
    return min(1.0, statistics.median(layers) / statistics.median(plain))


def _pairs(training: Training) -> Iterator[tuple[float, float]]:
    training.run(until=training.t + 1)  # the optimiser's state exists from here on
    done, began = 0, time.perf_counter()
    while done < PAIRS or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        training.run(until=training.t + 1)
        whole = time.perf_counter() - start
        with Stopwatch(training) as watch:
            training.run(until=training.t + 1)
        done += 1
        yield whole, watch.seconds


def ceiling(share: float) -> float | None:
    """The speed-up of a step if the Layers cost nothing (Amdahl's law); None where nothing else was seen to cost."""
    return 1 / (1 - share) if share < 1 else None
