"""What a pass costs: the dense pass as it was measured, scaled by masks and by what the pass reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dstbench.suite.layer import Layer
from dstbench.suite.meters.flops import Cost, PassCost


def price(passes: PassCost, layers: Sequence[Layer], reached: Mapping[str, float] | None = None) -> Cost:
    """FLOPs per sample of the pass that the present masks ask for.

    `reached`: by parameter, the share of its products that a pass computed, where that is known; other parameters and
    products of activations then go with the Layers nearest to them. A Layer that was not measured has the cost of one
    use a sample, once a pass reaches it.
    """
    masked = {layer.key: layer for layer in layers}
    known = {key: float(key in passes.forward) for key in masked} | dict(reached or {})
    forward, inputs = float(passes.rest_forward), float(passes.rest_backward)
    weights = papers = dense = 0.0
    inference = float(passes.inference.rest_forward)
    if reached and passes.rest_forward:
        forward = sum(_near(path, known) * flops for path, flops in passes.rest.items())
        inputs *= forward / passes.rest_forward
    dense = forward + inputs
    for key in [*(k for k in passes.forward if k not in masked), *masked]:
        layer, share = masked.get(key), known.get(key)
        if share is None:
            share = _near(key.rpartition(".")[0], known) if reached else 1.0
        read = 1.0 if layer is None else layer.nnz("forward") / layer.numel
        grad = 1.0 if layer is None else layer.nnz("grad") / layer.numel
        one = 0 if layer is None or key in passes.forward else 2 * layer.numel
        ahead, back, own = (t.get(key, one) for t in (passes.forward, passes.inputs, passes.weights))
        forward += share * ahead * read
        inputs += share * back * read
        weights += share * own * grad
        papers += share * ahead * (2 * read + own / max(1, ahead) * grad)
        dense += share * (ahead + back + own)
        inference += passes.inference.forward.get(key, 0) * read
    wide = any(layer.grad_mask is None for layer in layers)
    return Cost(forward, inputs, weights, papers, wide, inference, dense / max(1, passes.dense))


def _near(path: str, shares: Mapping[str, float]) -> float:
    """The share of a module: that of the parameter in it that was reached most, or in what is around it."""
    while path:
        if inside := [share for key, share in shares.items() if key.startswith(f"{path}.")]:
            return max(inside)
        path = path.rpartition(".")[0]
    return 1.0
