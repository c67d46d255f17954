"""SparseModel: finds the Layers of any nn.Module, swaps them in place, and says what a pass costs."""

from __future__ import annotations

import difflib
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite import heads, kernels
from dstbench.suite.kernels.base import Activation
from dstbench.suite.layer import Layer, layer_name
from dstbench.suite.meters.flops import Cost, PassCost, measure
from dstbench.suite.resize import owners, resize

WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv2d: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
_living: list[bool] = []  # whether torch's fused attention was enabled, then one entry a living SparseModel


class SparseModel:
    """A network whose Linear, Conv2d and attention weights are Layers; calling it runs the pass their masks declare.

    `example` is one batch of inputs; `dense` are patterns (as in fnmatch) of layer names that no method may sparsify.
    Depth-wise convolutions and weights shared with another kind of module (tied embeddings) stay dense as well. The
    network is changed in place: classes are swapped, parameters keep identity, state-dict keys stay. ValueError for a
    pattern that matches nothing and for a weight that the example pass does not read.
    """

    def __init__(self, net: nn.Module, example: Any, dense: Sequence[str] = (), kernel: str = "masked") -> None:
        self.net = net
        self.kernel = kernels.get(kernel)
        self._call: Callable[..., Any] = self.kernel.network(net)
        self.edits: list[tuple[str, int, list[int]]] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.example = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach().to("meta"), example)
        self._cost: tuple[tuple[int, ...], Cost] | None = None
        self.dense_passes = measure(net, example)
        self.passes: PassCost | None = self.dense_passes
        self.layers: list[Layer] = self._find(dense)
        self._parameters = list(net.parameters())
        self.maskable = sum(layer.numel for layer in self.layers)
        _block_fast_path(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pass that the present masks declare."""
        self.pack()
        return self._call(*args, **kwargs)

    def compile(self) -> None:
        """Run passes through torch.compile; costs of the first passes are the user's to weigh."""
        if not self.kernel.simulated:  # foreign code is called as it is, between compiled parts
            self.kernel.operation = torch.compiler.disable(self.kernel.operation)  # type: ignore[method-assign]
        self._call = torch.compile(self.net)

    @property
    def fused(self) -> list[str]:
        """What the kernel computes in one operation; known after the first pass."""
        return list(getattr(self._call, "parts", ()))

    def __getitem__(self, name: str) -> Layer:
        """The Layer of that name; KeyError suggests near ones."""
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            near = difflib.get_close_matches(name, found, 3) or list(found)[:5]
            raise KeyError(f"no layer {name!r} in this model; did you mean {', '.join(near)}?")
        return found[name]

    # ---- finding and swapping ------------------------------------------------------------------------------------

    def _find(self, dense: Sequence[str]) -> list[Layer]:
        uses: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = defaultdict(list)
        others: set[nn.Parameter] = set()
        for path, module in self.net.named_modules(remove_duplicate=True):
            for attribute, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if attribute in weights_of(module) and not _depthwise(module):
                    uses[parameter].append((f"{path}.{attribute}".lstrip("."), module, attribute))
                else:
                    others.add(parameter)
        candidates = {p: u for p, u in uses.items() if p not in others}
        named = {layer_name(u[0][0]): u for u in candidates.values()}
        for pattern in dense:
            if not any(fnmatch(name, pattern) for name in named):
                near = difflib.get_close_matches(pattern, named, 3) or list(named)[:5]
                raise ValueError(f"dense pattern {pattern!r} matches no layer; did you mean {', '.join(near)}?")
        canonical = {p: n for n, p in self.net.named_parameters()}
        attentions = heads.heads(self.net)
        order = {name: i for i, name in enumerate(self.dense_passes.forward)}
        layers = []
        for parameter, places in candidates.items():
            name = layer_name(places[0][0])
            if any(fnmatch(name, pattern) for pattern in dense):
                continue
            key = canonical[parameter]
            if not self.dense_passes.forward.get(key):
                raise ValueError(
                    f"layer {name!r}: the example pass does not read its weight as it is (unused, or transformed "
                    f"first); give an example that reaches it, or keep it dense with the pattern {name!r}"
                )
            positions = self.dense_passes.forward[key] / (2 * parameter.numel())
            positions = int(positions) if positions.is_integer() else positions
            reasons = [self.kernel.unsupported(module, attribute) for _, module, attribute in places]
            reason = next(filter(None, reasons), None)
            kernel = kernels.get("masked") if reason else self.kernel
            split = attentions[name].axes(name, parameter.shape) if name in attentions else None
            layer = Layer(name, parameter, positions, kernel, key, reason, split)
            for _, module, attribute in places:
                _swap(module, attribute, layer)
            layers.append(layer)
        return sorted(layers, key=lambda layer: order[layer.key])

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: weights of Linear, Conv2d and attention decay, all else does not."""
        weights = {m._parameters[a] for m in self.net.modules() for a in weights_of(m)} - {None}
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.net.parameters():
            parts[parameter not in weights].append(parameter)
        return [g for g in ({"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}) if g["params"]]

    # ---- cost ----------------------------------------------------------------------------------------------------

    def cost(self) -> Cost:
        """FLOPs per sample of the pass that the present masks ask for; RuntimeError if one was edited in place."""
        if self.passes is None:
            self.passes = measure(self.net, self.example, {layer.key: layer.shape for layer in self.layers})
        for layer in self.layers:
            layer.intact()
        now = tuple(layer.revision for layer in self.layers)
        if self._cost is None or self._cost[0] != now:
            self._cost = now, self._count()
        return self._cost[1]

    def _count(self) -> Cost:
        p = self.passes
        assert p is not None
        keys = {layer.key for layer in self.layers}
        dense = sum(f for name, f in p.forward.items() if name not in keys)
        forward, weights, papers = float(p.rest_forward + dense), float(dense), 3.0 * dense
        inputs = float(p.rest_backward + sum(f for name, f in p.inputs.items() if name not in keys))
        for layer in self.layers:
            read, grad = layer.nnz("forward") / layer.numel, layer.nnz("grad") / layer.numel
            forward += p.forward[layer.key] * read
            inputs += p.inputs.get(layer.key, 0) * read
            weights += p.forward[layer.key] * grad
            papers += p.forward[layer.key] * (2 * read + grad)
        return Cost(forward, inputs, weights, papers, any(layer.grad_mask is None for layer in self.layers))

    @property
    def density(self) -> float:
        """The share of the maskable weights, as the network was built, that a pass reads."""
        return sum(layer.nnz("forward") for layer in self.layers) / max(1, self.maskable)

    # ---- storage -------------------------------------------------------------------------------------------------

    def pack(self) -> None:
        """Let the storage of every Layer follow its masks."""
        for layer in self.layers:
            layer.pack()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None
        for layer in self.layers:
            layer.zero_grad()

    def shrink(self, name: str, dim: int, keep: Tensor) -> None:
        """Remove slices of the parameter or buffer `name`: keep the indices `keep` of `dim`; optimiser state follows.

        The edit is logged, so that a checkpoint replays it on a fresh network. Shapes must fit again when `begin`
        returns. KeyError for an unknown name, IndexError for a dimension or an index out of range.
        """
        places = owners(self.net, name)
        module, attribute = places[0]
        tensor = module._parameters.get(attribute)
        keep = keep.to(torch.long)
        layer = next((one for one in self.layers if one.parameter is tensor), None)
        if layer is not None:
            layer.shrink(dim, keep)
        elif tensor is not None:
            state = self.optimizer.state.get(tensor, {}) if self.optimizer else {}
            state.update({k: v.index_select(dim, keep) for k, v in state.items() if v.shape == tensor.shape})
            tensor.data, tensor.grad = tensor.data.index_select(dim, keep), None
        else:
            module._buffers[attribute] = module._buffers[attribute].index_select(dim, keep)  # type: ignore[union-attr]
        for module, attribute in places:
            resize(module, attribute, dim, len(keep))
        self.edits.append((name, dim, keep.tolist()))
        self._cost = self.passes = None  # measured again when shapes fit

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs: edits, layers, every other parameter and buffer."""
        own = {layer.parameter for layer in self.layers}
        rest = {n: p.detach() for n, p in self.net.named_parameters() if p not in own}
        return {
            "edits": self.edits,
            "layers": {layer.name: layer.snapshot() for layer in self.layers},
            "parameters": rest,
            "buffers": dict(self.net.named_buffers()),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back a `state` on a network built the same way, before the optimiser's state is loaded."""
        for name, dim, keep in saved["edits"][len(self.edits) :]:
            self.shrink(name, dim, torch.tensor(keep))
        for name, snapshot in saved["layers"].items():
            self[name].restore(snapshot)
        parameters, buffers = dict(self.net.named_parameters()), dict(self.net.named_buffers())
        with torch.no_grad():
            for name, value in {**saved["parameters"], **saved["buffers"]}.items():
                (parameters.get(name) if name in parameters else buffers[name]).copy_(value)  # type: ignore[union-attr]

    def attach(self, optimizer: torch.optim.Optimizer, keeps: Mapping[str, str]) -> None:
        """Tell the Layers which optimiser steps them, and which of its tensors the method keeps off the support."""
        self.optimizer = optimizer
        for layer in self.layers:
            layer.optimizer, layer.keeps = optimizer, keeps


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's parameters that multiply activations and may become Layers."""
    for kind, attributes in WEIGHTS.items():
        if isinstance(module, kind):
            return tuple(a for a in attributes if module._parameters.get(a) is not None)
    return ()


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


@cache
def _swapped(kind: type[nn.Module], attribute: str) -> type[nn.Module]:
    """A subclass of the module's class whose attribute is the weight that the pass reads, not the parameter.

    The forward of a Linear or Conv2d is the kernel's operation, where it has one, of its input or of an
    activation of it.
    """

    def masked(self: nn.Module) -> Layer | None:
        layer = self.__dict__["sparse_layers"][attribute]
        # Any other tensor was put there by torch.func.functional_call and is read as it is.
        return None if layer.plain or self._parameters[attribute] is not layer.parameter else layer

    def read(self: nn.Module) -> Tensor:
        layer = masked(self)
        return self._parameters[attribute] if layer is None else layer.kernel.weight(layer)  # type: ignore[return-value]

    def forward(self: nn.Module, input: Tensor, act: Activation = None) -> Tensor:
        layer = masked(self)
        done = None if layer is None else layer.kernel.operation(self, layer, input, act)
        return kind.forward(self, act(input) if act else input) if done is None else done

    def write(self: nn.Module, value: Tensor) -> None:
        raise AttributeError(f"{attribute} of a Layer is set through Layer.assign")

    body: dict[str, Any] = {attribute: property(read, write), "__module__": kind.__module__}
    if attribute == "weight" and issubclass(kind, (nn.Linear, nn.Conv2d)):
        body["forward"] = forward
    return type(kind.__name__, (kind,), body)


def _swap(module: nn.Module, attribute: str, layer: Layer) -> None:
    module.__dict__.setdefault("sparse_layers", {})[attribute] = layer
    module.__class__ = _swapped(type(module), attribute)  # type: ignore[arg-type]


def _block_fast_path(model: SparseModel) -> None:
    """Switch off the fused attention paths, which bypass the count of FLOPs, while any SparseModel lives."""
    if not _living:
        _living.append(torch.backends.mha.get_fastpath_enabled())
    _living.append(True)
    torch.backends.mha.set_fastpath_enabled(False)

    def leave() -> None:
        _living.pop()
        if len(_living) == 1:
            torch.backends.mha.set_fastpath_enabled(_living.pop())

    weakref.finalize(model, leave)
