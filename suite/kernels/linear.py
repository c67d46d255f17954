"""Linear layers on a sparse support: patterns, and their products by the C++ kernels."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import Plan, address, first_order

ROWS = 1024  # from that many samples on, blocks of samples go through each core's cache
BLOCK_BYTES = 1 << 20  # of the wider side of a block of 128 samples, which else has 64
FUNCTIONS = {
    "pattern_build": "pllippppp",
    "pack": "plllpli",
    "linear_forward": "plppppi",
    "linear_backward": "pplppppppi",
    "linear_forward_rows": "plpppplii",
    "linear_backward_rows": "pplpppppplii",
    "gather": "pplpi",
}
ARRAYS = ("rowptr", "col", "colptr", "row", "slot")


class _Pattern(ctypes.Structure):
    """As in linear.cpp."""

    _fields_ = [(n, ctypes.c_long) for n in ("outputs", "inputs", "height")] + [(n, ctypes.c_void_p) for n in ARRAYS]


@functools.cache
def _native() -> ctypes.CDLL:
    return build.declare("linear", FUNCTIONS)


class LinearPattern:
    """CSR of a bool mask (outputs, inputs), and its transpose; `slot`: the place of each entry of the transpose.

    The mask of a convolution whose kernel covers its whole input, (outputs, channels, height, width), is taken too.
    height: where groups of 8, 4 or 2 outputs in sequence (and up to `tallest`) have one support, the largest of these;
    a row of the CSR is then a group, with one index for each block of `height` entries. Else 1.
    """

    def __init__(self, mask: Tensor, tallest: int = 8) -> None:
        self.taps = mask.dim() - 2
        mask = mask.flatten(1).contiguous()
        self.outputs, self.inputs = mask.shape
        self.entries = int(mask.count_nonzero())
        sizes = (self.outputs + 1, self.entries, self.inputs + 1, self.entries, self.entries)
        self.arrays = [torch.empty(size, dtype=torch.int32) for size in sizes]
        places = [array.data_ptr() for array in self.arrays]
        self.height = _native().pattern_build(mask.data_ptr(), self.outputs, self.inputs, tallest, *places)
        if self.height > 1:
            rows, blocks = self.outputs // self.height + 1, self.entries // self.height
            self.arrays[:2] = self.arrays[0][:rows].clone(), self.arrays[1][:blocks].clone()

    @property
    def struct(self) -> Any:
        """For a call of the kernels: made anew, so that a copy of the pattern holds no address of the original."""
        places = (array.data_ptr() for array in self.arrays)
        return ctypes.byref(_Pattern(self.outputs, self.inputs, self.height, *places))

    @property
    def bytes(self) -> int:
        return sum(array.numel() * array.element_size() for array in self.arrays)

    @property
    def block(self) -> int:
        """Samples that go through a core's cache at a time."""
        return 128 if max(self.inputs, self.outputs) * 128 * 4 <= BLOCK_BYTES else 64


def transposed(x: Tensor) -> Tensor:
    """(samples, features) as [features][samples up to a multiple of 16], zero behind; nothing moves where it is so."""
    samples, features = x.shape
    if x.stride() == (1, samples) and samples % 16 == 0 and x.data_ptr() % 64 == 0:
        return x.t()
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(features, -(-samples // 16) * 16)
    threads = torch.get_num_threads()
    _native().pack(x.data_ptr(), samples, features, x.stride(0), out.data_ptr(), out.shape[1], threads)
    return out


def by_rows(x: Tensor) -> bool:
    """Whether a layer takes blocks of x's samples, else all of them, transposed."""
    return x.dim() != 2 or x.shape[0] >= ROWS


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradients(
    x: Tensor,
    grad: Tensor,
    pattern: LinearPattern,
    values: Tensor | None,
    rows: bool,
    weights: bool,
    bias: bool,
    gelu: bool,
) -> Gradients:
    """Of the input (if `values` are given), of the pattern's values and of the bias (with `weights` only).

    x and grad are (samples, features) if `rows`, else [features][samples], as `transposed` makes them; with `gelu`, for
    rows alone, the layer read GELU(x).
    """
    entries, threads = pattern.entries, torch.get_num_threads()
    samples = x.shape[0] if rows else x.shape[1]
    # By rows, blocks need no other order.
    turned = values if values is None or (rows and pattern.height > 1) else torch.empty_like(values)
    dx = None if values is None else torch.empty_like(x)
    dw = x.new_empty(entries) if weights else None
    db = x.new_empty(pattern.outputs) if weights and bias else None
    results = [address(tensor) for tensor in (dx, dw, db)]
    common = (x.data_ptr(), grad.data_ptr(), samples, pattern.struct)
    if not rows:
        _native().linear_backward(*common, address(values), address(turned), *results, threads)
        return dx, dw, db
    if values is not None and turned is not values:
        _native().gather(values.data_ptr(), pattern.arrays[-1].data_ptr(), entries, address(turned), threads)
    sums = x.new_empty(threads, entries + pattern.outputs)
    _native().linear_backward_rows(*common, address(turned), *results, sums.data_ptr(), pattern.block, gelu, threads)
    return dx, dw, db


class SparseLinear(torch.autograd.Function):
    """x (.., inputs), the stored values, bias (outputs,) or None -> (.., outputs); (N, C, H, W) -> (N, outputs, 1, 1).

    With `gelu`, which needs `by_rows`, of GELU(x).

    A matrix of less than ROWS samples gives the transpose of a contiguous tensor: elementwise operations keep that
    layout, and the next sparse layer takes it as it is. No result is a view, so that it may be changed in place.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None, plan: Plan[LinearPattern], gelu: bool = False
    ) -> Tensor:
        pattern, values, threads = plan.forward, plan.values(stored), torch.get_num_threads()
        ctx.plan, ctx.shape, ctx.gelu = plan, x.shape, gelu
        x = x.flatten(1) if pattern.taps else x
        shape = (*x.shape[:-1], pattern.outputs, *[1] * pattern.taps)
        ctx.rows = by_rows(x)
        last = pattern.struct, values.data_ptr(), address(bias)
        if ctx.rows:
            x = x.reshape(-1, pattern.inputs).contiguous()
            y = x.new_empty(shape)
            options = pattern.block, gelu, threads
            _native().linear_forward_rows(x.data_ptr(), x.shape[0], *last, y.data_ptr(), *options)
        else:
            x = transposed(x)
            ld = x.shape[1]
            room = x.new_empty(pattern.outputs, ld)
            _native().linear_forward(x.data_ptr(), ld, *last, room.data_ptr(), threads)
            y = x.new_empty(0).set_(room.untyped_storage(), 0, shape, (1, ld, *[1] * pattern.taps))
        ctx.save_for_backward(x, values)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        first_order()
        x, values = ctx.saved_tensors
        plan, rows, gelu = ctx.plan, ctx.rows, ctx.gelu
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[:3]
        grad = grad.flatten(1) if plan.forward.taps else grad.reshape(-1, grad.shape[-1])
        d = grad.contiguous() if rows else transposed(grad)
        together = wants_values and plan.grad is plan.forward
        dx = dw = db = None
        if wants_x or together:
            read = values if wants_x else None
            dx, dw, db = _gradients(x, d, plan.forward, read, rows, together, wants_bias, gelu)
        if wants_values and plan.grad is None:
            dense = d.t() @ (F.gelu(x) if gelu else x) if rows else d @ x.t()
            dw = plan.select(dense)
        elif wants_values:
            if not together:
                _, dw, db = _gradients(x, d, plan.grad, None, rows, True, wants_bias, gelu)
            dw = plan.spread(dw)
        if wants_bias and db is None:
            db = grad.sum(0)
        if dx is not None:
            dx = dx.view(ctx.shape) if rows else dx[:, : ctx.shape[0]].t().reshape(ctx.shape)
        return dx, dw, db, None, None
