"""The reference kernel: dense storage, masked reading; any device, autocast, double backward."""

from __future__ import annotations

import torch
from torch import Tensor

from dstbench.suite.kernels.base import Kernel, MaskedRead
from dstbench.suite.layer import Layer


class Masked(Kernel):
    """Keeps the whole tensor, zero where nothing is stored, at the speed of dense training: simulated sparsity."""

    name = "masked"
    streams = False

    def __init__(self) -> None:
        self.stored: dict[str, Tensor | None] = {}

    @torch.no_grad()
    def pack(self, layer: Layer) -> None:
        if layer.stored is None and self.stored[layer.name] is None:
            return
        if layer.reserve:
            for name, tensor in (("weight", layer.parameter), *layer._slots().items()):
                tensor.copy_(self.dense(layer, tensor, layer.reserve.get(name)))
        self._settle(layer)

    @torch.no_grad()
    def adopt(self, layer: Layer, dense: dict[str, Tensor]) -> None:
        layer.parameter.data = dense.pop("weight")
        if dense and layer.optimizer:
            layer.optimizer.state[layer.parameter].update(dense)
        self._settle(layer)

    def _settle(self, layer: Layer) -> None:
        """Park what is kept off the union in `layer.reserve`, zero the rest."""
        stored = self.stored[layer.name] = layer.stored
        layer.reserve = {}
        if layer.keeps and stored is not None:
            tensors = {"weight": layer.parameter.detach(), **layer._slots()}
            layer.reserve = {k: tensors[k].masked_fill(stored, 0) for k in tensors if k in layer.keeps}
        self.project(layer)

    @torch.no_grad()
    def project(self, layer: Layer) -> None:
        stored = self.stored[layer.name]
        if stored is not None:
            outside = ~stored
            for tensor in (layer.parameter, *layer._slots().values()):
                tensor.masked_fill_(outside, 0)

    def weight(self, layer: Layer) -> Tensor:
        return MaskedRead.apply(layer.parameter, layer.forward_mask, layer.grad_mask)

    def dense(self, layer: Layer, stored: Tensor, kept: Tensor | None = None) -> Tensor:
        where = self.stored[layer.name]
        return stored if kept is None or where is None else torch.where(where, stored, kept)

    def store(self, layer: Layer, dense: Tensor) -> Tensor:
        return dense
