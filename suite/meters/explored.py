"""Exploration: which weights the passes of a run have read."""

from __future__ import annotations

import torch
from torch import Tensor

from dstbench.suite.model import SparseModel


class Explored:
    """The union of the forward masks of all passes so far, by Layer; `None`: all, also once a Layer has shrunk.

    Reference: Liu et al., arXiv 2102.02887, section 3.2: the in-time over-parameterisation rate R_s.
    """

    def __init__(self, model: SparseModel) -> None:
        self.model = model
        self.sizes = [layer.numel for layer in model.layers]
        self.seen: list[Tensor | None] = [torch.zeros_like(y.weight, dtype=torch.bool) for y in model.layers]
        self._revisions = [-1] * len(model.layers)

    def look(self) -> None:
        """Add what the present masks read."""
        for i, layer in enumerate(self.model.layers):
            if layer.revision != self._revisions[i]:
                self._revisions[i], mask, seen = layer.revision, layer.forward_mask, self.seen[i]
                self.seen[i] = None if mask is None or seen is None or seen.shape != mask.shape else seen | mask

    @property
    def share(self) -> float:
        """Weights ever read over maskable weights."""
        counts = (n if m is None else int(m.count_nonzero()) for n, m in zip(self.sizes, self.seen, strict=True))
        return sum(counts) / max(1, self.model.maskable)
