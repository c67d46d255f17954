"""Second opinions on the FLOPs of a dense forward pass: torch's FlopCounterMode, and ptflops, which shares no code."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


def counted(net: nn.Module, example: Any) -> int:
    """FLOPs of a forward pass of one sample by torch's FlopCounterMode on the `meta` device, in evaluation mode."""
    one = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach().to("meta"), example)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(net).to("meta").eval()(one)
    return counter.get_total_flops()


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
