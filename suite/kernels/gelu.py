"""GELU (exact: by erf) by the C++ kernel."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import first_order, suits
from dstbench.suite.kernels.tracing import hooked

FUNCTIONS = {"gelu_forward": "plpi", "gelu_backward": "pplpi"}


@functools.cache
def _native() -> ctypes.CDLL:
    return build.declare("gelu", FUNCTIONS)


class Gelu(torch.autograd.Function):
    """x, contiguous, of any shape -> x Phi(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        y = torch.empty_like(x)
        _native().gelu_forward(x.data_ptr(), x.numel(), y.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        first_order()
        (x,) = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        _native().gelu_backward(x.data_ptr(), grad.data_ptr(), x.numel(), dx.data_ptr(), torch.get_num_threads())
        return dx


def gelu(x: Tensor) -> Tensor:
    """By the kernel, or by torch where the kernel has no part in it."""
    return Gelu.apply(x) if suits(x) and x.is_contiguous() else F.gelu(x)


class FusedGelu(nn.Module):
    """GELU, and the Linear behind it, if there is one: a sparse one computes GELU as it reads its input."""

    def __init__(self, linear: nn.Module | None) -> None:
        super().__init__()
        self.__dict__["linear"] = linear  # the network owns it

    def forward(self, x: Tensor) -> Tensor:
        linear = self.__dict__["linear"]
        if linear is None:
            return gelu(x)
        one = getattr(linear, "activates", False) and not hooked(linear)  # hooks are to see the Linear's own input
        return linear(x, gelu) if one else linear(gelu(x))
