"""Which parameters of a network may become Layers, which stay dense and why, and how often a module uses its weight."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dstbench.suite.layer import layer_name

WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    _ConvNd: ("weight",),  # of one, two and three dimensions, transposed ones too
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
ADAPTER = re.compile(r"(?:^|\.)(?:[^.]*_)?(?:lora|loha|lokr|vera|adapter)", re.IGNORECASE)  # names of modules
Places = list[tuple[nn.Module, str]]  # where a parameter is: module and attribute


@dataclass
class Found:
    """The parameters that may become Layers, by name, and why each of the other matrices stays dense."""

    layers: dict[str, Places] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's parameters that multiply activations and may become Layers."""
    for kind, attributes in WEIGHTS.items():
        if isinstance(module, kind):
            return tuple(a for a in attributes if module._parameters.get(a) is not None)
    return ()


def uses(module: nn.Module, inputs: Any, output: Any) -> int | None:
    """How often a call of a Linear or a convolution multiplies by each weight; None for any other module."""
    if isinstance(module, nn.Linear):
        return inputs.numel() // max(1, inputs.shape[-1]) if isinstance(inputs, Tensor) else None
    if isinstance(module, _ConvTransposeNd):
        return inputs.numel() // module.in_channels if isinstance(inputs, Tensor) else None
    if isinstance(module, _ConvNd):
        return output.numel() // module.out_channels if isinstance(output, Tensor) else None
    return None


def not_in_backward() -> bool:
    """Whether what runs is a forward pass, and not its recomputation."""
    return int(torch._C._current_graph_task_id()) == -1  # as torch.utils.checkpoint asks


def find(net: nn.Module, patterns: Sequence[str] = ()) -> Found:
    """Sort the parameters of a network; ValueError for a pattern that matches no Linear, convolution or attention.

    What a pattern matches stays dense; one that begins with "!" asks for adapters as Layers.
    """
    places: dict[nn.Parameter, Places] = defaultdict(list)
    reasons: dict[nn.Parameter, str] = {}
    names = {parameter: name for name, parameter in net.named_parameters()}
    matched: dict[str, str] = {}
    for path, module in net.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(f"{path}.{attribute} has no shape yet: run a batch through it in build(seed)")
            places[parameter].append((module, attribute))
            if attribute not in weights_of(module):
                reasons[parameter] = _foreign(path, module, attribute)
            elif _depthwise(module):
                reasons.setdefault(parameter, "a depth-wise convolution")
            elif not parameter.requires_grad:
                reasons.setdefault(parameter, "frozen: it takes no gradient")
            elif _adapts(net, path) and not _asked(patterns, layer_name(names[parameter])):
                name = layer_name(names[parameter])
                reasons.setdefault(parameter, f"an adapter beside frozen weights; the pattern '!{name}' asks for it")
            if attribute in weights_of(module):
                matched.setdefault(layer_name(names[parameter]), names[parameter])
    _check(patterns, matched)
    found = Found()
    for parameter, where in places.items():
        name = names[parameter]
        pattern = next((p for p in patterns if fnmatch(layer_name(name), p)), None)
        if pattern is not None and layer_name(name) in matched:
            found.dense[name] = f"kept dense by the pattern {pattern!r}"
        elif parameter not in reasons:
            found.layers[name] = where
        elif parameter.dim() > 1:
            found.dense[name] = reasons[parameter]
    return found


def _check(patterns: Sequence[str], names: Mapping[str, str]) -> None:
    for pattern in patterns:
        if not any(fnmatch(name, pattern.removeprefix("!")) for name in names):
            near = difflib.get_close_matches(pattern, names, 3) or list(names)[:5]
            raise ValueError(f"dense pattern {pattern!r} matches no layer; did you mean {', '.join(near)}?")


def _foreign(path: str, module: nn.Module, attribute: str) -> str:
    """Why a parameter that is no weight of a Linear, a convolution or an attention stays dense."""
    if ".parametrizations." in f".{path}":
        return "parametrised: the pass reads what is computed from it"
    return f"{attribute} of {type(module).__name__}: a module of its own kind, whose product no mask reaches"


def _adapts(net: nn.Module, path: str) -> bool:
    """Whether a module is part of an adapter by its name, and what the adapter is part of holds frozen matrices."""
    if (named := ADAPTER.search(path)) is None:
        return False
    around = net.get_submodule(path[: named.start()])
    return any(parameter.dim() > 1 and not parameter.requires_grad for parameter in around.parameters())


def _asked(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatch(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels
