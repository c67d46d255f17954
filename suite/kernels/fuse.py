"""Find in a traced network what the kernels compute in one: batch norm with the addition and the ReLU behind it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from suite.kernels.norm import FusedNorm

ADDITIONS = {operator.add, operator.iadd, torch.add}
RELUS = {F.relu, torch.relu, "relu", "relu_"}


class Tracer(fx.Tracer):
    """Sees every call of a module without children."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not any(True for _ in module.children()) or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = len(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # control flow that depends on values: the module stays one call; any error may come of it
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class Fused:
    """Calls the network by a graph with fused parts, traced for each mode, train and eval, when it is first called.

    The graph shares the network's modules. `parts` names what is fused; a network that cannot be traced is called as
    it is.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.calls: dict[bool, Callable[..., Any]] = {}
        self.parts: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = self.net.training
        if mode not in self.calls:
            self.calls[mode], self.parts = _trace(self.net)
        return self.calls[mode](*args, **kwargs)


def _trace(net: nn.Module) -> tuple[Callable[..., Any], list[str]]:
    try:
        graph = Tracer().trace(net)
    except Exception:  # as above, in the network's own forward
        return net, []
    traced = fx.GraphModule(net, graph)
    names = []
    for node in list(graph.nodes):
        if type(_module(traced, node)) is nn.Identity:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)
    for node in list(graph.nodes):
        norm = _module(traced, node)
        if type(norm) is nn.BatchNorm2d and len(node.args) == 1:
            names.append(_fuse(traced, node, norm))
    traced.recompile()
    return (traced, names) if names else (net, names)


def _fuse(traced: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d) -> str:
    """Put one call in the place of a batch norm and what alone reads its result: an addition, a ReLU."""
    chain, inputs = [node], [node.args[0]]
    addition = _only_user(node)
    if addition is not None and addition.target in ADDITIONS and not addition.kwargs:
        others = [a for a in addition.args if a is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node):
            chain, inputs = [*chain, addition], [*inputs, others[0]]
    act = _only_user(chain[-1])
    relu = act is not None and (type(_module(traced, act)) is nn.ReLU or act.target in RELUS)
    if act is not None and relu:
        chain.append(act)
    name = f"fused_{node.target}".replace(".", "_")
    traced.add_submodule(name, FusedNorm(norm, relu))
    with traced.graph.inserting_after(chain[-1]):
        new = traced.graph.call_module(name, tuple(inputs))
    chain[-1].replace_all_uses_with(new)
    for done in reversed(chain):
        traced.graph.erase_node(done)
    return f"{node.target}{' + addition' if len(inputs) > 1 else ''}{' + ReLU' if relu else ''}"


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What a node calls, if that is a module."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
