"""Peer kernel: the layers of the package `sparseprop`, where the user has installed it.

Reference: Nikdan et al. 2023, SparseProp, arXiv 2302.04852; https://github.com/IST-DASLab/sparseprop
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite.kernels.base import Kernel
from dstbench.suite.kernels.plan import Plan
from dstbench.suite.kernels.sparse import Sparse, unsuited
from dstbench.suite.layer import Layer, Mask

WIDE = 32  # columns of an image from which its authors vectorise over the width, else over the batch
LARGEST = 2**15  # it counts the entries of a filter in 16 bits
VECTOR = 8  # its forward convolution over the batch is wrong (version 0.1.14) for what is left of a batch beyond these


class SparsePropPattern:
    """The positions of a bool mask in the package's own format: CSR of a matrix, or of (out, in) with x and y."""

    def __init__(self, mask: Tensor) -> None:
        formats = _package().modules.utils
        _, self.index = (formats.to_csr_2d if mask.dim() == 2 else formats.to_sparse_format_conv2d)(mask.float())

    @property
    def bytes(self) -> int:
        return sum(array.numel() * array.element_size() for array in self.index)


class DenseWeightGrad(torch.autograd.Function):
    """Hands y on, and computes the weight gradient of the Linear or Conv2d that made it by torch, dense."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, stored: Tensor, x: Tensor, plan: Plan[Any], geometry: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.plan, ctx.geometry = plan, geometry
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if ctx.geometry is None:
            dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        else:
            shape, stride, padding = ctx.geometry
            dense = torch.nn.grad.conv2d_weight(x, shape, grad, stride, padding)
        return grad, ctx.plan.select(dense), None, None, None


class SparseProp(Sparse):
    """The package sparseprop's products for every masked Linear and Conv2d; a peer to compare with.

    It computes the weight gradient of the weights it reads; where a method asks for other entries, torch computes it
    dense. ValueError where the package is not installed.
    """

    name = "sparseprop"
    network = Kernel.network  # nothing is fused: all but its own products are torch's

    def __init__(self) -> None:
        super().__init__()
        _package()

    def unsupported(self, module: nn.Module, attribute: str) -> str | None:
        return unsuited(module, attribute) or (_uneven(module) if isinstance(module, nn.Conv2d) else None)

    def reads(self, layer: Layer) -> Mask:
        # It crashes (version 0.1.14) on a layer that reads no weight.
        return layer.forward_mask if layer.nnz() else None

    def route(self, layer: Layer) -> str:
        return "dense" if self.reads(layer) is None else "sparse"

    def linear(self, module: nn.Module, layer: Layer, x: Tensor) -> Tensor:
        plan, x = self._plan(layer, SparsePropPattern), x.contiguous()
        apply = _package().modules.functions.SparseLinearFunction.apply
        last = module.bias, layer.shape[0]
        return self._product(layer, plan, x, None, lambda v: apply(x, v, plan.forward.index, *last))

    def _convolve(self, module: nn.Conv2d, layer: Layer, x: Tensor) -> Tensor | None:
        if x.dim() != 4 or x.shape[1] != layer.shape[1]:
            return None
        samples, plan = len(x), self._plan(layer, SparsePropPattern)
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, -samples % VECTOR)).contiguous()
        apply = _package().modules.functions.SparseConvFunction.apply
        size, stride, padding = layer.shape[-1], module.stride[0], int(module.padding[0])
        wide = x.shape[-1] >= WIDE
        last = module.bias, layer.shape[0], size, padding, stride, wide and stride == 1, wide
        geometry = layer.shape, stride, padding
        return self._product(layer, plan, x, geometry, lambda v: apply(x, v, plan.forward.index, *last))[:samples]

    def _product(self, layer: Layer, plan: Plan[SparsePropPattern], x: Tensor, geometry: Any, call: Any) -> Tensor:
        if plan.grad is plan.forward:
            return call(plan.values(layer.parameter))
        y = call(plan.values(layer.parameter.detach()))
        return DenseWeightGrad.apply(y, layer.parameter, x.detach(), plan, geometry)


def _uneven(conv: nn.Conv2d) -> str | None:
    """Why the package has no product for this convolution, or None."""
    for name in ("kernel_size", "stride", "padding"):
        if len(set(getattr(conv, name))) > 1:
            return f"sparseprop takes one {name} for both dimensions, this layer has {getattr(conv, name)}"
    if conv.weight[0].numel() >= LARGEST:
        return f"sparseprop takes filters of less than {LARGEST} weights, this layer has {conv.weight[0].numel()}"
    return None


@functools.cache
def _package() -> Any:
    try:
        import sparseprop.modules.functions
        import sparseprop.modules.utils
    except ImportError as why:
        raise ValueError(
            f"kernel sparseprop needs the package sparseprop, which cannot be imported ({why}): install it by "
            "`pip install sparseprop` (it is compiled for this processor, which must have AVX2), or take another kernel"
        ) from why
    return sparseprop
