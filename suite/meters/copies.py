"""Copies of a network to measure on: nothing that a measurement does may be seen in the network itself."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from dstbench.suite.meters.operations import tensors

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
TORCHS = set(vars(nn.Module())) - set(HOOKS)  # attributes that every module has


@contextmanager
def stand_in(
    net: nn.Module,
    device: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    copied: bool = True,
    hooks: bool = True,
) -> Iterator[nn.Module]:
    """What runs in place of the network, with tensors of its own on `device` (None: where they are).

    A copy, for which every tensor of the network is out of reach: RuntimeError where an operation reads one, as a
    function does that holds the network itself. Where `copied` is false it is the network itself, with copies of its
    tensors. Afterwards modules and the containers in them hold what they held before. `weights` are those of parameters
    that are stored in another shape; without `hooks` the copy has none.
    """
    memo = _tensors(net, device, weights or {})
    with _kept(net):
        if copied:
            stand = _copy(net, memo, hooks)
            with OutOfReach(net):
                yield stand
        else:
            for module in list(net.modules()):
                for held in (vars(module), module._parameters, module._buffers):
                    held.update({k: memo[id(v)] for k, v in held.items() if id(v) in memo})
            yield net


def _tensors(net: nn.Module, device: str | None, weights: Mapping[str, Tensor]) -> dict[int, Any]:
    """Copies of tensors and generators by the `id` of the original; Layers are shared, and not used by a copy."""
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
    return memo


def _copy(net: nn.Module, memo: dict[int, Any], hooks: bool) -> nn.Module:
    """A deep copy; what cannot be copied (a lock, an open file, a hook that holds one) is shared."""
    if not hooks:
        memo |= {id(vars(module)[kind]): type(vars(module)[kind])() for module in net.modules() for kind in HOOKS}
    try:
        return copy.deepcopy(net, dict(memo))
    except Exception:  # any class may refuse to be copied, in its own way
        values = [v for m in net.modules() for k, v in vars(m).items() if k not in TORCHS]
        values += [hook for m in net.modules() for kind in HOOKS for hook in vars(m)[kind].values()]
        for value in values:
            if id(value) not in memo:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    memo[id(value)] = value
        return copy.deepcopy(net, memo)


@contextmanager
def _kept(net: nn.Module) -> Iterator[None]:
    """Afterwards modules hold what they held, and so do containers in them; parameters have the gradients they had."""
    seen = set[int]()
    before = [(box, box.copy()) for module in net.modules() for box in _boxes(vars(module), seen)]
    grads = [(parameter, parameter.grad) for parameter in net.parameters()]
    try:
        yield
    finally:
        for box, held in before:
            box.clear()
            box.extend(held) if isinstance(box, list) else box.update(held)
        for parameter, grad in grads:
            parameter.grad = grad


def _boxes(value: Any, seen: set[int]) -> Iterator[Any]:
    """A plain dict, list or set, and those in it, each once."""
    if type(value) in (dict, OrderedDict, defaultdict, list, set) and id(value) not in seen:
        seen.add(id(value))
        yield value
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from _boxes(part, seen)


class OutOfReach(TorchDispatchMode):
    """RuntimeError where an operation reads a parameter or buffer of this network."""

    supports_higher_order_operators = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        held = [t for t in (*net.parameters(), *net.buffers()) if t.layout is torch.strided]
        self.storages = {t.untyped_storage()._cdata for t in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs or {})):
            if tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self.storages:
                raise RuntimeError(f"{func} reads a tensor of the network by a reference that no copy follows")
        return func(*args, **(kwargs or {}))


@contextmanager
def norms_of_one(net: nn.Module) -> Iterator[None]:
    """Batch norm as in evaluation, with statistics for the while where it keeps none: of one sample there are none."""
    lent = []
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if module.running_mean is None and module.running_var is None:
                like = module.weight if module.weight is not None else next(net.parameters(), torch.zeros(()))
                module.running_mean = like.new_zeros(module.num_features)
                module.running_var = like.new_ones(module.num_features)
                lent.append(module)
    try:
        yield
    finally:
        for module in lent:
            module.running_mean = module.running_var = None


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
