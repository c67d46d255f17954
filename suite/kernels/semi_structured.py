"""2:4 sparsity on a GPU: torch's semi-structured product in the forward pass of Linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dstbench.suite.kernels.base import Activation
from dstbench.suite.kernels.masked import Masked
from dstbench.suite.kernels.plan import first_order
from dstbench.suite.layer import Layer, Mask

HALF = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # what torch's 2:4 formats divide a weight of 16-bit values into


def missing(device: torch.device) -> str | None:
    """Why this device has no 2:4 products, or None."""
    if device.type != "cuda":
        return f"2:4 products are computed on CUDA, this layer is on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 products need compute capability 8.0, this GPU has {major}.{minor}"
    return None


def compress(weight: Tensor) -> Tensor:
    """A 16-bit weight (outputs, inputs), at most 2 of every 4 inputs not zero, in torch's 2:4 format."""
    return torch.sparse.to_sparse_semi_structured(weight)


def two_of_four(mask: Mask) -> bool:
    """Whether at most 2 of every 4 consecutive inputs are read."""
    return mask is not None and not mask.shape[1] % 4 and bool((mask.view(-1, 4).sum(1) <= 2).all())


class SemiStructuredLinear(torch.autograd.Function):
    """x (.., inputs) by a 2:4 weight; both gradients are dense products, since W^T is not 2:4 along its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        assert layer.forward_mask is not None
        read = torch.where(layer.forward_mask, weight, 0.0).to(dtype)
        x = x.to(dtype)
        ctx.save_for_backward(x, read)
        ctx.grad_mask = layer.grad_mask
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            y = nn.functional.linear(flat, compress(read), None if bias is None else bias.to(dtype))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        first_order()
        x, read = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (flat @ read).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = (flat.t() @ x.reshape(-1, x.shape[-1])).float()
            dw = dw if ctx.grad_mask is None else torch.where(ctx.grad_mask, dw, 0.0)
        if ctx.needs_input_grad[2]:
            db = flat.float().sum(0)
        return dx, dw, db, None, None


class SemiStructured(Masked):
    """torch's 2:4 forward products of Linear layers on CUDA, under fp16 or bf16; stores as masked does."""

    name = "semi_structured"
    simulated = False

    def __init__(self) -> None:
        super().__init__()
        self.fits: dict[str, tuple[int, bool]] = {}  # by layer: the revision of its masks, and whether they are 2:4
        self.full: set[str] = set()  # layers whose last pass was in a precision without 2:4 products

    def unsupported(self, module: nn.Module, attribute: str) -> str | None:
        if type(module) is not nn.Linear:
            return f"no 2:4 product for {attribute} of {type(module).__name__}"
        if module.weight.shape[0] % ROWS or module.weight.shape[1] % COLUMNS:
            shape = tuple(module.weight.shape)
            return f"2:4 products take weights of multiples of ({ROWS}, {COLUMNS}), this layer has {shape}"
        return missing(module.weight.device)

    def route(self, layer: Layer) -> str:
        if self.fits.get(layer.name, (None,))[0] != layer.revision:
            self.fits[layer.name] = layer.revision, two_of_four(layer.forward_mask)
        return "2:4" if self.fits[layer.name][1] and layer.name not in self.full else "dense"

    def operation(self, module: nn.Module, layer: Layer, x: Tensor, act: Activation = None) -> Tensor | None:
        self.full.discard(layer.name)
        if self.route(layer) == "dense" or _get_current_dispatch_mode() is not None:
            return None
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if dtype not in HALF:
            self.full.add(layer.name)
            return None
        x = x if act is None else act(x)
        return SemiStructuredLinear.apply(x, layer.parameter, module.bias, layer, dtype)
