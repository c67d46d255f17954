"""Attention of few tokens by the C++ kernel, from queries, keys and values as one Linear gives them."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import first_order, suits

TOKENS = 256  # at most: two matrices of tokens x tokens stay in a core's cache
FUNCTIONS = {"attention_forward": "plllldpi", "attention_backward": "pplllldpi"}


@functools.cache
def _native() -> ctypes.CDLL:
    return build.declare("attention", FUNCTIONS)


class Attention(torch.autograd.Function):
    """Queries, keys and values (images, tokens, 3, heads, size) -> (images, tokens, heads, size); size % 16 == 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.contiguous()
        n, tokens, _, heads, size = x.shape
        y = x.new_empty(n, tokens, heads, size)
        ctx.shape = n, tokens, heads, size, size**-0.5
        _native().attention_forward(x.data_ptr(), *ctx.shape, y.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        first_order()
        (x,) = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        common = (x.data_ptr(), grad.data_ptr(), *ctx.shape)
        _native().attention_backward(*common, dx.data_ptr(), torch.get_num_threads())
        return dx


class FusedAttention(nn.Module):
    """(3, images, heads, tokens, size) -> (images, heads, tokens, size); options as torch's, which then computes it."""

    def forward(self, packed: Tensor, **options: Any) -> Tensor:
        if _suits(packed) and not any(isinstance(option, Tensor) or option for option in options.values()):
            return Attention.apply(packed.permute(1, 3, 0, 2, 4)).transpose(1, 2)
        q, k, v = packed.unbind(0)[:3]
        return F.scaled_dot_product_attention(q, k, v, **options)


def _suits(packed: Tensor) -> bool:
    if packed.dim() != 5 or len(packed) != 3 or not packed.numel() or not suits(packed):
        return False
    return packed.shape[3] <= TOKENS and packed.shape[4] % 16 == 0
