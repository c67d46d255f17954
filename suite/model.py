"""SparseModel: finds the Layers of any nn.Module, swaps them in place, and says what a pass costs."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite import heads, kernels
from dstbench.suite.layer import Layer, layer_name
from dstbench.suite.meters.flops import Cost, PassCost, measure
from dstbench.suite.meters.price import price
from dstbench.suite.resize import owners, resize
from dstbench.suite.swap import swap
from dstbench.suite.weights import Found, find, weights_of

_living: list[bool] = []  # whether torch's fused attention was enabled, then one entry a living SparseModel


class SparseModel:
    """A network whose Linear, convolution and attention weights are Layers; a call runs the pass their masks declare.

    `example` is one batch of inputs; `dense` are patterns (as in fnmatch) of layer names that no method may sparsify;
    adapters beside frozen weights are Layers where a pattern with "!" before it asks for them. Weights that take no
    gradient, that a pass reads transformed, or that are shared with another kind of module (tied embeddings), and
    depth-wise convolutions stay dense as well: `left_dense` says of each matrix that is no Layer why. The network is
    changed in place: classes are swapped, parameters keep identity, state-dict keys stay. ValueError for a pattern that
    matches nothing, RuntimeError where the network cannot run the example.
    """

    def __init__(self, net: nn.Module, example: Any, dense: Sequence[str] = (), kernel: str = "masked") -> None:
        self.net = net
        self.kernel = kernels.get(kernel)
        self._call: Callable[..., Any] = self.kernel.network(net)
        self.edits: list[tuple[str, int, list[int]]] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.example = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach().clone(), example)
        self._cost: tuple[tuple[int, ...], Cost] | None = None
        found = find(net, dense)
        self.dense_passes = measure(net, example)
        self.passes: PassCost | None = self.dense_passes
        self.uncounted = self.dense_passes.uncounted  # calls of operations without a formula in a pass, by name
        self.left_dense = found.dense
        self.layers: list[Layer] = self._make(found)
        self._parameters = list(net.parameters())
        own = {layer.key for layer in self.layers}
        self._others = {n: p for n, p in net.named_parameters() if n in self.dense_passes.forward and n not in own}
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

    def _make(self, found: Found) -> list[Layer]:
        attentions, passes = heads.heads(self.net), self.dense_passes
        order = {name: i for i, name in enumerate(passes.forward)}
        named = dict(self.net.named_parameters())
        layers = []
        for key, places in found.layers.items():
            if key in passes.transformed:
                self.left_dense[key] = "transformed: the pass does not multiply by it as it is"
                continue
            if passes.forward.get(key) and not passes.weights[key]:
                self.left_dense[key] = "the pass computes no gradient of it"
                continue
            name, parameter = layer_name(key), named[key]
            positions = passes.forward.get(key, 0) / (2 * parameter.numel())
            positions = int(positions) if positions.is_integer() else positions
            reasons = [self.kernel.unsupported(module, attribute) for module, attribute in places]
            reason = next(filter(None, reasons), None)
            kernel = kernels.get("masked") if reason else self.kernel
            split = attentions[name].axes(name, parameter.shape) if name in attentions else None
            layer = Layer(name, parameter, positions, kernel, key, reason, split)
            for module, attribute in places:
                swap(module, attribute, layer)
            layers.append(layer)
        return sorted(layers, key=lambda layer: order.get(layer.key, len(order)))

    def why_dense(self) -> str:
        """The first of the matrices that are no Layers, and why."""
        found = [f"{name} ({why})" for name, why in self.left_dense.items()]
        return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "") or "it has no matrix"

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: weights of Linear, convolutions and attention decay, all else does not.

        Parameters that take no gradient are in neither.
        """
        weights = {m._parameters[a] for m in self.net.modules() for a in weights_of(m)} - {None}
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.net.parameters():
            if parameter.requires_grad:
                parts[parameter not in weights].append(parameter)
        return [g for g in ({"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}) if g["params"]]

    # ---- cost ----------------------------------------------------------------------------------------------------

    def cost(self) -> Cost:
        """FLOPs per sample of the pass that the present masks ask for; RuntimeError if one was edited in place."""
        if self.passes is None:
            self.passes = measure(self.net, self.example, {layer.key: layer.weight for layer in self.layers})
        for layer in self.layers:
            layer.intact()
        now = tuple(layer.revision for layer in self.layers)
        if self._cost is None or self._cost[0] != now:
            self._cost = now, price(self.passes, self.layers)
        return self._cost[1]

    def passed(self, samples: int) -> Cost:
        """FLOPs per sample of the training pass over `samples` that has just run, with its gradients still there.

        It may have left out a Layer, or a part of the samples there (or used it more often than the example did). A
        Layer that it did not reach has a zero gradient from then on.
        """
        cost, passes = self.cost(), self.passes
        assert passes is not None
        reached = {}
        for layer in self.layers:
            calls, learned = (t.get(layer.key, 0) * samples for t in (passes.calls, passes.learned))
            reached[layer.key] = layer.reached((calls, learned), samples)
        reached |= {n: (0.0, 0.0) for n, p in self._others.items() if passes.weights.get(n) and p.grad is None}
        for layer in self.layers:
            layer.close()
        usual = all(shares == (key in passes.forward,) * 2 for key, shares in reached.items())
        return cost if usual else price(passes, self.layers, reached)

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
