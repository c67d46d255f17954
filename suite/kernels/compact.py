"""A values vector and an index in plain torch: slow, and the proof that no method depends on dense storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dstbench.suite.kernels.base import Kernel, MaskedRead
from dstbench.suite.layer import Layer, Mask


class Scatter(torch.autograd.Function):
    """Values at `index` of an otherwise zero tensor of `shape`; its gradient gathers them back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, shape: torch.Size) -> Tensor:  # type: ignore[override]
        ctx.index = index
        return values.new_zeros(shape.numel()).index_copy_(0, index, values).view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad.flatten()[ctx.index], None, None


class Compact(Kernel):
    """The optimiser steps the vector of stored values; what is kept off the support waits in `layer.reserve`."""

    name = "compact"

    def __init__(self) -> None:
        self.index: dict[str, Tensor] = {}

    @torch.no_grad()
    def pack(self, layer: Layer) -> None:
        tensors = {"weight": layer.parameter.detach(), **layer._slots()}
        dense = {name: self.dense(layer, tensor, layer.reserve.get(name)) for name, tensor in tensors.items()}
        had_grad = layer.parameter.grad is not None
        self.adopt(layer, dense)
        if had_grad and layer._dense_grad is not None:
            layer.parameter.grad = self.store(layer, layer._dense_grad)

    @torch.no_grad()
    def adopt(self, layer: Layer, dense: dict[str, Tensor]) -> None:
        stored = layer.stored
        self.locate(layer, stored)
        layer.reserve = (
            {} if stored is None else {k: dense[k].masked_fill(stored, 0) for k in dense if k in layer.keeps}
        )
        layer.parameter.grad = None
        layer.parameter.data = self.store(layer, dense.pop("weight"))
        if dense and layer.optimizer:
            layer.optimizer.state[layer.parameter].update({k: self.store(layer, v) for k, v in dense.items()})

    def locate(self, layer: Layer, stored: Mask) -> None:
        """Remember where the stored values lie."""
        everything = torch.arange(layer.numel, device=layer.parameter.device)
        self.index[layer.name] = everything if stored is None else everything[stored.flatten()]

    def weight(self, layer: Layer) -> Tensor:
        dense = Scatter.apply(layer.parameter, self.index[layer.name], layer.shape)
        return MaskedRead.apply(dense, layer.forward_mask, layer.grad_mask, layer.reader())

    def dense(self, layer: Layer, stored: Tensor, kept: Tensor | None = None) -> Tensor:
        base = stored.new_zeros(layer.numel) if kept is None else kept.flatten().clone()
        return base.index_copy_(0, self.index[layer.name], stored).view(layer.shape)

    def store(self, layer: Layer, dense: Tensor) -> Tensor:
        return dense.flatten()[self.index[layer.name]]

    def index_bytes(self, layer: Layer) -> int:
        index = self.index[layer.name]
        return super().index_bytes(layer) + index.numel() * index.element_size()
