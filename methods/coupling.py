"""Coupled channels of a network: which slices of which tensors live and die together, found by torch-pruning."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LIMIT = 100_000  # dependencies that are followed from one layer
BATCHLIKE = nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm


class Side(NamedTuple):
    """A dimension of a parameter or buffer, by name."""

    name: str
    dim: int


@dataclass(frozen=True)
class Group:
    """Channels of the same tensors: slice i of a side belongs to channel `sides[side][i]`, or to none of them (-1).

    A pass sums over the sides in `reads`: these are the weights that read the channels. All others make them.
    """

    channels: int
    sides: dict[Side, Tensor]
    reads: frozenset[Side]

    @cached_property
    def slices(self) -> dict[Side, int]:
        """How many slices of each side every channel has."""
        return {side: int((owner >= 0).sum()) // self.channels for side, owner in self.sides.items()}

    @property
    def maker(self) -> str:
        """The first parameter that makes the channels."""
        return next(side.name for side in self.sides if side not in self.reads)


def cuts(groups: Sequence[Group], keeps: Sequence[Tensor]) -> dict[Side, Tensor]:
    """Which slices of every side are kept (bool) where each group keeps the channels with these indices."""
    found: dict[Side, Tensor] = {}
    for group, keep in zip(groups, keeps, strict=True):
        stays = torch.zeros(group.channels + 1, dtype=torch.bool)
        stays[keep.cpu()] = stays[-1] = True
        for side, owner in group.sides.items():
            found[side] = found.get(side, torch.ones(len(owner), dtype=torch.bool)) & stays[owner]
    return found


class _Slices:
    """Slices of tensors, in sets that go together (union-find)."""

    def __init__(self) -> None:
        self.first: dict[Side, int] = {}  # the number of the first slice of each side; the others follow
        self.sizes: dict[Side, int] = {}
        self.parent: list[int] = []
        self.held: set[int] = set()

    def number(self, side: Side, size: int) -> int:
        """The number of the first slice of a side."""
        if side not in self.first:
            self.sizes[side] = size
            self.first[side] = len(self.parent)
            self.parent += range(len(self.parent), len(self.parent) + size)
        return self.first[side]

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = a = self.parent[self.parent[a]]
        return a

    def unite(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))  # the earlier one stands for both
        self.parent[b] = a


def coupled(net: nn.Module, example: Any, whole: Collection[str] = ()) -> list[Group]:
    """The groups of channels of a network, by the dependency graph of the package torch-pruning.

    Without those that reach what cannot lose channels, such as the outputs of the network, or that are made by a
    parameter named in `whole`. ImportError without that package.
    """
    from torch_pruning import DependencyGraph

    net = copy.deepcopy(net).requires_grad_(True)
    graph = DependencyGraph()
    graph.build_dependency(net, example, forward_fn=lambda model, inputs: model(inputs), verbose=False)
    names = {tensor: name for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    slices, reads = _Slices(), set()
    for root in [m for m in graph.module2node if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]:
        joined: dict[int, list[int]] = defaultdict(list)
        barred = False
        for node, out, indices in _reached(graph, root):
            found = _sides(node, out, names)
            barred |= found is None
            for side, size, parts, read in found or ():
                start = slices.number(side, size)
                for index in indices:
                    joined[index.root_idx].append(start + index.idx % size)
                for i in range(size if parts > 1 else 0):
                    slices.unite(start + i, start + i % (size // parts))
                reads |= {side} if read else set()
                barred |= side.name in whole and not read
        for same in joined.values():
            for one in same:
                slices.unite(same[0], one)
            if barred:
                slices.held.add(same[0])
    return _groups(slices, reads)


def _reached(graph: Any, root: nn.Module) -> Iterator[tuple[Any, bool, list[Any]]]:
    """What the outputs of a module depend on, step by step: node, whether its outputs or inputs, and indices.

    Unlike torch-pruning's own groups, an index that is reached from two channels of the root is given for both.
    """
    from torch_pruning._helpers import _HybridIndex

    pruner = graph.get_pruner_of_module(root)
    todo = [(graph.module2node[root], pruner.prune_out_channels, [_HybridIndex(i, i) for i in range(_outputs(root))])]
    seen = set()
    while todo:
        node, handler, indices = todo.pop()
        key = (id(node), handler, tuple(indices))
        if key in seen or not indices:
            continue
        seen.add(key)
        if len(seen) > LIMIT:
            raise ValueError(f"more than {LIMIT} dependencies of one layer")
        yield node, graph.is_out_channel_pruning_fn(handler), indices
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                handed = indices
                for mapping in dependency.index_mapping:
                    handed = handed if mapping is None else mapping(handed)
                todo.append((dependency.target, dependency.handler, handed))


def _outputs(module: Any) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _sides(node: Any, out: bool, names: dict[Tensor, str]) -> list[tuple[Side, int, int, bool]] | None:
    """Of a node's tensors: side, length, in how many equal parts it must shrink alike, and whether it reads.

    Empty for what has no tensors; None for what cannot lose channels.
    """
    module: Any = node.module
    if isinstance(module, nn.Parameter):
        dim = node.pruning_dim % module.dim()
        return [(Side(names[module], dim), module.shape[dim], 1, False)]
    if type(module).__module__ == "torch_pruning.ops":
        return None if type(module).__name__ == "_OutputOp" else []
    made, parts, attributes = 0, 1, ("weight", "bias", "running_mean", "running_var")
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = 1 < module.groups == module.out_channels
        if depthwise and module.in_channels != module.out_channels:
            return None  # torch-pruning takes an input for the output of the same number
        made, parts, out = int(module.transposed and not depthwise), 1 if depthwise else module.groups, out or depthwise
    elif isinstance(module, nn.GroupNorm):
        parts = module.num_groups
    elif isinstance(module, nn.Embedding):
        made = 1
    elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    elif not isinstance(module, nn.Linear | nn.LayerNorm | nn.PReLU | BATCHLIKE):
        return None
    reader = isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not out
    found = []
    for attribute in ("weight",) if reader else attributes:
        if (tensor := getattr(module, attribute, None)) is None:
            continue
        if tensor not in names or (isinstance(module, nn.LayerNorm) and tensor.dim() > 1):
            return None  # computed from other parameters; a norm over more than channels
        dim = 0 if attribute != "weight" else made ^ 1 if reader else made
        # The first dimension holds the channels of all groups of a convolution, the second those of each.
        found.append((Side(names[tensor], dim), tensor.shape[dim], parts if dim == 0 else 1, reader))
    return found


def _groups(slices: _Slices, reads: Collection[Side]) -> list[Group]:
    """Slices that go together are a channel; channels with as many slices of the same sides are a group."""
    members: dict[int, list[tuple[Side, int]]] = defaultdict(list)
    for side, start in slices.first.items():
        for i in range(slices.sizes[side]):
            members[slices.find(start + i)].append((side, i))
    held = {slices.find(one) for one in slices.held}
    alike: dict[Any, list[int]] = defaultdict(list)
    for top, owned in sorted(members.items()):
        if top not in held:
            alike[frozenset(Counter(side for side, _ in owned).items())].append(top)
    found = []
    for tops in alike.values():
        sides: dict[Side, Tensor] = {}
        for channel, top in enumerate(tops):
            for side, i in members[top]:
                sides.setdefault(side, torch.full((slices.sizes[side],), -1))[i] = channel
        found.append(Group(len(tops), sides, frozenset(sides) & frozenset(reads)))
    return found
