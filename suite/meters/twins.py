"""Copies of a network to measure on: nothing that a measurement does may be seen in the network itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

TORCHS = set(vars(nn.Module()))  # attributes that every module has


def twin(net: nn.Module, device: str | None = None, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the network, hooks and all, on `device` (None: where it is); on `meta` it holds no numbers.

    `weights` are those of parameters that are stored in another shape. Layers are shared, and not used by the copy;
    what cannot be copied (a lock, an open file) is shared too.
    """
    weights = weights or {}
    memo: dict[int, Any] = {}
    for name, parameter in net.named_parameters():
        value = weights.get(name, parameter).detach().to(device or parameter.device, copy=True)
        memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for buffer in net.buffers():
        memo[id(buffer)] = buffer.detach().to(device or buffer.device, copy=True)
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:  # which torch does not copy
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, torch.Generator):
                memo[id(value)] = value.clone_state()
        for layer in vars(module).get("sparse_layers", {}).values():
            memo[id(layer)] = layer
    try:
        return copy.deepcopy(net, dict(memo))
    except Exception:  # any class may refuse to be copied, in its own way
        for value in [v for m in net.modules() for k, v in vars(m).items() if k not in TORCHS]:
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                memo[id(value)] = value
        return copy.deepcopy(net, memo)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, chance begins anew at 0; afterwards every generator and switch is as it was."""
    state, python, arrays = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it bypasses the count
    torch.default_generator.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_rng_state(state)
        random.setstate(python)
        numpy.random.set_state(arrays)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
