"""Slices of a network's tensors removed, and the modules' own record of their shapes kept true."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def owners(net: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every module that holds the parameter or buffer `name`, which several may share, and its name there.

    KeyError for an unknown name.
    """
    path, _, attribute = name.rpartition(".")
    module = net.get_submodule(path)
    if attribute in module._buffers:
        return [(module, attribute)]
    if (tensor := module._parameters.get(attribute)) is None:
        raise KeyError(f"no parameter or buffer {name!r} to shrink")
    return [(m, a) for m in net.modules() for a, p in m._parameters.items() if p is tensor]


@torch.no_grad()
def cut(net: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    """Keep the slices `keep` of dimension `dim` of a plain network's parameter or buffer."""
    for module, attribute in owners(net, name):
        if attribute in module._buffers:
            module._buffers[attribute] = module._buffers[attribute].index_select(dim, keep)  # type: ignore[union-attr]
        elif (parameter := module._parameters[attribute]).shape[dim] != len(keep):  # type: ignore[union-attr]
            parameter.data = parameter.data.index_select(dim, keep)  # type: ignore[union-attr]
        resize(module, attribute, dim, len(keep))


def resize(module: Any, attribute: str, dim: int, size: int) -> None:
    """Tell a module that dimension `dim` of its parameter or buffer `attribute` is now `size` long."""
    if isinstance(module, nn.Linear) and attribute == "weight":
        setattr(module, ("out_features", "in_features")[dim], size)
    elif isinstance(module, nn.modules.conv._ConvNd) and attribute == "weight" and dim < 2:
        if dim == 0 and 1 < module.groups == module.in_channels == module.out_channels:
            module.groups = module.in_channels = module.out_channels = size
        else:
            made = ("out_channels", "in_channels")[dim != module.transposed]
            setattr(module, made, size * (module.groups if dim else 1))
    elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
        module.num_features = size
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = size
    elif isinstance(module, nn.PReLU):
        module.num_parameters = size
    elif isinstance(module, nn.Embedding):
        setattr(module, ("num_embeddings", "embedding_dim")[dim], size)
    elif isinstance(getattr(module, "normalized_shape", None), tuple) and len(module.normalized_shape) == 1:
        module.normalized_shape = (size,)  # LayerNorm and RMSNorm, torch's and timm's
