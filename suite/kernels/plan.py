"""Plan: the support of one Layer as products need it, and where its entries lie among the stored values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dstbench.suite.layer import Layer, Mask, Reduction


class Pattern(Protocol):
    """The positions of a bool mask, in row-major order, arranged for the products of one kind of layer."""

    @property
    def bytes(self) -> int: ...


P = TypeVar("P", bound=Pattern)


@dataclass
class Plan(Generic[P]):
    """What the products of a Layer need while its masks stay: patterns of the weights read and the gradient computed.

    `grad` is None where the weight gradient is computed dense. `places` and `grad_places` are the places of their
    entries among `size` stored values, None where they are all of them. `take` is called with each dense gradient.
    """

    forward: P
    grad: P | None
    size: int
    places: Tensor | None = None
    grad_places: Tensor | None = None
    forward_mask: Mask = None
    grad_mask: Mask = None
    stored: Mask = None
    take: Reduction | None = None

    @property
    def bytes(self) -> int:
        """Bytes of patterns and places, each counted once; masks are the Layer's."""
        patterns = {id(p): p for p in (self.forward, self.grad) if p is not None}
        places = {id(t): t for t in (self.places, self.grad_places) if t is not None}
        return sum(p.bytes for p in patterns.values()) + sum(t.numel() * t.element_size() for t in places.values())

    def values(self, stored: Tensor) -> Tensor:
        """The values that a pass reads, of those stored."""
        return stored if self.places is None else stored.index_select(0, self.places)

    def spread(self, grad: Tensor) -> Tensor:
        """The gradient of the entries of `grad` as stored, zero elsewhere."""
        if self.grad_places is None:
            return grad
        return grad.new_zeros(self.size).index_add_(0, self.grad_places, grad)

    def select(self, dense: Tensor) -> Tensor:
        """A dense gradient as stored, zero outside the grad_mask."""
        assert self.forward_mask is not None
        dense = dense.view(self.forward_mask.shape)
        if self.take is not None:
            self.take(dense)
        if self.grad_mask is not None:
            dense = torch.where(self.grad_mask, dense, 0.0)
        return dense.reshape(-1) if self.stored is None else dense[self.stored]


def make(layer: Layer, pattern: Callable[[Tensor], P], dense_from: float, known: P | None = None) -> Plan[P]:
    """The plan of the layer's present masks; from that share of computed entries on, the weight gradient is dense.

    known: the pattern of its forward_mask, where there is one already.
    """
    read, wanted, stored = layer.forward_mask, layer.grad_mask, layer.stored
    assert read is not None, "a layer that reads all its weights needs no plan"
    forward, places = known or pattern(read), _places(read, stored)
    grad, grad_places = None, None
    if wanted is not None and layer.nnz("grad") <= dense_from * layer.numel:
        alike = wanted is read or torch.equal(wanted, read)
        grad, grad_places = (forward, places) if alike else (pattern(wanted), _places(wanted, stored))
    take = layer._take if layer.streaming else None
    return Plan(forward, grad, layer.parameter.numel(), places, grad_places, read, wanted, stored, take)


def _places(mask: Tensor, stored: Mask) -> Tensor | None:
    inside = mask.flatten() if stored is None else mask[stored]
    return None if bool(inside.all()) else inside.nonzero().flatten().int()


def suits(*tensors: Tensor) -> bool:
    """Whether own operations take these: float32 on the CPU, under no mode that counts FLOPs or fakes tensors."""
    return _get_current_dispatch_mode() is None and all(
        t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors
    )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers lie, for a call of the C++ kernels; None for none."""
    return None if tensor is None else tensor.data_ptr()


def first_order() -> None:
    """Refuse a backward pass whose result is to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the sparse kernel has no second derivative (a backward pass was called with create_graph=True): "
            "run this method under kernel masked or compact"
        )
