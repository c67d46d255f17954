"""FlopMeter: counts what a pass dispatches, and books it under the parameters that it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dstbench.suite.meters.operations import MATRIX, formula, packet, tensors, uncounted

COPIES = (torch.ops.aten._to_copy, torch.ops.aten.clone)  # of a weight, which is then read as it is


class FlopMeter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside it and books each operation under the parameter whose storage it reads.

    A product of two parameters is booked under that of `layers`, else under the matrix. `read[name]`: FLOPs of the
    operations that read the parameter; `weights[name]`: FLOPs of weight gradients that came fused with an input
    gradient in one operation; both are part of `total`. `trained[name]`: the part of `read` that a gradient may go
    through. `rest[module]`: FLOPs of products without a parameter, by the module on top of `inside`. `touched`: the
    parameters that went into anything else than products. `uncounted`: calls of operations without a formula, by name.
    """

    supports_higher_order_operators = True

    def __init__(self, owners: Mapping[str, Tensor] | None = None, layers: Collection[str] = ()) -> None:
        super().__init__()
        # A bias rides along in addmm, but it is the matrix that the product reads.
        self.owners = {p.untyped_storage()._cdata: name for name, p in (owners or {}).items() if p.dim() > 1}
        self.layers = layers
        self.read: Counter[str] = Counter()
        self.weights: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.rest: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.touched: set[str] = set()
        self.inside = [""]
        self.total = 0
        self._copies: list[Tensor] = []  # alive, so that no other tensor gets their storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        cost = formula(func)
        if cost is None:
            if func is not torch.ops.prim.device.default and hasattr(func, "decompose"):
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            out = func(*args, **kwargs)
            self._look(func, args, kwargs, out)
            return out
        out = func(*args, **kwargs)
        self._book(func, args, int(cost(*args, **kwargs, out_val=out)))
        return out

    def _book(self, func: Any, args: Any, flops: int) -> None:
        self.total += flops
        matrix = MATRIX.get(packet(func), -1)
        given = [*args, args[matrix]] if matrix >= 0 else args
        found = [(t, name) for t in given if isinstance(t, Tensor) and (name := self._owner(t))]
        if not found:
            self.rest[self.inside[-1]] += flops
            return
        tensor, owner = ([f for f in found if f[1] in self.layers] or found)[-1]
        for_inputs, for_weights = _split(func, args, flops)
        self.read[owner] += for_inputs
        self.weights[owner] += for_weights
        if tensor.requires_grad and torch.is_grad_enabled():
            self.trained[owner] += for_inputs

    def _look(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """At an operation without a formula."""
        if name := uncounted(func, args, kwargs):
            self.uncounted[name] += 1
        if not self.owners or getattr(func, "is_view", False):
            return
        for tensor in tensors((args, kwargs)):
            if owner := self._owner(tensor):
                if packet(func) in COPIES:
                    self.owners[out.untyped_storage()._cdata] = owner
                    self._copies.append(out)
                else:
                    self.touched.add(owner)

    def _owner(self, tensor: Tensor) -> str | None:
        return self.owners.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None


def _split(func: Any, args: Any, flops: int) -> tuple[int, int]:
    """FLOPs of an operation that reads a weight: the product with it, and its gradient where both are one call."""
    if packet(func) is not torch.ops.aten.convolution_backward:
        return flops, 0
    wants_input, wants_weight, _ = args[-1]
    return (0, flops) if not wants_input else (flops // 2, flops - flops // 2) if wants_weight else (flops, 0)
