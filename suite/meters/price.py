"""What a pass costs: the dense pass as it was measured, scaled by masks and by what the pass reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dstbench.suite.layer import Layer
from dstbench.suite.meters.flops import Cost, PassCost


def price(passes: PassCost, layers: Sequence[Layer], reached: Mapping[str, tuple[float, float]] | None = None) -> Cost:
    """FLOPs per sample of the pass that the present masks ask for.

    `reached`: by parameter, the shares of its products that a pass computed, forward and backward, where they are
    known; other parameters and products of activations then go with the Layers nearest to them. A Layer that was not
    measured has the cost of one use a sample, once a pass reaches it.
    """
    masked = {layer.key: layer for layer in layers}
    known = {key: (float(key in passes.forward),) * 2 for key in masked} | dict(reached or {})
    ahead_known, back_known = ({key: shares[i] for key, shares in known.items()} for i in (0, 1))
    forward, inputs = float(passes.rest_forward), float(passes.rest_backward)
    weights = papers = 0.0
    inference = float(passes.inference.rest_forward)
    if reached and passes.rest_forward:
        forward = sum(_near(path, ahead_known) * flops for path, flops in passes.rest.items())
        inputs *= sum(_near(path, back_known) * flops for path, flops in passes.rest.items()) / passes.rest_forward
    dense = forward + inputs
    for key in [*(k for k in passes.forward if k not in masked), *masked]:
        layer, shares = masked.get(key), known.get(key, (1.0, 1.0))
        if reached and key not in known:
            path = key.rpartition(".")[0]
            shares = _near(path, ahead_known), _near(path, back_known)
        read = 1.0 if layer is None else layer.nnz("forward") / layer.numel
        grad = 1.0 if layer is None else layer.nnz("grad") / layer.numel
        one = 0 if layer is None or key in passes.forward else 2 * layer.numel
        ahead, back, own = (t.get(key, one) for t in (passes.forward, passes.inputs, passes.weights))
        forward += shares[0] * ahead * read
        inputs += shares[1] * back * read
        weights += shares[1] * own * grad
        papers += ahead * (shares[0] * read + shares[1] * (read + own / max(1, ahead) * grad))
        dense += shares[0] * ahead + shares[1] * (back + own)
        inference += passes.inference.forward.get(key, 0) * read
    wide = any(layer.grad_mask is None for layer in layers)
    return Cost(forward, inputs, weights, papers, wide, inference, dense / max(1, passes.dense))


def _near(path: str, shares: Mapping[str, float]) -> float:
    """The share of a module: that of the parameter in it that was reached most, or in what is around it.

    Beside all of them it is 1, or more where a pass used all of them more often.
    """
    while path:
        if inside := [share for key, share in shares.items() if key.startswith(f"{path}.")]:
            return max(inside)
        path = path.rpartition(".")[0]
    return max(1.0, min(shares.values(), default=1.0))
