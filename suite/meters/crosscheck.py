"""Second opinions on the FLOPs of a dense forward pass, by counters that share no code with ours: shapes, ptflops."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dstbench.suite.meters.copies import norms_of_one, stand_in, undisturbed
from dstbench.suite.meters.flops import measure
from dstbench.suite.task import Task

# What one pass costs is the products alone (one multiply-add is 2 FLOPs); ptflops would add these.
ELEMENTWISE = (
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.GELU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


Product = Callable[[Tensor, tuple[Any, ...]], float]  # (result, arguments) -> multiply-adds


def _attended(out: Tensor, args: tuple[Any, ...]) -> int:
    """Scores and their sums of values: (.., queries, size), (.., keys, size), (.., keys, size)."""
    queries, keys, values = args[:3]
    return queries.shape[:-1].numel() * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])


def _multi_head(out: Tensor, args: tuple[Any, ...]) -> int:
    """Of F.multi_head_attention_forward: (tokens, batch, size), or without the batch."""
    queries, keys, values = (t if t.dim() == 3 else t[:, None] for t in args[:3])
    size = queries.shape[-1]
    return (2 * queries.numel() + keys.numel() + values.numel()) * size + 2 * queries.numel() * len(keys)


def _recurrent(out: Any, args: tuple[Any, ...]) -> int:
    matrices = [t for given in args if isinstance(given, list) for t in given if t.dim() == 2]
    return args[0].shape[:-1].numel() * sum(t.numel() for t in matrices)


def _einsum(out: Tensor, args: tuple[Any, ...]) -> int:
    """A product of two; of more, or with dots, nothing is said."""
    operands = args[1:] if isinstance(args[1], Tensor) else tuple(args[1])
    terms = args[0].replace(" ", "").partition("->")[0].split(",")
    if len(operands) != 2 or "." in args[0]:
        return 0
    sizes = {k: n for term, t in zip(terms, operands, strict=True) for k, n in zip(term, t.shape, strict=True)}
    return prod(sizes.values())


def _along_last(out: Tensor, args: tuple[Any, ...]) -> int:
    return out.numel() * args[0].shape[-1]


# By the name of the function; arguments that are passed by name come behind the others.
PRODUCTS: dict[str, Product] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "__matmul__"), _along_last),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), lambda out, args: out.numel() * args[1].shape[-1]),
    "__rmatmul__": lambda out, args: out.numel() * args[1].shape[-1],
    "tensordot": lambda out, args: (out.numel() * args[0].numel() * args[1].numel()) ** 0.5,
    "einsum": _einsum,
    "bilinear": lambda out, args: out.numel() * args[2][0].numel(),
    **{f"conv{n}d": lambda out, args: out.numel() * args[1][0].numel() for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": lambda out, args: args[0].numel() * args[1][0].numel() for n in (1, 2, 3)},
    "scaled_dot_product_attention": _attended,
    "multi_head_attention_forward": _multi_head,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **{
        f"{kind}_cell": lambda out, args: args[0].shape[:-1].numel() * (args[2].numel() + args[3].numel())
        for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    },
}


class Shapes(TorchFunctionMode):
    """Counts FLOPs from the shapes of what torch's functions are called with, before torch takes them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if product := PRODUCTS.get(getattr(func, "__name__", "")):
            self.total += 2 * product(out, (*args, *(kwargs or {}).values()))
        return out


def counted(net: nn.Module, example: Any) -> int:
    """FLOPs of a forward pass of one sample by `Shapes`, in evaluation mode, on a copy of the network."""
    for copied in (True, False):
        one = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach().clone(), example)
        with contextlib.suppress(*[Exception] * copied), undisturbed(), torch.no_grad():
            with stand_in(net, copied=copied) as stand, norms_of_one(stand), Shapes() as shapes:
                stand.eval()(one)
            break
    return round(shapes.total)


def ptflops_macs(net: nn.Module, example: Any) -> int | None:
    """Multiply-adds of a forward pass of one sample as ptflops counts them, without norms, activations and pooling.

    `net` is a network that no SparseModel has taken; it stays as it is. None where ptflops fails. ptflops stops at a
    timm `Attention` and loses the projections inside; its own `custom_modules_hooks` mend that.
    """
    from ptflops import get_model_complexity_info
    from timm.layers.attention import Attention

    one = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach(), example)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        macs, _ = get_model_complexity_info(
            copy.deepcopy(net),
            (1,),
            input_constructor=lambda _: one,
            print_per_layer_stat=False,
            as_strings=False,
            ignore_modules=list(ELEMENTWISE),
            custom_modules_hooks={Attention: _attention},
            backend_specific_config={"count_functional": False},
        )
    return None if macs is None else int(macs)


def _attention(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """The projections, which ptflops has counted below the module, and the two products of activations."""
    batch, tokens = inputs[0].shape[:2]
    inside = sum(getattr(child, "__flops__", 0) for child in module.modules() if child is not module)
    module.__flops__ += inside + 2 * batch * tokens * tokens * module.attn_dim


def second_counts(task: Task) -> dict[str, Any]:
    """Our dense forward count, FLOPs per sample, beside that by shapes (`torch`) and ptflops'; None for a failure."""
    found: dict[str, Any] = dict.fromkeys(("forward", "torch", "torch_difference", "ptflops", "difference"))
    with contextlib.suppress(Exception):  # a second opinion that cannot be had costs no run its result
        net, example = task.build(0), task.example()
        found["forward"] = ours = measure(net, example).inference.ahead
        found["torch"] = counted(net, example)
        found["torch_difference"] = found["torch"] / ours - 1
        macs = ptflops_macs(net, example)
        if macs is not None:
            found |= {"ptflops": 2 * macs, "difference": 2 * macs / ours - 1}
    return found
