"""Channels that can be removed from a network: every cut is tried on a copy before it is made."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dstbench.methods.coupling import Group, coupled, cuts
from dstbench.suite.resize import cut


def removable(
    net: nn.Module, example: Any, free: Collection[str], whole: Collection[str] = ()
) -> tuple[list[Group], list[str]]:
    """The groups of channels that can be removed from a network, and why others cannot.

    A group counts if parameters make and read it, if some are in `free`, and if none in `whole` makes it. Every cut is
    tried on copies of the network, of each group alone where they do not go together, see `fault`.

    Args:
        net: The network; it is not changed.
        example: A batch of inputs.
        free: Names of the parameters that are to shrink.
        whole: Names of the parameters that keep all outputs.

    Returns:
        The groups, and a text for each that cannot go.

    Raises:
        RuntimeError: torch-pruning is not installed.
    """
    # Two samples: batch norm over one does not train.
    example = torch.utils._pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t])[:2], example)
    try:
        found = coupled(net, example, whole)
    except ImportError as error:
        raise RuntimeError("depgraph needs torch-pruning: pip install 'dstbench[structured]'") from error
    except Exception as error:  # tracing runs any code there is
        return [], [f"torch-pruning cannot trace the network ({_short(error)})"]
    found = [
        group
        for group in found
        if group.reads and group.reads < group.sides.keys() and any(side.name in free for side in group.sides)
    ]
    if not found or not fault(net, example, found):
        return found, []
    faults = [fault(net, example, [group], (2,)) for group in found]
    good = [group for group, wrong in zip(found, faults, strict=True) if not wrong]
    held = [f"{group.maker!r}: {wrong}" for group, wrong in zip(found, faults, strict=True) if wrong]
    if good and (wrong := fault(net, example, good)):
        return [], [*held, f"all others together: {wrong}"]
    return good, held


class Straight(TorchFunctionMode):
    """Norms over channels act on each channel apart: a tanh, then scale and shift."""

    NORMS = ("layer_norm", "group_norm", "rms_norm")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in self.NORMS:
            return func(*args, **kwargs)
        x, _, *given = args
        weight, bias = (given.pop(0) if given else kwargs.get(name) for name in ("weight", "bias"))
        shape = (-1, *[1] * (x.dim() - 2)) if func.__name__ == "group_norm" else (-1,)
        x = x.tanh() if weight is None else x.tanh() * weight.view(shape)
        return x + bias.view(shape) if isinstance(bias, Tensor) else x


@torch.no_grad()
def fault(net: nn.Module, example: Any, groups: Sequence[Group], parts: Sequence[int] = (2, 10**9)) -> str:
    """What goes wrong if of each group one of so many `parts` is kept, one channel at least; or nothing.

    A copy with random values, cut, must run in training and in evaluation, and compute what a whole copy does in which
    the weights that read the removed channels are zero. For this comparison norms over channels act on each channel
    apart: theirs are over fewer channels after a cut.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = scrambled(net)
        for part in parts:
            keeps = [torch.randperm(g.channels)[: -(-g.channels // part)] for g in groups]
            small, masked = copy.deepcopy(net), copy.deepcopy(net)
            try:
                for side, kept in cuts(groups, keeps).items():
                    cut(small, *side, kept.nonzero().flatten())
                    if any(side in group.reads for group in groups):
                        masked.get_parameter(side.name).transpose(0, side.dim)[~kept] = 0
                with Straight():
                    apart = _apart(small.eval()(example), masked.eval()(example))
                small.train()(example)
            except Exception as error:  # the network's own code, on shapes that it may not know
                return f"the network does not run without some of these channels ({_short(error)})"
            if apart:
                return "what reads these channels is not weights alone"
    return ""


def scrambled(net: nn.Module) -> nn.Module:
    """A copy with random parameters and statistics, so that nothing is hidden by zeros and ones."""
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        if parameter.dim() > 1 and parameter[0].numel() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.uniform_(0.5, 1.5)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return net


def _apart(a: Any, b: Any) -> bool:
    """Whether outputs differ by more than rounding."""
    pairs = zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True)
    tensors = [(x, y) for x, y in pairs if isinstance(x, Tensor)]
    return not all(
        x.shape == y.shape and bool((x - y).abs().max() <= 1e-3 * y.abs().max()) for x, y in tensors if y.numel()
    )


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 160 else f"{text[:159]}…"
