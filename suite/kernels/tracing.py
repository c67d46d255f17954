"""Whether a network always goes the way that a graph of it would hold for good."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from dstbench.suite.meters.copies import HOOKS, stand_in, undisturbed

CONSTANT = "_tensor_constant"  # what a tracer calls a tensor that a forward makes, an attribute of the network


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module calls hooks, which a graph would call once or never."""
    return any(vars(module)[kind] for kind in HOOKS)


class Tracer(fx.Tracer):
    """Sees every call of a module without children or with hooks, and of a batch norm, which counts its calls."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return (
            isinstance(module, _BatchNorm)
            or not any(True for _ in module.children())
            or hooked(module)
            or super().is_leaf_module(module, name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = len(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # control flow that depends on values: the module stays one call; any error may come of it
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class Operations(TorchDispatchMode):
    """Notes what is dispatched, with the shapes of tensors.

    Views are left out, which a tracer makes once where they are of buffers; in place or not is the same to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not getattr(func, "is_view", False):
            shapes = [t.shape for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.seen.append((str(func).partition(".default")[0].replace("_.", "."), shapes))
        return func(*args, **(kwargs or {}))


def same_way(net: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a graph of the network, traced on a copy, does with this input what the network does, and always will.

    A forward that draws random numbers or leaves something behind in a module may go another way the next time. One
    that looks at its input, which a tracer does not have, goes another way at once.
    """
    stored = [layer for m in net.modules() for layer in vars(m).get("sparse_layers", {}).values()]
    with _disable_current_modes(), undisturbed(), torch.no_grad():
        weights = {layer.key: layer.weight for layer in stored}
        given = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        with stand_in(net, "meta", weights, hooks=False) as copied:
            before = _state(copied)
            graph = Tracer().trace(copied)
            if _state(copied) != before:
                return False
            with suppress(Exception):  # a network that needs numbers
                return _operations(fx.GraphModule(copied, graph), *given) == _operations(copied, *given)
        with stand_in(net, None, weights, hooks=False) as copied:
            graph = Tracer().trace(copied)
            return _operations(fx.GraphModule(copied, graph), args, kwargs) == _operations(copied, args, kwargs)


def _operations(call: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
    with Operations() as operations, undisturbed():
        call(*args, **kwargs)
    return operations.seen


def _state(net: nn.Module) -> list[Any]:
    """What a forward may leave behind: generators of random numbers, attributes of modules, what containers hold."""
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), repr(numpy.random.get_state())]
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if key.startswith(CONSTANT):
                continue
            inside = [id(part) for part in value] if isinstance(value, list) else None
            found.append((name, key, id(value), inside, len(value) if isinstance(value, dict | set) else None))
    return found
