"""The contract of a kernel, and the masked reading that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dstbench.suite.layer import Layer, Reduction

Activation = Callable[[Tensor], Tensor] | None


class Kernel:
    """Stores the entries that a Layer declares and hands them, differentiable, to the operation that reads them.

    It masks the *tensor*, not the operation: `weight` is what a module's own forward sees as its weight. So any module,
    groups, autocast and double backward work.
    """

    name = "kernel"
    streams = True  # whether it stores a part of the weights, so that no dense gradient need outlive its layer
    simulated = True  # dense arithmetic over masked tensors: FLOPs are saved on paper only

    def unsupported(self, module: nn.Module, attribute: str) -> str | None:
        """Why it cannot hold this weight of this module (the run then falls back to `masked` for it), or None."""
        return None

    def network(self, net: nn.Module) -> Callable[..., Any]:
        """What runs a pass of the network: itself, or the same with parts computed by operations of the kernel."""
        return net

    def operation(self, module: nn.Module, layer: Layer, x: Tensor, act: Activation = None) -> Tensor | None:
        """What a Linear or Conv2d computes of act(x) in place of its own forward; None: its own, on `weight`."""
        return None

    def route(self, layer: Layer) -> str:
        """How a pass computes the layer with its present masks, in a word: the record shows it."""
        return self.name

    def pack(self, layer: Layer) -> None:
        """Bring parameter, gradient and optimiser state of the layer to the storage that its masks ask for."""
        raise NotImplementedError

    def adopt(self, layer: Layer, dense: dict[str, Tensor]) -> None:
        """Store dense tensors ("weight" and optimiser state by name) as the layer's masks ask for."""
        raise NotImplementedError

    def project(self, layer: Layer) -> None:
        """Zero what an optimiser step may have left outside the stored entries, where there is an outside."""

    def weight(self, layer: Layer) -> Tensor:
        """The weight that a pass reads, dense shape, differentiable to `layer.parameter` on `grad_mask` alone."""
        raise NotImplementedError

    def dense(self, layer: Layer, stored: Tensor, kept: Tensor | None = None) -> Tensor:
        """A stored tensor in the weight's shape; `kept` (zero if None) fills what is not stored."""
        raise NotImplementedError

    def store(self, layer: Layer, dense: Tensor) -> Tensor:
        """A dense tensor as stored: the shape of `layer.parameter`."""
        raise NotImplementedError

    def index_bytes(self, layer: Layer) -> int:
        """Bytes of masks and index plans that this kernel keeps alive for the layer."""
        masks = {id(m): m for m in (layer.forward_mask, layer.grad_mask) if m is not None}
        return sum(m.numel() * m.element_size() for m in masks.values())


class MaskedRead(torch.autograd.Function):
    """Weight on `forward_mask`, gradient on `grad_mask`; exactly zero elsewhere, infinities included.

    `take` is called with the dense gradient.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weight: Tensor, forward_mask: Tensor | None, grad_mask: Tensor | None, take: Reduction | None = None
    ) -> Tensor:
        ctx.grad_mask, ctx.take = grad_mask, take
        return weight.view_as(weight) if forward_mask is None else torch.where(forward_mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        if ctx.take is not None:
            ctx.take(grad)
        return grad if ctx.grad_mask is None else torch.where(ctx.grad_mask, grad, 0.0), None, None, None
