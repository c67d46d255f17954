"""Masks as bipartite graphs: what scores say of a link that is not there, and which neurons have lost all links."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dstbench.suite.layer import Layer

SCORES = ("ch2_l3n", "ch3_l3n", "ch2_l3p", "ch3_l3p")
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Dropout, nn.Identity)


def closeness(links: Tensor, squared: bool) -> Tensor:
    """How much a path through node j counts where it starts at node i, both on the side of the rows of `links`.

    1 + their common neighbours (CH2; CH3: 1) over the other neighbours of j, at least 1; 0 where none is common.
    """
    common = links @ links.T
    return (common + 1 if squared else 1.0) * (common > 0) / (links.sum(1) - common).clamp_min(1)


def link_scores(mask: Tensor, kind: str) -> tuple[Tensor, int]:
    """The CH score of every pair without a link, (outputs, inputs), and the FLOPs of its products; else meaningless.

    A path output - a - b - input leads through an input a and an output b. By node (l3n) the closeness of b to the
    output, and of a to the input, are summed over all b that read the input and all a that the output reads; by path
    (l3p) the geometric mean of both is summed over all paths. That equals the codes' definition by external and
    internal links of a path's nodes, since a pair without a link shares no neighbour in a bipartite graph.
    """
    n, m = mask.shape
    by_path = kind.endswith("l3p")
    if by_path and n > m:  # one product a row: the fewer, the better
        score, flops = link_scores(mask.T, kind)
        return score.T, flops
    links, squared, common = mask.float(), kind.startswith("ch2"), 2 * n * m * (n + m)
    rows, columns = closeness(links, squared), closeness(links.T, squared)
    if not by_path:
        return rows @ links + links @ columns.T, 2 * common
    score, rows, columns = torch.empty_like(links), rows.sqrt(), columns.sqrt()
    for i in range(n):
        reads = mask[i].nonzero().flatten()
        onwards = (links[:, reads] * rows[i, :, None]) @ columns[:, reads].T
        score[i] = (onwards * links).sum(0)
    return score, common + 2 * n * m * int(mask.count_nonzero())


def chains(net: nn.Module, layers: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Pairs of these Layers of which the second reads the neurons of the first, in a plain stack of Linears."""
    own = {layer.parameter: layer for layer in layers}
    pairs: list[tuple[Layer, Layer]] = []
    last: Layer | None = None
    for module in net.children() if isinstance(net, nn.Sequential) else ():
        if isinstance(module, nn.Linear):
            layer = own.get(module._parameters["weight"])  # type: ignore[arg-type]
            pairs += [(last, layer)] if last and layer else []
            last = layer
        elif not isinstance(module, ELEMENTWISE):
            last = None
    return pairs


def unlink(pairs: Sequence[tuple[Layer, Layer]], masks: dict[Layer, Tensor]) -> None:
    """Drop links into neurons that nothing reads, from the last Layer backwards, then those out of unfed neurons."""
    for first, second in reversed(pairs):
        masks[first] = masks[first] & masks[second].any(0)[:, None]
    for first, second in pairs:
        masks[second] = masks[second] & masks[first].any(1)
