"""Between dense tensors and the vectors of their entries on a bool mask, by the C++ kernel where it fits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import address, suits

FUNCTIONS = {"support_gather": "plppi", "support_scatter": "plpppi"}


@functools.cache
def _native() -> Any:
    return None if build.missing("support") else build.declare("support", FUNCTIONS)


def gather(mask: Tensor, dense: Tensor) -> Tensor:
    """The entries of `dense` on `mask`, both of one shape, in row-major order."""
    if not _fits(mask, dense):
        return dense[mask]
    values = dense.new_empty(int(mask.count_nonzero()))
    _call("gather", mask, dense.contiguous(), values)
    return values


def scatter(mask: Tensor, values: Tensor, kept: Tensor | None = None) -> Tensor:
    """A new dense tensor of the mask's shape: `values` on it, elsewhere those of `kept`, or zero.

    ValueError where there are not as many values as entries.
    """
    if values.numel() != (entries := int(mask.count_nonzero())):
        raise ValueError(f"values: {values.numel()}, expected {entries}, one for each entry of the mask")
    if not _fits(mask, values, *(() if kept is None else (kept,))):
        base = values.new_zeros(mask.shape) if kept is None else kept.clone()
        return base.masked_scatter_(mask, values)
    dense = values.new_empty(mask.shape)
    _call("scatter", mask, values.contiguous(), None if kept is None else kept.contiguous(), dense)
    return dense


def _fits(mask: Tensor, *tensors: Tensor) -> bool:
    return suits(*tensors) and mask.is_contiguous() and all(t.numel() for t in tensors) and _native() is not None


def _call(what: str, mask: Tensor, *tensors: Tensor | None) -> None:
    places = [address(tensor) for tensor in tensors]
    getattr(_native(), f"support_{what}")(mask.data_ptr(), mask.numel(), *places, torch.get_num_threads())
