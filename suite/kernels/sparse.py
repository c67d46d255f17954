"""True sparse arithmetic on the CPU: products over the weights read alone, by C++ compiled on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dstbench.suite.kernels import build
from dstbench.suite.kernels.base import Activation, Kernel, MaskedRead
from dstbench.suite.kernels.compact import Compact
from dstbench.suite.kernels.conv import ConvPattern, SparseConv2d
from dstbench.suite.kernels.fuse import Fused
from dstbench.suite.kernels.linear import LinearPattern, SparseLinear, by_rows
from dstbench.suite.kernels.plan import Plan, make
from dstbench.suite.kernels.support import gather, scatter
from dstbench.suite.layer import Layer, Mask

LIBRARIES = ("norm", "gelu", "attention")  # of the operations that Fused puts in


def break_even(shape: torch.Size) -> float:
    """The density up to which sparse products of a weight of that shape are taken for faster than dense ones.

    A little below where `benchmarks.kernels` finds them equal, forward and backward, batch 128 (docs/kernels.md).
    """
    if len(shape) > 2:
        return 0.6
    return 0.45 if 2**14 <= shape.numel() <= 2**21 else 0.35  # small: calls cost more than products; large: no cache


class Sparse(Compact):
    """True sparse arithmetic of Linear and Conv2d on the CPU, in C++ compiled on first use; stores as compact does."""

    name = "sparse"
    simulated = False

    def __init__(self) -> None:
        self.where: dict[str, Mask] = {}
        self.plans: dict[str, dict[Any, Plan[Any]]] = {}  # by layer, then by what tells its modules apart
        self.read: dict[str, dict[Any, tuple[Mask, Any]]] = {}  # likewise: masks that passes read, their patterns

    def unsupported(self, module: nn.Module, attribute: str) -> str | None:
        return unsuited(module, attribute) or build.missing("conv" if isinstance(module, nn.Conv2d) else "linear")

    def network(self, net: nn.Module) -> Callable[..., Any]:
        return Fused(net) if all(build.missing(name) is None for name in LIBRARIES) else net

    # ---- storage -------------------------------------------------------------------------------------------------

    def locate(self, layer: Layer, stored: Mask) -> None:
        self.where[layer.name] = stored
        self.plans.pop(layer.name, None)
        if any(mask is not layer.forward_mask for mask, _ in self.read.get(layer.name, {}).values()):
            del self.read[layer.name]

    def weight(self, layer: Layer) -> Tensor:
        where, values = self.where[layer.name], layer.parameter
        dense = values if where is None else values.new_zeros(layer.shape).masked_scatter(where, values)
        return MaskedRead.apply(dense.view(layer.shape), layer.forward_mask, layer.grad_mask, layer.reader())

    def dense(self, layer: Layer, stored: Tensor, kept: Tensor | None = None) -> Tensor:
        where = self.where[layer.name]
        if where is None:
            return stored.view(layer.shape)
        return scatter(where, stored, kept)

    def store(self, layer: Layer, dense: Tensor) -> Tensor:
        where = self.where[layer.name]
        return dense.reshape(-1) if where is None else gather(where, dense.view(layer.shape))

    def index_bytes(self, layer: Layer) -> int:
        where = self.where[layer.name]
        union = 0 if where is None or where is layer.forward_mask or where is layer.grad_mask else where.numel()
        plans = self.plans.get(layer.name, {}).values()
        return Kernel.index_bytes(self, layer) + union + sum(plan.bytes for plan in plans)

    # ---- products ------------------------------------------------------------------------------------------------

    def reads(self, layer: Layer) -> Mask:
        """The weights that a sparse product reads; None where a dense one is taken for faster."""
        return layer.forward_mask if layer.density <= break_even(layer.shape) else None

    def route(self, layer: Layer) -> str:
        mask = self.reads(layer)
        if mask is None:
            return "dense"
        height = LinearPattern(mask).height if len(layer.shape) == 2 else 1
        return "sparse" if height == 1 else f"sparse {height}x1"

    def operation(self, module: nn.Module, layer: Layer, x: Tensor, act: Activation = None) -> Tensor | None:
        # Under a mode that counts FLOPs or fakes tensors, torch's own operations are to be seen.
        if self.reads(layer) is None or _get_current_dispatch_mode() is not None or not x.numel():
            return None
        if x.dtype != torch.float32 and torch.is_autocast_enabled("cpu"):
            x = x.float()
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return None  # torch's own error is the clearest
        if isinstance(module, nn.Conv2d):
            return self._convolve(module, layer, x)
        if x.shape[-1] != layer.shape[1]:
            return None
        if act is None:
            return self.linear(module, layer, x)
        fused = by_rows(x)
        plan = self._plan(layer, LinearPattern)
        return SparseLinear.apply(x if fused else act(x), layer.parameter, module.bias, plan, fused)

    def linear(self, module: nn.Module, layer: Layer, x: Tensor) -> Tensor:
        """The product of a Linear, (.., inputs) -> (.., outputs)."""
        return SparseLinear.apply(x, layer.parameter, module.bias, self._plan(layer, LinearPattern))

    def _convolve(self, module: nn.Conv2d, layer: Layer, x: Tensor) -> Tensor | None:
        batch = x[None] if x.dim() == 3 else x
        if batch.dim() != 4 or batch.shape[1] != layer.shape[1]:
            return None
        if module.padding == (0, 0) and batch.shape[2:] == layer.shape[2:]:  # one result each: a Linear
            y = SparseLinear.apply(batch, layer.parameter, module.bias, self._plan(layer, LinearPattern, "linear"))
        else:
            geometry: Any = module.stride, module.padding
            plan = self._plan(layer, partial(ConvPattern, stride=geometry[0], padding=geometry[1]), geometry)
            y = SparseConv2d.apply(batch, layer.parameter, module.bias, plan)
        return y[0] if x.dim() == 3 else y

    def _plan(self, layer: Layer, pattern: Any, geometry: Any = None) -> Plan[Any]:
        plans = self.plans.setdefault(layer.name, {})
        if geometry not in plans:
            mask, found = self.read.setdefault(layer.name, {}).get(geometry, (None, None))
            known = found if mask is layer.forward_mask else None  # of a pass with another grad_mask
            plans[geometry] = plan = make(layer, pattern, break_even(layer.shape), known)
            self.read[layer.name][geometry] = plan.forward_mask, plan.forward
        layer.reader()  # counts this use; the plan knows where the dense gradient goes
        return plans[geometry]


def unsuited(module: nn.Module, attribute: str) -> str | None:
    """Why there is no sparse product for this weight of this module, or None."""
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"no sparse product for {attribute} of {type(module).__name__}"
    tensors = [p for p in module._parameters.values() if p is not None]
    for what in (f"{p.dtype} on {p.device}" for p in tensors if p.dtype != torch.float32 or p.device.type != "cpu"):
        return f"sparse products are in float32 on the CPU, this layer is {what}"
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return f"no sparse convolution in {module.groups} groups"
        if max(module.dilation) > 1:
            return f"no sparse convolution with dilation {module.dilation}"
        if not set(module.stride) <= {1, 2}:
            return f"no sparse convolution with stride {module.stride}"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return f"no sparse convolution with padding {module.padding!r}, mode {module.padding_mode!r}"
    return None
