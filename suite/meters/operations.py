"""Operations: what one costs in FLOPs, and which ones nobody has a formula for.

One multiply-add of a product is 2 FLOPs. Norms, activations, pooling, gathering and all else that goes element by
element cost none, by convention. Formulas are torch's own (`torch.utils.flop_counter`), and those here for products
that it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Formula = Callable[..., int]


def _trilinear(a: Tensor, b: Tensor, c: Tensor, *places: Any, **more: Any) -> int:
    """Of nn.Bilinear and its gradients: a sum of products over the whole volume that the three span."""
    dims = a.dim() + len(places[0])
    sizes = [1] * dims
    for tensor, expanded in zip((a, b, c), places[:3], strict=True):
        shape = iter(tensor.shape)
        sizes = [size if i in expanded else max(size, next(shape)) for i, size in enumerate(sizes)]
    return 2 * prod(sizes)


def _recurrent(x: Tensor, *args: Any, **more: Any) -> int:
    """Of a recurrent layer in one call: each step of each sequence reads every matrix once."""
    matrices = [t for t in tree_leaves(args[:4]) if isinstance(t, Tensor) and t.dim() == 2 and t is not x]
    return 2 * x.shape[:-1].numel() * sum(t.numel() for t in matrices)


def _grouped(a: Tensor, b: Tensor, *rest: Any, **more: Any) -> int:
    """Each row of `a` by the matrix of its group."""
    return 2 * a.numel() * b.shape[-1]


OURS: dict[Any, Formula] = {
    aten.mv: lambda matrix, vector, **_: 2 * matrix.numel(),
    aten.addmv: lambda bias, matrix, vector, **_: 2 * matrix.numel(),
    aten.dot: lambda a, b, **_: 2 * a.numel(),
    aten.vdot: lambda a, b, **_: 2 * a.numel(),
    aten.addbmm: lambda bias, a, b, **_: 2 * a.numel() * b.shape[-1],
    aten._int_mm: lambda a, b, **_: 2 * a.numel() * b.shape[-1],
    aten._addmm_activation: lambda bias, a, b, **_: 2 * a.numel() * b.shape[-1],
    aten._trilinear: _trilinear,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: lambda *args, **more: 2 * _recurrent(*args),
    aten._cudnn_rnn: _recurrent,
    aten._cudnn_rnn_backward: lambda *args, **more: 2 * _recurrent(*args),
}
if hasattr(aten, "_grouped_mm"):
    OURS[aten._grouped_mm] = _grouped
# The place of the matrix among the arguments, where it is not the last tensor.
MATRIX = {aten.mv: 0, aten.addmv: 1, aten._trilinear: 1}

COSTLY = re.compile(
    r"_?(linalg|fft|cholesky|lu|svd|qr|geqrf|orgqr|ormqr|triangular|inverse|matrix_exp|cdist|pdist)(_.*)?"
)
FREE = re.compile(
    r"(?!.*(convolution|attention|foreach_mm))("
    r"_?(native_|batch_|layer_|group_|fused_|weight_|cudnn_|miopen_|quantized_)?(batch|layer|group|rms|weight)_?norm.*"
    r"|_native_.*norm.*|native_norm|_?linalg_(cross|vector_norm|check_errors)|lu_unpack"
    r"|cat|stack|copy|clone|addr|rsub|fill|normal|bernoulli|binomial|equal|allclose|roll|pad|polar|complex|dist|isin"
    r"|bucketize|searchsorted|bincount|_?histogram.*|linspace|logspace|heaviside|copysign|floor_divide|gcd|lcm|__i.shift_"
    r"|_?(index|masked|scatter|gather|slice|select|diagonal|as_strided|embedding|unsafe|put|take|resize_as).*"
    r"|.*(pool[123]d|softmax|dropout|_loss|elu|relu|swish|sigmoid|tanh|shrink|glu|mish|silu|prelu_kernel|softplus).*"
    r"|(reflection|replication)_pad.*|binary_cross_entropy.*|_?fake_quantize.*|_fused_moving_avg.*|quantize_per.*"
    r"|_?(upsample|(cudnn_)?grid_sampler|foreach|fused_(adam|sgd|adagrad)|thnn_fused|segment_reduce|cum|logcumsum).*"
    r"|_(amp|philox|standard_gamma|dirichlet|transform_bias_rescale|nested|pack_padded|jagged|padded|convert|validate).*)"
)
TAGS = {torch.Tag.pointwise, torch.Tag.reduction}


def packet(func: Any) -> Any:
    """What formulas are kept under: an operation without its overload."""
    return getattr(func, "_overloadpacket", func)


def formula(func: Any) -> Formula | None:
    """The FLOPs of an operation as a function of its arguments and `out_val`, or None."""
    for known in (packet(func), _not_in_place(packet(func))):
        found: Formula | None = flop_registry.get(known) or OURS.get(known)
        if found is not None:
            return found
    return None


@cache
def _not_in_place(operation: Any) -> Any:
    """The operation that a change in place, such as addmm_, has the formula of."""
    name = str(operation).removeprefix("aten.")
    return getattr(aten, name.rstrip("_"), None) if name.endswith("_") and not name.endswith("__") else None


@cache
def _known(func: Any) -> tuple[str, int | None]:
    """The name of an operation, and from how many tensors on it may be a product; None: never."""
    if not hasattr(func, "_schema"):  # an operation of higher order
        return str(func), 1
    space, _, name = func._schema.name.rpartition("::")
    if space not in ("aten", "prim", "prims"):
        return f"{space}::{name}", None if "c10d" in space else 1
    if TAGS & set(func.tags) or func.is_view or FREE.fullmatch(name.rstrip("_")):
        return name, None
    return name, 1 if COSTLY.fullmatch(name) else 2


def uncounted(func: Any, args: Any, kwargs: Any) -> str:
    """The name of an operation without a formula that may be a product; "" for one that costs nothing.

    That is what takes two tensors and goes neither element by element nor is known as free, a decomposition or
    transform of a matrix, and whatever is not torch's own.
    """
    name, least = _known(func)
    if least is None:
        return ""
    numbers = [t for t in tensors((args, kwargs)) if t.numel() > 1 and (t.is_floating_point() or t.is_complex())]
    return name if len(numbers) >= least else ""


def tensors(given: Any) -> Iterator[Tensor]:
    """Those among the arguments of an operation, which come bare and in lists: faster than a walk through any tree."""
    for value in given.values() if isinstance(given, dict) else given:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from tensors(value)
