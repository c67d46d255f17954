"""Units: how many rows and channels of each Layer are alive, over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstbench.suite.layer import Layer

MOST = 64  # Layers; a record of a larger network would hold little else


class Units:
    """Active units of each Layer: slices of its first axis (rows, output channels) in which a pass reads a weight.

    `seen` is None for a network of more than `MOST` Layers, else {"step": [...], "of": {layer: units}, "layers":
    {layer: [active units at each step]}}: what a record's curve holds.
    Reference: Bungert et al. 2022, arXiv 2105.04319, on the architecture that training finds.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self.seen: dict[str, Any] | None = None
        if 0 < len(layers) <= MOST:
            names = [layer.name for layer in layers]
            self.seen = {"step": [], "of": {y.name: y.shape[0] for y in layers}, "layers": {name: [] for name in names}}

    def look(self, step: int) -> None:
        """Count now, after `step` steps."""
        if self.seen is None:
            return
        self.seen["step"].append(step)
        for layer in self._layers:
            self.seen["layers"][layer.name].append(active(layer))


def active(layer: Layer) -> int:
    """How many slices of the first axis hold a weight that `forward_mask` declares."""
    mask = layer.forward_mask
    return int(layer.shape[0]) if mask is None else int(mask.reshape(len(mask), -1).any(1).count_nonzero())
