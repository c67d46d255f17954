"""Convolutions on a sparse support: patterns with their passes, and their products by the C++ kernels."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from dstbench.suite.kernels import build
from dstbench.suite.kernels.plan import Plan, first_order

LANES = 16
FUNCTIONS = {
    "conv_entries": "plllppp",
    "conv_pass": "pillp",
    "conv_sort": "pilpppp",
    "conv_plain": "p",
    "conv_run": "pplippppii",
    "conv_grad": "pplipppi",
    "conv_unblock": "pllpi",
}
_LAYER = "outputs inputs kernel_h kernel_w stride_h stride_w pad_h pad_w height width"
_PASS = """channels height width outputs rows cols taps_h taps_w stride_h stride_w pad_h pad_w
    to_height to_width top left step_h step_w tile_rows tile_cols block_rows block_cols chunk chunks entries"""
_ARRAYS = "ptr offset slot"


class _Layer(ctypes.Structure):
    """As in conv_plan.cpp."""

    _fields_ = [(name, ctypes.c_long) for name in _LAYER.split()]


class _Pass(ctypes.Structure):
    """As in conv.h."""

    _fields_ = [(n, ctypes.c_long) for n in _PASS.split()] + [(n, ctypes.c_void_p) for n in _ARRAYS.split()]


@functools.cache
def _native() -> ctypes.CDLL:
    return build.declare("conv", FUNCTIONS)


def _ints(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int32)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


class ConvPattern:
    """The support of a convolution with its passes for each size of input; changes with its mask only.

    mask: bool (outputs, inputs, kernel height, kernel width). The layer's values are the entries in row-major order.
    chunk: input channels that the kernels take together, 0 to choose by density.
    Raises ValueError for a mask that is not 4-D and for strides other than 1 and 2.
    """

    def __init__(
        self, mask: Tensor, stride: int | tuple[int, ...] = 1, padding: int | tuple[int, ...] = 0, chunk: int = 0
    ) -> None:
        if mask.dim() != 4 or 0 in mask.shape:
            raise ValueError(f"mask: shape {tuple(mask.shape)}, expected (outputs, inputs, height, width), none 0")
        self.stride, self.padding, self.chunk = _pair(stride), _pair(padding), chunk
        if any(s not in (1, 2) for s in self.stride):
            raise ValueError(f"stride: {self.stride}, expected 1 or 2 in each dimension; keep this layer dense")
        if any(p < 0 for p in self.padding):
            raise ValueError(f"padding: {self.padding}, expected 0 or more")
        self.outputs, self.inputs, *self.kernel = mask.shape
        self._mask = mask.detach().to("cpu", torch.bool).contiguous()
        self._own = self._mask.numel() if self._mask.data_ptr() != mask.data_ptr() else 0  # bytes of a copy
        self.entries = self._scan(None, None, None)
        self._passes: dict[tuple[int, int, int], tuple[_Pass, list[Tensor]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passes": {}}  # they hold addresses: made anew in a copy

    @property
    def bytes(self) -> int:
        arrays = [array for _, arrays in self._passes.values() for array in arrays]
        return self._own + sum(array.numel() * array.element_size() for array in arrays)

    def _scan(self, *places: int | None) -> int:
        """The number of entries; where three addresses are given, write their outputs, inputs and taps there."""
        size = self.outputs, self.inputs, self.kernel[0] * self.kernel[1]
        return _native().conv_entries(self._mask.data_ptr(), *size, *places)

    def _coordinates(self) -> list[Tensor]:
        """Output, input and tap of each entry; they serve to make passes and are not kept."""
        if self._scan(None, None, None) != self.entries:
            raise RuntimeError("mask: edited in place since it was given; assign a new mask to the layer instead")
        found = [_ints(self.entries) for _ in range(3)]
        self._scan(*(array.data_ptr() for array in found))
        return found

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; ValueError where the kernel does not fit into the padded input."""
        size = zip((height, width), self.padding, self.kernel, self.stride, strict=True)
        rows, cols = ((n + 2 * p - k) // s + 1 if n + 2 * p >= k else 0 for n, p, k, s in size)
        if rows < 1 or cols < 1 or height < 1 or width < 1:
            raise ValueError(f"input of {height} x {width}: padded, smaller than the kernel {tuple(self.kernel)}")
        return rows, cols

    def run(self, height: int, width: int, phase: int = -1, coordinates: list[Tensor] | None = None) -> _Pass:
        """The forward pass for inputs of that size, or the input-gradient pass of a phase of the stride."""
        key = height, width, phase
        if key not in self._passes:
            self.output_size(height, width)
            layer = _Layer(self.outputs, self.inputs, *self.kernel, *self.stride, *self.padding, height, width)
            at, lib, new = ctypes.addressof(layer), _native(), _Pass()
            lib.conv_pass(at, phase, self.entries, self.chunk, ctypes.addressof(new))
            arrays = [_ints(new.chunks * new.outputs + 1), _ints(self.entries), _ints(self.entries)]
            new.ptr, new.offset, new.slot = (a.data_ptr() for a in arrays)
            coordinates = coordinates or self._coordinates()
            lib.conv_sort(at, phase, self.entries, *(c.data_ptr() for c in coordinates), ctypes.addressof(new))
            if new.entries < self.entries:  # a phase has a part of them
                arrays[1:] = [a[: new.entries].clone() for a in arrays[1:]]
                new.offset, new.slot = (a.data_ptr() for a in arrays[1:])
            self._passes[key] = new, arrays
        return self._passes[key][0]

    def input_grad_runs(self, height: int, width: int) -> list[_Pass]:
        """One pass for each phase of the stride that the input has pixels of."""
        phases = range(self.stride[0] * self.stride[1])
        known = all((height, width, phase) in self._passes for phase in phases)
        coordinates = None if known else self._coordinates()
        runs = [self.run(height, width, phase, coordinates) for phase in phases]
        return [p for p in runs if p.rows and p.cols]


def _checked(x: Tensor, channels: int, name: str) -> tuple[Tensor, int, bool]:
    """x contiguous, its number of images (or lanes), and whether it is blocked."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"{name}: {x.dtype} on {x.device}, expected float32 on the CPU")
    blocked = x.dim() == 5
    if x.dim() not in (4, 5) or x.shape[1] != channels or (blocked and x.shape[4] != LANES):
        raise ValueError(
            f"{name}: shape {tuple(x.shape)}, expected (N, {channels}, H, W) "
            f"or (N / {LANES}, {channels}, H, W, {LANES})"
        )
    return x.contiguous(), x.shape[0] * (LANES if blocked else 1), blocked


def _checked_values(values: Tensor, pattern: ConvPattern) -> Tensor:
    if values.dtype != torch.float32 or values.shape != (pattern.entries,):
        raise ValueError(f"values: {values.dtype} {tuple(values.shape)}, expected float32 ({pattern.entries},)")
    return values.contiguous()


def _run(
    runs: list[_Pass], x: Tensor, images: int, blocked: bool, values: Tensor, bias: Tensor | None, shape: list[int]
) -> Tensor:
    """The results of some passes, in the layout of x; where they have no entries and no bias, zeros."""
    lib, threads = _native(), torch.get_num_threads()
    active = [p for p in runs if p.entries or bias is not None]
    new = torch.empty if len(active) == len(runs) else torch.zeros
    at_bias = None if bias is None else bias.data_ptr()
    ordered = [torch.empty(one.entries) for one in active]

    def run(first: int, count: int, y: Tensor, y_blocked: bool) -> None:
        source = x.data_ptr() + first * x.shape[1:].numel() * x.element_size()  # of a blocked x, all at once
        for one, room in zip(active, ordered, strict=True):
            places = (values.data_ptr(), room.data_ptr(), at_bias, y.data_ptr())
            lib.conv_run(ctypes.addressof(one), source, count, blocked, *places, y_blocked, threads)

    if blocked:
        y = new(-(-images // LANES), *shape, LANES)
        run(0, images, y, True)
    elif all(lib.conv_plain(ctypes.addressof(p)) for p in active):
        y = new(images, *shape)
        run(0, images, y, False)
    else:  # in pieces smaller than a cache line: blocked first, some images at a time, that they stay in the cache
        y, some = torch.empty(images, *shape), LANES * threads
        staged = new(threads, *shape, LANES)
        for first in range(0, images, some):
            count = min(some, images - first)
            run(first, count, staged, True)
            lib.conv_unblock(staged.data_ptr(), count, y[0].numel(), y[first].data_ptr(), threads)
    return y


def conv_forward(x: Tensor, values: Tensor, pattern: ConvPattern, bias: Tensor | None = None) -> Tensor:
    """y (N, outputs, H', W') of x (N, inputs, H, W); or blocked (N / 16, C, H, W, 16), in and out.

    The lanes of a blocked tensor beyond the batch are images like others: bias reaches them.
    """
    x, images, blocked = _checked(x, pattern.inputs, "x")
    values = _checked_values(values, pattern)
    if bias is not None:
        if bias.dtype != torch.float32 or bias.shape != (pattern.outputs,):
            raise ValueError(f"bias: {bias.dtype} {tuple(bias.shape)}, expected float32 ({pattern.outputs},)")
        bias = bias.contiguous()
    one = pattern.run(*x.shape[2:4])
    return _run([one], x, images, blocked, values, bias, [pattern.outputs, one.rows, one.cols])


def conv_input_grad(grad: Tensor, values: Tensor, pattern: ConvPattern, size: tuple[int, int]) -> Tensor:
    """The gradient of an input of that height and width, from the output gradient; both plain or both blocked."""
    grad, images, blocked = _checked(grad, pattern.outputs, "grad")
    values = _checked_values(values, pattern)
    if tuple(grad.shape[2:4]) != pattern.output_size(*size):
        raise ValueError(f"grad: size {tuple(grad.shape[2:4])}, expected {pattern.output_size(*size)} for {size}")
    runs = pattern.input_grad_runs(*size)
    return _run(runs, grad, images, blocked, values, None, [pattern.inputs, *size])


def conv_weight_grad(x: Tensor, grad: Tensor, pattern: ConvPattern) -> Tensor:
    """The gradient of the values from input and output gradient, both plain or both blocked."""
    x, images, blocked = _checked(x, pattern.inputs, "x")
    grad, others, grad_blocked = _checked(grad, pattern.outputs, "grad")
    one = pattern.run(*x.shape[2:4])
    if (images, blocked, one.rows, one.cols) != (others, grad_blocked, *grad.shape[2:4]):
        raise ValueError(f"grad: shape {tuple(grad.shape)} does not belong to x of shape {tuple(x.shape)}")
    threads = torch.get_num_threads()
    sums, found = torch.empty(threads * (one.entries + LANES)), torch.empty(one.entries)
    places = (grad.data_ptr(), sums.data_ptr(), found.data_ptr())
    _native().conv_grad(ctypes.addressof(one), x.data_ptr(), images, blocked, *places, threads)
    return found


class SparseConv2d(torch.autograd.Function):
    """x (N, inputs, H, W), the stored values, bias (outputs,) or None -> (N, outputs, H', W'); blocked likewise.

    The dense weight gradient of a plan without `grad` takes plain x only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None, plan: Plan[ConvPattern]) -> Tensor:  # type: ignore[override]
        x, values = x.contiguous(), plan.values(stored)
        ctx.save_for_backward(x, values)
        ctx.plan = plan
        return conv_forward(x, values, plan.forward, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        first_order()
        x, values = ctx.saved_tensors
        plan, pattern, grad = ctx.plan, ctx.plan.forward, grad.contiguous()
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = conv_input_grad(grad, values, pattern, x.shape[2:4])
        if ctx.needs_input_grad[1]:
            if plan.grad is None:
                shape = (pattern.outputs, pattern.inputs, *pattern.kernel)
                dw = plan.select(conv2d_weight(x, shape, grad, pattern.stride, pattern.padding))
            else:
                dw = plan.spread(conv_weight_grad(x, grad, plan.grad))
        if ctx.needs_input_grad[2]:
            db = grad.sum([d for d in range(grad.dim()) if d != 1])
        return dx, dw, db, None


def to_blocked(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (ceil(N / 16), C, H, W, 16), zero beyond the batch."""
    blocks = -(-x.shape[0] // LANES)
    x = torch.nn.functional.pad(x, [0] * 7 + [blocks * LANES - x.shape[0]])
    return x.reshape(blocks, LANES, *x.shape[1:]).permute(0, 2, 3, 4, 1).contiguous()


def from_blocked(x: Tensor, images: int) -> Tensor:
    """(ceil(N / 16), C, H, W, 16) -> (N, C, H, W)."""
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)[:images].contiguous()
