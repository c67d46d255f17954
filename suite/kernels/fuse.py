"""Find in a traced network what the kernels compute themselves.

Batch norm with the addition and the ReLU behind it; GELU; attention between queries, keys and values of one tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dstbench.suite.kernels.attention import FusedAttention
from dstbench.suite.kernels.gelu import FusedGelu
from dstbench.suite.kernels.norm import FusedNorm
from dstbench.suite.kernels.tracing import CONSTANT, Tracer, hooked, same_way

ADDITIONS = {operator.add, operator.iadd, torch.add}
UNBINDS = {torch.unbind, "unbind"}
RELUS = {F.relu, torch.relu, "relu", "relu_"}


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
            self.calls[mode], self.parts = _fused(self.net, args, kwargs)
        return self.calls[mode](*args, **kwargs)


def _fused(net: nn.Module, args: Any, kwargs: Any) -> tuple[Callable[..., Any], list[str]]:
    """What to call in place of the network, and its fused parts; args and kwargs: those of its first pass."""
    try:
        if hooked(net) or not same_way(net, args, kwargs):
            return net, []
        traced = fx.GraphModule(net, Tracer().trace(net))
    except Exception:  # as above, in the network's own forward
        return net, []
    finally:
        for name in [name for name in vars(net) if name.startswith(CONSTANT)]:
            delattr(net, name)
    for node in list(traced.graph.nodes):
        if _does_nothing(_module(traced, node)):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            traced.graph.erase_node(node)
    names = []
    for node in list(traced.graph.nodes):
        module = _module(traced, node)
        if type(module) is nn.BatchNorm2d:
            names.append(_fuse_norm(traced, node, module))
        elif _is_gelu(module):
            names.append(_fuse_gelu(traced, node))
        elif (unbind := _unbind(node)) is not None:
            names.append(_fuse_attention(traced, node, unbind))
    traced.recompile()
    return (traced, names) if names else (net, names)


def _does_nothing(module: nn.Module | None) -> bool:
    return type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0)


def _is_gelu(module: nn.Module | None) -> bool:
    """Torch's and timm's, by erf."""
    return type(module).__name__ == "GELU" and getattr(module, "approximate", "none") == "none"


def _fuse_norm(traced: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d) -> str:
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
    _replace(traced, chain, tuple(inputs), FusedNorm(norm, relu))
    return f"{node.target}{' + addition' if len(inputs) > 1 else ''}{' + ReLU' if relu else ''}"


def _fuse_gelu(traced: fx.GraphModule, node: fx.Node) -> str:
    """Put one call in the place of GELU and, if it alone reads the result, a Linear."""
    user = _only_user(node)
    linear = None if user is None else _module(traced, user)
    if user is None or not isinstance(linear, nn.Linear):
        _replace(traced, [node], node.args, FusedGelu(None))
        return str(node.target)
    _replace(traced, [node, user], node.args, FusedGelu(linear))
    return f"{node.target} + {user.target}"


def _unbind(node: fx.Node) -> fx.Node | None:
    """What parts one tensor into queries, keys and values, if the node is a call of attention between those."""
    if node.target is not F.scaled_dot_product_attention or len(node.args) != 3:
        return None
    parts = [a for a in node.args if isinstance(a, fx.Node) and a.target is operator.getitem]
    whole = parts[0].args[0] if parts else None
    if [part.args for part in parts] != [(whole, i) for i in range(3)] or not isinstance(whole, fx.Node):
        return None
    return whole if whole.target in UNBINDS and whole.args[1:] in ((), (0,)) and not whole.kwargs else None


def _fuse_attention(traced: fx.GraphModule, node: fx.Node, unbind: fx.Node) -> str:
    """Let attention read the tensor that holds queries, keys and values."""
    done = [*node.all_input_nodes[:3], unbind]
    _replace(traced, [node], unbind.args[:1], FusedAttention())
    for part in done:
        if not part.users:
            traced.graph.erase_node(part)
    return node.name


def _replace(traced: fx.GraphModule, chain: list[fx.Node], inputs: tuple[Any, ...], module: nn.Module) -> None:
    """Call a module in the place of nodes, each of which alone reads the one before."""
    name = f"fused_{chain[0].name}"
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(chain[-1]):
        new = traced.graph.call_module(name, inputs, chain[0].kwargs)
    chain[-1].replace_all_uses_with(new)
    for done in reversed(chain):
        traced.graph.erase_node(done)


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What a node calls, if that is a module without hooks that is given one argument."""
    single = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    module = traced.get_submodule(str(node.target)) if single else None
    return None if module is None or hooked(module) else module


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
