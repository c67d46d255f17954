"""DepGraph: whole channels go, in all Layers that share them, and shapes really shrink."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dstbench.methods.channels import removable
from dstbench.methods.coupling import Group, cuts
from dstbench.methods.finetune import OneShot
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel, weights_of
from dstbench.suite.task import Task

STEPS = 1000  # shares of channels that are looked at
OFF = 0.05  # by which the smallest network may be larger than the target


@dataclass
class DepGraph(OneShot):
    """OneShot that removes channels: in every group of layers that share them, the same share, the smallest by norm.

    The norm of a channel is that of all weights that make or read it, in every Layer of its group. All tensors that
    share a channel lose their slices of it, optimiser state and running statistics too, so that what is left is a
    smaller dense network. The share is the one of 1000 at which the weights left are nearest to the target; each group
    keeps one channel at least. Before the training every cut is tried on a copy, where it must run, and give what the
    whole network gives with zeros in place of the weights that read the channels (see `channels.fault`): groups of
    which that is not true stay whole. Where the target is then out of reach, the task is skipped.

    Passes: dense before the cut; after it dense on the smaller network.
    FLOPs: 3 f_D a step, f_D that of the network as it is; the norms are charged neither by the paper nor here.
    Defaults: OneShot's; the group norm and one share for all groups are the paper's plain setting (local pruning).
    Ambiguous: the paper trains with a group penalty before the cut, as an option: left out, so that the training before
        it is dense SGD's. Layers that the task keeps dense keep all outputs, and whatever shares them; their inputs go
        with the channels that feed them, as shapes must fit. Under a group norm and in a convolution in groups the
        channels at one position of every group go together. Attention loses inputs and outputs, not heads.
    Reference: Fang et al., arXiv 2301.12900, sections 3.1 and 3.3, by torch-pruning.
    """

    scope: ClassVar[str] = "layer"  # type: ignore[misc]

    name: ClassVar[str] = "depgraph"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Fang et al., CVPR 2023, arXiv 2301.12900"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.looked: Any = None

    def skip(self, task: Task) -> str | None:
        shapes, groups, held = self.look(task)
        why = f"; left whole: {'; '.join(held[:3])}{' …' * (len(held) > 3)}" if held else ""
        if not groups:
            return f"depgraph: no channels of this network may go{why}"
        every, least = left(shapes, [], []), left(shapes, groups, [1] * len(groups))
        if least > (1 + OFF) * (1 - self.sparsity) * every:
            most = math.floor(1000 * (1 - least / every)) / 1000
            return f"depgraph: sparsity {self.sparsity:g} is out of reach, at most {most:g} is possible{why}"
        return None

    def network(self, task: Task, seed: int) -> nn.Module:
        self.groups = self.look(task)[1]
        return task.build(seed)

    def look(self, task: Task) -> tuple[dict[str, torch.Size], list[Group], list[str]]:
        """The shapes of the weights that may shrink, the groups of channels that may go, and why others may not."""
        if self.looked is None or self.looked[0] is not task:
            net = task.build(0)
            names = {parameter: name for name, parameter in net.named_parameters()}
            weights = {names[m._parameters[a]] for m in net.modules() for a in weights_of(m)}  # type: ignore[index]
            shapes = {y.key: y.shape for y in SparseModel(task.build(0), task.example(), task.dense).layers}
            self.looked = task, shapes, *removable(net, task.example(), shapes.keys(), weights - shapes.keys())
        return self.looked[1:]

    def setup(self, gradients: Gradients) -> None:
        if not self.groups:
            raise ValueError("depgraph: no channels of this network may go; `skip(task)` says why")

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
        return left(self.first, self.groups, widths)

    def attach(self, model: SparseModel, recipe: Any, seed: int) -> None:
        super().attach(model, recipe, seed)
        self.first = {layer.key: layer.shape for layer in model.layers}

    def thin(self) -> None:
        target = (1 - self.sparsity) * self.model.maskable
        best = min(range(STEPS), key=lambda k: abs(self.left(self.widths(k)) - target))
        for side, kept in cuts(self.groups, list(self.choose(self.widths(best)))).items():
            if not kept.all():
                self.model.shrink(*side, kept.nonzero().flatten().to(self.layers[0].parameter.device))

    def choose(self, widths: Sequence[int]) -> Iterator[Tensor]:
        """The channels of largest norm of each group."""
        weights = {layer.key: layer.weight for layer in self.layers}
        for group, width in zip(self.groups, widths, strict=True):
            norms = torch.zeros(group.channels + 1)
            for side, owner in group.sides.items():
                if side.name in weights:
                    slices = weights[side.name].transpose(0, side.dim).flatten(1).square().sum(1)
                    norms = norms.to(slices).index_add(0, (owner % len(norms)).to(slices.device), slices)
            yield norms[:-1].topk(width).indices


def left(shapes: Mapping[str, torch.Size], groups: Sequence[Group], widths: Sequence[int]) -> int:
    """The weights of these shapes, by parameter, where each group keeps as many channels as `widths` says."""
    sizes = {name: list(shape) for name, shape in shapes.items()}
    for group, width in zip(groups, widths, strict=True):
        for side, of_each in group.slices.items():
            if side.name in sizes:
                sizes[side.name][side.dim] -= (group.channels - width) * of_each
    return sum(math.prod(size) for size in sizes.values())
