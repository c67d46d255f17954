"""DepGraph: whole channels go, in all Layers that share them, and shapes really shrink."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dstbench.methods.finetune import OneShot
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

STEPS = 1000  # shares of channels that are looked at


class Side(NamedTuple):
    """A dimension of a weight that a group of channels shares, and how many of its slices each channel has."""

    name: str
    dim: int
    repeat: int


class Group(NamedTuple):
    """Channels that live and die together, `channels` of them."""

    channels: int
    sides: list[Side]


def coupled(net: nn.Module, example: Tensor, whole: Collection[str] = ()) -> list[Group]:
    """The groups of channels between layers of a network, by the dependency graph of the package torch-pruning.

    Without those that are outputs of a layer in `whole`. RuntimeError without that package.
    """
    try:
        from torch_pruning import DependencyGraph
    except ImportError as error:
        raise RuntimeError("depgraph needs torch-pruning: pip install 'dstbench[structured]'") from error
    graph, names = DependencyGraph(), {module: name for name, module in net.named_modules()}
    graph.build_dependency(net, example, verbose=False)
    found = []
    for group in graph.get_all_groups():
        channels, sides = len(group[0][1]), []
        for dependency, indices in group:
            module = dependency.target.module
            if module in names and isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                out = graph.is_out_channel_pruning_fn(dependency.handler)
                dim = 0 if out or isinstance(module, nn.BatchNorm2d) else 1
                sides.append(Side(names[module], dim, len(indices) // channels))
        kept = any(side.dim == 0 and side.name in whole for side in sides)
        if not kept and any(side.dim == 1 for side in sides):  # else nothing reads these channels but the loss
            found.append(Group(channels, sides))
    return found


@dataclass
class DepGraph(OneShot):
    """OneShot that removes channels: in every group of layers that share them, the same share, the smallest by norm.

    The norm of a channel is that of all weights that make or read it, in every Layer of its group. Weights, biases,
    batch norms and optimiser state lose their slices, so that what is left is a smaller dense network. The share is the
    one of 1000 at which the weights left are nearest to the target; each group keeps one channel at least.

    Passes: dense before the cut; after it dense on the smaller network.
    FLOPs: 3 f_D a step, f_D that of the network as it is; the norms are charged neither by the paper nor here.
    Defaults: OneShot's; the group norm and one share for all groups are the paper's plain setting (local pruning).
    Ambiguous: the paper trains with a group penalty before the cut, as an option: left out, so that the training before
        it is dense SGD's. Layers that the task keeps dense keep all outputs, and whatever shares them; their inputs go
        with the channels that feed them, as shapes must fit. Attention, and convolutions in groups, are left out.
    Reference: Fang et al., arXiv 2301.12900, sections 3.1 and 3.3, by torch-pruning.
    """

    scope: ClassVar[str] = "layer"  # type: ignore[misc]

    name: ClassVar[str] = "depgraph"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Fang et al., CVPR 2023, arXiv 2301.12900"

    def skip(self, task: Task) -> str | None:
        return unfit(task.build(0))

    def network(self, task: Task, seed: int) -> nn.Module:
        if reason := unfit(net := task.build(seed)):
            raise ValueError(reason)
        found = SparseModel(task.build(seed), task.example(), task.dense)
        free = {layer.key.rpartition(".")[0] for layer in found.layers}
        weighted = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        self.groups = coupled(net, task.example(), {*weighted} - free)
        return task.build(seed)

    def setup(self, gradients: Gradients) -> None:
        if not self.groups:
            raise ValueError("depgraph: no two layers share channels of this network that may go; take a deeper one")

    @property
    def grain(self) -> int:
        """The weights between the nearest two sizes around the target."""
        sizes = sorted({self.left(self.widths(k)) for k in range(STEPS)})
        target = (1 - self.sparsity) * self.model.maskable
        above = next((i for i, n in enumerate(sizes) if n >= target), len(sizes) - 1)
        return max(1, sizes[above] - sizes[max(0, above - 1)])

    def widths(self, k: int) -> list[int]:
        """Channels that each group keeps where the share k / 1000 goes."""
        return [max(1, round(group.channels * (1 - k / STEPS))) for group in self.groups]

    def left(self, widths: Sequence[int]) -> int:
        """The weights in Layers of the network with these widths."""
        shape = {layer.key.rpartition(".")[0]: list(self.first[layer.name]) for layer in self.layers}
        for group, width in zip(self.groups, widths, strict=True):
            for side in group.sides:
                if side.name in shape:
                    shape[side.name][side.dim] = width * side.repeat
        return sum(math.prod(s) for s in shape.values())

    def attach(self, model: SparseModel, recipe: Any, seed: int) -> None:
        super().attach(model, recipe, seed)
        self.first = {layer.name: layer.shape for layer in model.layers}

    def thin(self) -> None:
        target = (1 - self.sparsity) * self.model.maskable
        best = min(range(STEPS), key=lambda k: abs(self.left(self.widths(k)) - target))
        keeps = [kept.sort().values for kept in self.choose(self.widths(best))]
        for group, keep in zip(self.groups, keeps, strict=True):
            for name, dim, keep_all in self.edits(group, keep):
                self.model.shrink(name, dim, keep_all)

    def choose(self, widths: Sequence[int]) -> Iterator[Tensor]:
        """The channels of largest norm of each group."""
        weights = {layer.key.rpartition(".")[0]: layer.weight for layer in self.layers}
        for group, width in zip(self.groups, widths, strict=True):
            norms = torch.zeros(group.channels)
            for side in group.sides:
                if side.name in weights:
                    slices = weights[side.name].transpose(0, side.dim).flatten(1)
                    norms = norms.to(slices) + slices.square().sum(1).view(group.channels, -1).sum(1)
            yield norms.topk(width).indices

    def edits(self, group: Group, keep: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """Every tensor that loses slices with the group: its name, dimension, and what it keeps."""
        for side in group.sides:
            module: Any = self.model.net.get_submodule(side.name)
            every = (keep[:, None] * side.repeat + torch.arange(side.repeat, device=keep.device)).flatten()
            yield f"{side.name}.weight", side.dim if module.weight.dim() > 1 else 0, every
            if side.dim == 0 and module.bias is not None:
                yield f"{side.name}.bias", 0, every
            for buffer in ("running_mean", "running_var"):
                if getattr(module, buffer, None) is not None:
                    yield f"{side.name}.{buffer}", 0, every


def unfit(net: nn.Module) -> str | None:
    """Why channels of this network cannot be removed, or None."""
    for name, module in net.named_modules():
        if hasattr(module, "num_heads"):
            return f"depgraph: {name!r} is attention, whose heads it does not remove"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return f"depgraph: {name!r} is a convolution in groups, which it does not remove channels of"
    parameters = [id(p) for m in net.modules() for p in m._parameters.values() if p is not None]
    if len(parameters) > len(set(parameters)):
        return "depgraph: two modules of this network share a weight, which cannot lose channels in both"
    return None
