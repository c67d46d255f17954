"""Attention heads and hidden neurons of a transformer: which Layers hold them, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dstbench.suite.layer import layer_name

# Of a module with `num_heads`: the weights of queries, keys and values, together or apart, and of the output.
ATTENTION = (
    (("in_proj_weight",), "out_proj.weight"),
    (("q_proj_weight", "k_proj_weight", "v_proj_weight"), "out_proj.weight"),
    (("qkv.weight",), "proj.weight"),
    (("q.weight", "k.weight", "v.weight"), "proj.weight"),
    (("q_proj.weight", "k_proj.weight", "v_proj.weight"), "out_proj.weight"),
)
HIDDEN = (("fc1.weight", "fc2.weight"), ("linear1.weight", "linear2.weight"))


@dataclass(frozen=True)
class Units:
    """Units of a part of the network, heads or neurons, and the names of its Layers.

    Unit u of `number` has rows of each of `inputs`: with `repeats` r those are r * number equal parts, and the unit's
    are the u-th, (number + u)-th and so on; of `output` it has the u-th of `number` equal parts of the columns.
    """

    inputs: tuple[str, ...]
    output: str
    number: int
    repeats: int = 1

    def axes(self, name: str, shape: torch.Size) -> tuple[int, int, int]:
        """The shape of one of the Layers with the units as the middle axis, rows or columns split."""
        if name == self.output:
            return shape[0], self.number, shape[1] // self.number
        return self.repeats, self.number, shape.numel() // self.repeats // self.number


def attention(net: nn.Module) -> list[Units]:
    """Every self-attention of the network whose heads are apart and laid out as in torch or timm's ViT, in order."""
    found = []
    for path, module in net.named_modules():
        heads = getattr(module, "num_heads", None)
        mixed = hasattr(module, "proj_l") or getattr(module, "head_first", False)  # talking heads; heads outermost
        if isinstance(heads, int) and not mixed:
            for inputs, output in ATTENTION:
                if units := _units(path, module, inputs, output, heads):
                    found.append(units)
    return found


def hidden(net: nn.Module) -> list[Units]:
    """Every pair of linear layers with neurons between them, as in the blocks of torch's and timm's transformers."""
    found = []
    for path, module in net.named_modules():
        for first, second in HIDDEN:
            size = _size(module, first)
            if size and (units := _units(path, module, (first,), second, size[0])):
                found.append(units)
    return found


def heads(net: nn.Module) -> dict[str, Units]:
    """The attention of each Layer that belongs to one, by the Layer's name."""
    return {name: units for units in attention(net) for name in (*units.inputs, units.output)}


def _units(path: str, module: nn.Module, inputs: tuple[str, ...], output: str, number: int) -> Units | None:
    """The units, if the module has these weights and they divide."""
    sizes, out = [_size(module, name) for name in inputs], _size(module, output)
    if out is None or not number or out[1] % number:
        return None
    repeats = 3 if len(inputs) == 1 and inputs[0].startswith(("qkv", "in_proj")) else 1
    if any(size is None or size[0] != repeats * out[1] for size in sizes):
        return None
    prefix = f"{path}." if path else ""
    return Units(tuple(layer_name(prefix + name) for name in inputs), layer_name(prefix + output), number, repeats)


def _size(module: nn.Module, name: str) -> tuple[int, ...] | None:
    path, _, attribute = name.rpartition(".")
    owner = dict(module.named_children()).get(path) if path else module
    if owner is None or owner._parameters.get(attribute) is None:
        return None
    held = owner.__dict__.get("sparse_layers", {}).get(attribute, owner._parameters[attribute])  # stored as it may be
    return tuple(held.shape) if len(held.shape) == 2 else None
