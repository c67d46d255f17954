"""Small dense: no mask at all, but a network as small as the sparse ones."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import nn

from dstbench.methods.allocate import erk
from dstbench.methods.checks import valid
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

MATCHES = ("parameters", "flops")
STEPS = 2**14  # widths are tried at multiples of 1 / STEPS, finer than one unit of any layer up to 16384 wide


@dataclass
class SmallDense(Method):
    """Trains densely a network that is narrower by one factor, and so as small as the sparse networks it controls for.

    `match` says what is equal: "parameters", the weights in Layers, to the share 1 - sparsity of those of the task's
    network; "flops", the forward FLOPs of the Layers, to those of the task's network under ERK at that sparsity, while
    the number of weights is what it will be. Widths are whole numbers: the size is the nearest there is, and `grain`
    the weights between it and its neighbour on the other side of what was asked for, or those by which equal FLOPs miss
    equal weights.

    Passes: reads every weight and computes every gradient of the narrow network, always.
    FLOPs: 3 f of the narrow network (arXiv 1911.11134, appendix H); the reference is the task's own network.
    Defaults: this suite's; the preset `small_dense:flops` is the other choice.
    Ambiguous: how to narrow. One factor on the widths that the task names, rounded by the task; sizes are taken to grow
        with the factor. What a task keeps dense is narrowed too, and is in neither count.
    Reference: Evci et al., arXiv 1911.11134, section 4 (baseline "Small-Dense").
    """

    match: str = "parameters"

    name: ClassVar[str] = "small_dense"
    family: ClassVar[str] = "control"
    citation: ClassVar[str] = "Evci et al., ICML 2020, arXiv 1911.11134"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, match=MATCHES)
        self.gap = 1

    def skip(self, task: Task) -> str | None:
        try:
            self.network(task, 0)
        except ValueError as error:
            return str(error)
        return None

    def network(self, task: Task, seed: int) -> nn.Module:
        example = task.example()

        @cache
        def sizes(step: int) -> tuple[float, int]:
            try:
                model = SparseModel(task.build(seed, step / STEPS), example, task.dense)
            except Exception as error:  # a network that knows its width by heart may raise anything
                why = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"there is no narrower network: {why} (width {step / STEPS:.2g})") from error
            return cost(model, self.match, 1.0), model.maskable

        full = SparseModel(task.build(seed), example, task.dense)
        wanted = cost(full, self.match, 1 - self.sparsity)
        above = 1 + bisect_left(range(1, STEPS), wanted, key=lambda step: sizes(step)[0])
        below = max(1, above - 1)
        best = min(below, above, key=lambda step: abs(sizes(step)[0] - wanted))
        missed = abs(sizes(best)[1] - round((1 - self.sparsity) * full.maskable)) if self.match == "flops" else 1
        self.gap = max(missed, sizes(above)[1] - sizes(below)[1])
        return task.build(seed, best / STEPS)

    @property
    def grain(self) -> int:
        return self.gap


def cost(model: SparseModel, match: str, density: float) -> float:
    """Weights or forward FLOPs of the Layers at this density."""
    if match == "parameters":
        return density * model.maskable
    densities = erk(model.layers, density)
    return sum(densities[layer.name] * model.dense_passes.inference.forward.get(layer.key, 0) for layer in model.layers)
