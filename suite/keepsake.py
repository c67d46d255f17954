"""Keepsake: what a run keeps of its network: every value, their hashes, a file of the model, and a second count."""

from __future__ import annotations

import contextlib
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dstbench.suite.lasting import content
from dstbench.suite.meters.crosscheck import counted, ptflops_macs
from dstbench.suite.meters.flops import measure
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task


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


def crosscheck(task: Task) -> dict[str, Any]:
    """Our dense forward count, FLOPs per sample, beside FlopCounterMode's and ptflops'; None where one failed."""
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


@cache
def suite_hash() -> str:
    """sha256 of this suite's own source: what it trains with, beside the method's and the task's."""
    found, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()
