"""Export: every value of a network by its name, their hashes, and a file of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dstbench.suite.lasting import content
from dstbench.suite.model import SparseModel


def values(model: SparseModel) -> dict[str, torch.Tensor]:
    """Every parameter (a Layer's dense) and buffer by its name in the state dict."""
    layers = {layer.key: layer for layer in model.layers}
    found = {n: layers[n].weight if n in layers else p.detach() for n, p in model.net.named_parameters()}
    return {**found, **dict(model.net.named_buffers())}


def hashes(model: SparseModel) -> dict[str, str]:
    """sha256 of all weights and buffers (dense values), and of all masks."""
    weights, masks = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(values(model).items()):
        weights.update(name.encode() + content(tensor))
    for layer in sorted(model.layers, key=lambda layer: layer.key):
        for mask in (layer.forward_mask, layer.grad_mask):
            masks.update(layer.key.encode() + (b"all" if mask is None else content(mask)))
    return {"weights": weights.hexdigest(), "masks": masks.hexdigest()}


def save_model(model: SparseModel, path: Path) -> None:
    """Weights (dense, zeros included) and masks as one safetensors file; a mask's name is the weight's plus "#mask"."""
    from safetensors.torch import save_file

    masks = {f"{y.key}#mask": y.forward_mask for y in model.layers if y.forward_mask is not None}
    tensors = {**values(model), **masks}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, str(temporary))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
