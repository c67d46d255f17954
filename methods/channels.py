"""Channels of a network: which slices of which tensors live and die together, found by torch-pruning and tried out."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dstbench.suite.resize import cut

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


def removable(
    net: nn.Module, example: Any, free: Collection[str], whole: Collection[str] = ()
) -> tuple[list[Group], list[str]]:
    """The groups of channels that can be removed from a network, and why others cannot.

    A group counts if parameters make and read it, if some are in `free`, and if none in `whole` makes it. Every cut is
    tried on copies of the network, of each group alone where they do not go together, see `fault`.

    Args:
        net: The network; it is not changed.
        example: A batch of inputs.
        free: Names of the parameters that are to shrink.
        whole: Names of the parameters that keep all outputs.

    Returns:
        The groups, and a text for each that cannot go.

    Raises:
        RuntimeError: torch-pruning is not installed.
    """
    example = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:2], example)
    try:
        found = coupled(net, example, whole)
    except ImportError as error:
        raise RuntimeError("depgraph needs torch-pruning: pip install 'dstbench[structured]'") from error
    except Exception as error:  # tracing runs any code there is
        return [], [f"torch-pruning cannot trace the network ({_short(error)})"]
    found = [
        group
        for group in found
        if group.reads and group.reads < group.sides.keys() and any(side.name in free for side in group.sides)
    ]
    if not found or not fault(net, example, found):
        return found, []
    faults = [fault(net, example, [group], (2,)) for group in found]
    good = [group for group, wrong in zip(found, faults, strict=True) if not wrong]
    held = [f"{group.maker!r}: {wrong}" for group, wrong in zip(found, faults, strict=True) if wrong]
    if good and (wrong := fault(net, example, good)):
        return [], [*held, f"all others together: {wrong}"]
    return good, held


# ---- trying it out -----------------------------------------------------------------------------------------------


class Straight(TorchFunctionMode):
    """Norms over channels act on each channel apart: a tanh, then scale and shift."""

    NORMS = ("layer_norm", "group_norm", "rms_norm")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in self.NORMS:
            return func(*args, **kwargs)
        x, _, *given = args
        weight, bias = (given.pop(0) if given else kwargs.get(name) for name in ("weight", "bias"))
        shape = (-1, *[1] * (x.dim() - 2)) if func.__name__ == "group_norm" else (-1,)
        x = x.tanh() if weight is None else x.tanh() * weight.view(shape)
        return x + bias.view(shape) if isinstance(bias, Tensor) else x


@torch.no_grad()
def fault(net: nn.Module, example: Any, groups: Sequence[Group], parts: Sequence[int] = (2, 10**9)) -> str:
    """What goes wrong if of each group one of so many `parts` is kept, one channel at least; or nothing.

    A copy with random values, cut, must run in training and in evaluation, and compute what a whole copy does in which
    the weights that read the removed channels are zero. For this comparison norms over channels act on each channel
    apart: theirs are over fewer channels after a cut.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = scrambled(net)
        for part in parts:
            keeps = [torch.randperm(g.channels)[: -(-g.channels // part)] for g in groups]
            small, masked = copy.deepcopy(net), copy.deepcopy(net)
            try:
                for side, kept in cuts(groups, keeps).items():
                    cut(small, *side, kept.nonzero().flatten())
                    if any(side in group.reads for group in groups):
                        masked.get_parameter(side.name).transpose(0, side.dim)[~kept] = 0
                with Straight():
                    apart = _apart(small.eval()(example), masked.eval()(example))
                small.train()(example)
            except Exception as error:  # the network's own code, on shapes that it may not know
                return f"the network does not run without some of these channels ({_short(error)})"
            if apart:
                return "what reads these channels is not weights alone"
    return ""


def scrambled(net: nn.Module) -> nn.Module:
    """A copy with random parameters and statistics, so that nothing is hidden by zeros and ones."""
    net = copy.deepcopy(net).float()
    for parameter in net.parameters():
        if parameter.dim() > 1 and parameter[0].numel() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.uniform_(0.5, 1.5)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return net


def _apart(a: Any, b: Any) -> bool:
    """Whether outputs differ by more than rounding."""
    pairs = zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True)
    tensors = [(x, y) for x, y in pairs if isinstance(x, Tensor)]
    return not all(
        x.shape == y.shape and bool((x - y).abs().max() <= 1e-3 * y.abs().max()) for x, y in tensors if y.numel()
    )


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 160 else f"{text[:159]}…"


# ---- who depends on whom -----------------------------------------------------------------------------------------


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
