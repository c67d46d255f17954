"""Swapping: a module's class gives way to one that reads the weight as its Layer declares it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite.kernels.base import Activation
from dstbench.suite.layer import Layer
from dstbench.suite.weights import not_in_backward, uses

PLAIN = (nn.Linear.forward, nn.Conv2d.forward)  # of one input; a subclass may have a forward of its own


def swap(module: nn.Module, attribute: str, layer: Layer) -> None:
    """Let the module read the Layer where it read its parameter."""
    module.__dict__.setdefault("sparse_layers", {})[attribute] = layer
    module.__class__ = _swapped(type(module), attribute)  # type: ignore[arg-type]


@cache
def _swapped(kind: type[nn.Module], attribute: str) -> type[nn.Module]:
    """A subclass of the module's class whose attribute is the weight that the pass reads, not the parameter.

    The forward of a Linear or Conv2d is the kernel's operation, where it has one, of its input or of an
    activation of it (`activates`). Calls count how often the weight is used.
    """

    def own(self: nn.Module) -> Layer | None:
        layer = self.__dict__["sparse_layers"][attribute]
        # Any other tensor was put there by torch.func.functional_call, or this is a copy: it is read as it is.
        return layer if self._parameters[attribute] is layer.parameter else None

    def masked(self: nn.Module) -> Layer | None:
        layer = own(self)
        return None if layer is None or layer.plain else layer

    def read(self: nn.Module) -> Tensor:
        layer = masked(self)
        return self._parameters[attribute] if layer is None else layer.kernel.weight(layer)  # type: ignore[return-value]

    def write(self: nn.Module, value: Tensor) -> None:
        raise AttributeError(f"{attribute} of a Layer is set through Layer.assign")

    def count(self: nn.Module, inputs: Any, out: Any) -> None:
        layer = own(self)
        if layer is not None and not torch.compiler.is_compiling():
            now = uses(self, inputs, out) or 0
            layer.used += now * not_in_backward()
            layer.learned += now * torch.is_grad_enabled()

    def plain(self: nn.Module, input: Tensor, act: Activation = None) -> Tensor:
        layer = masked(self)
        done = None if layer is None else layer.kernel.operation(self, layer, input, act)
        out = kind.forward(self, act(input) if act else input) if done is None else done
        count(self, input, out)
        return out

    def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
        out = kind.forward(self, *args, **named)
        if args:
            count(self, args[0], out)
        return out

    body: dict[str, Any] = {attribute: property(read, write), "__module__": kind.__module__}
    if attribute == "weight":
        body["activates"] = kind.forward in PLAIN
        body["forward"] = plain if kind.forward in PLAIN else forward
    return type(kind.__name__, (kind,), body)
