"""Batch norm fused with the addition and the ReLU behind it, by the C++ kernels."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import address, first_order, suits

SMALLEST = 16  # pixels of a plane: a vector
FUNCTIONS = {"norm_forward": "pplllppdippppi", "norm_backward": "ppplllpppdippppi"}


@functools.cache
def _native() -> ctypes.CDLL:
    return build.declare("norm", FUNCTIONS)


class NormAct(torch.autograd.Function):
    """x (N, C, H, W), weight and bias (C,), an addend like x or None, mean and variance (C,) -> (N, C, H, W).

    In training, `mean` and `var` (biased) are set to those of the batch, else they are used as they are.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None, stats: Any, training: bool, relu: bool
    ) -> Tensor:
        mean, var, eps = stats
        x, other = x.contiguous(), None if other is None else other.contiguous()
        n, c, size = x.shape[0], x.shape[1], x.shape[2:].numel()
        y = torch.empty_like(x)
        bits = torch.empty(n * c * -(-size // 16), dtype=torch.int16) if relu else None
        places = (address(mean), address(var), address(y), address(bits))
        head = (address(x), address(other), n, c, size, address(weight), address(bias), eps, training)
        _native().norm_forward(*head, *places, torch.get_num_threads())
        ctx.save_for_backward(x, weight, mean, var, *(() if bits is None else (bits,)))
        ctx.options = n, c, size, eps, training
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        first_order()
        x, weight, mean, var, *rest = ctx.saved_tensors
        bits, grad = rest[0] if rest else None, grad.contiguous()
        n, c, size, eps, training = ctx.options
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        added = torch.empty_like(x) if ctx.needs_input_grad[3] and bits is not None else None
        dw, db = torch.empty_like(weight), torch.empty_like(weight)
        head = (
            address(x),
            address(bits),
            address(grad),
            n,
            c,
            size,
            address(weight),
            address(mean),
            address(var),
            eps,
            training,
        )
        _native().norm_backward(*head, address(dx), address(added), address(dw), address(db), torch.get_num_threads())
        other = grad if bits is None and ctx.needs_input_grad[3] else added
        return dx, dw, db, other, None, None, None


class FusedNorm(nn.Module):
    """A batch norm, what is added to its result, and ReLU, in one; by torch where the kernel has no part in it."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool) -> None:
        super().__init__()
        self.__dict__["norm"] = norm  # the network owns it
        self.relu = relu

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        norm = self.__dict__["norm"]
        if not _suits(norm, x, other):
            y = norm(x) if other is None else norm(x) + other
            return F.relu(y) if self.relu else y
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            mean, var = torch.empty_like(mean), torch.empty_like(var)
        y = NormAct.apply(x, norm.weight, norm.bias, other, (mean, var, norm.eps), norm.training, self.relu)
        if norm.training:
            _follow(norm, mean, var, x.numel() // x.shape[1])
        return y


def _suits(norm: nn.BatchNorm2d, x: Tensor, other: Tensor | None) -> bool:
    if norm.weight is None or norm.running_mean is None or (other is not None and other.shape != x.shape):
        return False
    operands = (x, norm.weight) if other is None else (x, norm.weight, other)
    return x.dim() == 4 and x.shape[2:].numel() >= SMALLEST and suits(*operands)


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics as torch does: by the unbiased variance, momentum None for the plain average."""
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr, operator]
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
    norm.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
    norm.running_var.lerp_(var * (count / max(1, count - 1)), momentum)  # type: ignore[union-attr]
