"""Which weights: densities by layer, exact integer counts, exact masks, and the start that sparse methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dstbench.methods.checks import choose
from dstbench.methods.scores import magnitude
from dstbench.suite.layer import Layer

Densities = dict[str, float]
INITS = ("sparse", "dense")
SAMPLED = 128  # every so many scores are looked at first where a few of many are sought


class Sized(Protocol):
    """What allocation needs to know of a Layer."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def numel(self) -> int: ...


def uniform(layers: Sequence[Sized], density: float) -> Densities:
    """The same density in every layer."""
    return {layer.name: density for layer in layers}


def uniform_rigl(layers: Sequence[Sized], density: float) -> Densities:
    """Uniform but the first layer dense, unless it is the only one; the rest is not re-solved: the sum is above target.

    Reference: RigL, arXiv 1911.11134, section 3(1).
    """
    first = {layers[0].name: 1.0} if len(layers) > 1 else {}
    return {**uniform(layers, density), **first}


def erk(layers: Sequence[Sized], density: float) -> Densities:
    """Density proportional to (sum of dimensions) / (product of dimensions), at most 1, meeting the global budget.

    Layers that would exceed 1 are made dense, all of the largest ratio at a time, and the factor is solved again.
    Reference: RigL, arXiv 1911.11134, section 3(1), and its code.
    """
    ratio = {layer.name: sum(layer.shape) / math.prod(layer.shape) for layer in layers}
    size = {layer.name: layer.numel for layer in layers}
    budget, factor, rest = density * sum(size.values()), 0.0, set(ratio)
    while rest:
        factor = budget / sum(ratio[n] * size[n] for n in rest)
        largest = max(ratio[n] for n in rest)
        if factor * largest <= 1:
            break
        capped = {n for n in rest if ratio[n] == largest}
        budget -= sum(size[n] for n in capped)
        rest -= capped
    return {name: factor * ratio[name] if name in rest else 1.0 for name in ratio}


def erk_plus(layers: Sequence[Sized], density: float) -> Densities:
    """`erk` with the last layer, the classifier, dense and the others solved again for the rest of the budget.

    Plain `erk` where the classifier would take more than half of the budget.
    Reference: Liu et al., arXiv 2202.02643, and its code (`ERK_plus`).
    """
    *others, last = layers
    budget = density * sum(layer.numel for layer in layers)
    if last.numel > budget / 2:
        return erk(layers, density)
    return {**erk(others, (budget - last.numel) / sum(layer.numel for layer in others)), last.name: 1.0}


ALLOCATIONS: dict[str, Callable[[Sequence[Sized], float], Densities]] = {
    "uniform": uniform,
    "uniform_rigl": uniform_rigl,
    "erk": erk,
    "erk_plus": erk_plus,
}


def allocate(allocation: str, layers: Sequence[Sized], density: float) -> Densities:
    """Densities by layer name from the allocation of that name; ValueError names the choices."""
    return ALLOCATIONS[choose("allocation", allocation, ALLOCATIONS)](layers, density)


def fitted(layers: Sequence[Sized], densities: Mapping[str, float], room: Mapping[str, int]) -> Densities:
    """The same densities where every layer has room for so many weights; else the others have more, in proportion."""
    ideal, full = {layer.name: densities[layer.name] * layer.numel for layer in layers}, set[str]()
    total = min(math.fsum(ideal.values()), sum(room.values()))
    while over := {name for name in ideal if name not in full and ideal[name] > room[name]}:
        full |= over
        rest = math.fsum(ideal[name] for name in ideal if name not in full)
        left = total - sum(room[name] for name in full)
        ideal = {name: float(room[name]) if name in full else n * left / (rest or 1.0) for name, n in ideal.items()}
    return {layer.name: ideal[layer.name] / layer.numel for layer in layers}


def counts(layers: Sequence[Sized], densities: Mapping[str, float], total: int | None = None) -> dict[str, int]:
    """Active weights by layer name that sum to `total`, by largest remainder; every layer has at least one.

    `total` defaults to what the densities sum to, rounded; it is raised to one weight a layer where it is below that.
    ValueError where it exceeds the number of weights.
    """
    ideal = {layer.name: densities[layer.name] * layer.numel for layer in layers}
    size = {layer.name: layer.numel for layer in layers}
    total = max(len(layers), round(math.fsum(ideal.values())) if total is None else total)
    if total > sum(size.values()):
        raise ValueError(f"total is {total}; the layers have {sum(size.values())} weights, give no more than that")
    count = {name: min(size[name], max(1, math.floor(ideal[name]))) for name in ideal}
    while gap := total - sum(count.values()):
        sign = 1 if gap > 0 else -1
        free = [name for name in count if 1 <= count[name] + sign <= size[name]]
        each = max(1, abs(gap) // len(free))  # more than 1 only where `total` is far from the densities' sum
        for name in sorted(free, key=lambda name: sign * (count[name] - ideal[name]))[: abs(gap)]:
            count[name] = min(size[name], max(1, count[name] + sign * each))
    return count


def random_mask(shape: Sequence[int], count: int, rng: torch.Generator) -> Tensor:
    """A bool mask of `shape` with exactly `count` entries, drawn uniformly on the device of `rng`."""
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=rng.device)
    mask[torch.randperm(mask.numel(), generator=rng, device=rng.device)[:count]] = True
    return mask.view(*shape)


def top(score: Tensor, k: int) -> Tensor:
    """A bool mask of the k largest scores: exactly k, among ties the first in memory order; NaN ranks as -infinity.

    ValueError where k is not between 0 and the number of scores.
    """
    if not 0 <= k <= score.numel():
        raise ValueError(f"top k is {k}; give a count between 0 and {score.numel()}")
    if k == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.flatten()
    if bool((nan := flat.isnan()).any()):
        flat = flat.masked_fill(nan, -math.inf)
    threshold = kth_largest(flat, k)
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: k - int(chosen.count_nonzero())]] = True
    return chosen.view(score.shape)


def kth_largest(flat: Tensor, k: int) -> Tensor:
    """The k-th largest value of a vector without NaN; of many, a sample first says which are surely too small."""
    sample, expected = flat[::SAMPLED], k / SAMPLED
    rank = int(expected + 4 * math.sqrt(expected)) + 4
    if rank < sample.numel() / 2:
        least = sample.kthvalue(sample.numel() - rank + 1).values
        large = flat[flat >= least] if least > -math.inf else flat[flat > least]
        flat = large if large.numel() >= k else flat
    return flat.kthvalue(flat.numel() - k + 1).values


@torch.no_grad()
def global_top(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Bool masks of the k largest finite scores over all tensors; every tensor keeps at least its best one, so k is
    raised to their number where it is below that."""
    ranked, sizes = torch.cat([score.flatten() for score in scores]), [score.numel() for score in scores]
    for part in ranked.split(sizes):
        part[part.nan_to_num(-math.inf, math.inf, -math.inf).argmax()] = math.inf
    chosen = top(ranked, max(k, len(scores))).split(sizes)
    return [mask.view(score.shape) for mask, score in zip(chosen, scores, strict=True)]


def active(layer: Layer) -> Tensor:
    """The mask of a Layer that has one."""
    assert layer.forward_mask is not None, "masks are set in setup"
    return layer.forward_mask


def start(layers: Sequence[Layer], densities: Mapping[str, float], rng: torch.Generator, init: str = "sparse") -> None:
    """Give every Layer a random mask of its exact count; `init="sparse"` scales kept weights by 1/sqrt(density).

    The scale keeps the variance of activations that the dense initialisation was made for; "dense" leaves the weights
    as they are. ValueError for another `init`.
    Reference: Evci et al., arXiv 1911.11134, whose code (`layer_scaled_init` of rigl_tf2/init_utils.py) has this scale.
    """
    number = counts(layers, densities)
    begin_sparse(layers, [random_mask(layer.shape, number[layer.name], rng) for layer in layers], init, random=True)


def begin_sparse(layers: Sequence[Layer], masks: Sequence[Tensor], init: str, *, random: bool = False) -> None:
    """Make `masks` the Layers' first; `init="sparse"` scales weights until those read have the squares that all had.

    Of `random` masks that is the density, as in `start`; of others, whose weights were chosen by what they are, it is
    measured: the largest tenth holds far more than a tenth of the squares.
    """
    choose("init", init, INITS)
    for layer, mask in zip(layers, masks, strict=True):
        squares = layer.weight.square()
        layer.activate(mask)
        if init == "sparse":
            share = layer.density if random else held(squares, layer)
            layer.assign(layer.weight / math.sqrt(share))


def held(squares: Tensor, layer: Layer) -> float:
    """The share of `squares` that a pass reads; 1 where that is nothing, as of weights that start at zero."""
    read = float(squares.sum() if layer.forward_mask is None else squares[layer.forward_mask].sum())
    return read / float(squares.sum()) if read else 1.0


def cut(layers: Sequence[Layer], scores: Sequence[Tensor], count: int) -> None:
    """Keep the `count` weights of largest score over all Layers, at least one in each; the rest becomes zero."""
    for layer, mask in zip(layers, global_top(scores, count), strict=True):
        layer.activate(mask)


def exchange(layer: Layer, moved: int, growth: Tensor) -> None:
    """Drop the `moved` weights of a Layer of smallest magnitude, then activate as many of largest `growth`.

    Weights just dropped may grow again, and then keep value and state; others start at zero. The gradient, which was
    that of other masks, is dropped.
    """
    kept = top(magnitude(layer), layer.nnz() - moved)
    layer.activate(kept | top(growth.masked_fill(kept, -math.inf), moved))
    layer.zero_grad()
