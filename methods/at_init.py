"""Masks at initialisation: score the initial weights, cut once to the target, train what is left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dstbench.methods.allocate import INITS, begin_sparse, global_top
from dstbench.methods.checks import valid
from dstbench.suite.method import Gradients, Method
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

MODES = ("eval", "train")  # of the network while it is scored


@dataclass
class AtInit(Method):
    """Masks from the initial weights, before step 0, and static training from then on; a subclass says which masks."""

    init: str = "sparse"

    family: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, init=INITS)

    def setup(self, gradients: Gradients) -> None:
        begin_sparse(self.layers, self.masks(gradients), self.init)

    def masks(self, gradients: Gradients) -> list[Tensor]:
        """A mask for each Layer, all of them together exactly on target."""
        raise NotImplementedError

    def best(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        """Masks of the largest scores over all Layers, in number the share `density` of all weights."""
        return global_top(scores, round(density * self.model.maskable))


@dataclass
class SNIP(AtInit):
    """Keeps the weights to which the loss is most sensitive: largest |g w|, over all Layers, at initialisation.

    g is the gradient of the dense network over `batches` of the calibration split, in `mode` "eval", where batch norm
    uses its initial statistics, or "train", where it uses those of the batch. Every Layer keeps one weight at least;
    masks never change. `init` is "sparse", kept initial weights scaled until their squares sum to what those of the
    whole Layer did, or "dense", unscaled; scores see the unscaled weights.

    Passes: before step 0 `batches` dense ones; then all read the mask and compute the gradient on it.
    FLOPs: 3 f_S a step, scoring left out; our count books it as setup, `batches` dense steps.
    Defaults: `batches` 2 are 100 images on the digits tasks, about 10 a class, as in Synaptic-Flow's code (the paper
        scores one batch of its training); `init` by valid (docs/tuning.md).
    Ambiguous: the paper does not rescale kept weights ("dense"); we do, as for every method that starts sparse. It lets
        a layer vanish; we keep one weight. It leaves the mode of batch norm open: `mode` is that of the
        authors' code and of Synaptic-Flow's. The authors' code scores one batch and trains on a draw apart from it.
    Reference: Lee et al., arXiv 1810.02340, section 4.1 and algorithm 1.
    """

    batches: int = 2
    mode: str = "eval"

    name: ClassVar[str] = "snip"
    citation: ClassVar[str] = "Lee et al., ICLR 2019, arXiv 1810.02340"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, batches=(1, math.inf), mode=MODES)

    def masks(self, gradients: Gradients) -> list[Tensor]:
        return self.best(self.scores(gradients), 1 - self.sparsity)

    def scores(self, gradients: Gradients) -> list[Tensor]:
        """How much each weight is worth keeping, in the Layers' shapes."""
        found = gradients(self.batches, train=self.mode == "train")
        return [(g * layer.weight).abs() for layer, g in zip(self.layers, found, strict=True)]


@dataclass
class GraSP(SNIP):
    """Keeps the weights without which the gradient's norm would be smallest: largest w (H g), at initialisation.

    Removing w changes |g|^2 by -2 w (H g) to first order. The paper removes the largest of S(-w) = -w (H g); to keep
    the largest w (H g) is the same. g and the Hessian H are those of the dense network with outputs divided by
    `temperature`, over `batches` of the calibration split. The rest is as in SNIP.

    Passes: before step 0 `batches` dense ones and, through their graph, one more backward pass; then as SNIP.
    FLOPs: 3 f_S a step, scoring left out; our count books it as setup, about 3 `batches` dense steps.
    Defaults: `temperature` 200 from the reference code; `batches` as in SNIP; `init` "dense", as published;
        `mode` that of the authors' code (Synaptic-Flow's scores in evaluation mode).
    Ambiguous: the paper does not rescale kept weights, and neither do we by default: to rescale them costs 53 points on
        digits/mlp at 95 % sparsity (docs/tuning.md). The code computes g twice, to spare memory; we differentiate one
        graph of all `batches`, as in algorithm 2. We leave out what the code adds to the paper: a new classifier by
        Xavier's rule before scoring.
    Reference: Wang et al., arXiv 2002.07376, equation 8, algorithms 1 and 2.
    """

    init: str = "dense"
    mode: str = "train"
    temperature: float = 200.0

    name: ClassVar[str] = "grasp"
    version: ClassVar[int] = 2
    citation: ClassVar[str] = "Wang et al., ICLR 2020, arXiv 2002.07376"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, temperature=(1, math.inf))

    def skip(self, task: Task) -> str | None:
        return "torch.compile has no second derivatives; set recipe.compile to false" if task.recipe.compile else None

    def scores(self, gradients: Gradients) -> list[Tensor]:
        found = gradients(self.batches, create_graph=True, temperature=self.temperature, train=self.mode == "train")
        inner = torch.stack([(g.detach() * g).sum() for g in found]).sum()
        weights = [layer.parameter for layer in self.layers]
        products = torch.autograd.grad(inner, weights, allow_unused=True, materialize_grads=True)
        return [layer.weight * h.view(layer.shape) for layer, h in zip(self.layers, products, strict=True)]


@dataclass
class SynFlow(AtInit):
    """Keeps the weights that carry the most synaptic flow, |w dR/dw|, without data, pruned in `iterations` rounds.

    R is the sum of the outputs of the network with every parameter and buffer replaced by its absolute value, on one
    all-ones input, in float64 and evaluation mode. Round k of n leaves the share density^(k/n) of all weights; each
    scores what the last one left. `init` as in SNIP.

    Passes: before step 0 `iterations` of one sample; then all read the mask and compute the gradient on it.
    FLOPs: 3 f_S a step, scoring left out; our count books it as setup, `iterations` dense passes of one sample (zeros
        of earlier rounds are multiplied as well).
    Defaults: `iterations` 100 and the schedule from the paper and its code; `init` by valid (docs/tuning.md).
    Ambiguous: the paper does not rescale kept weights ("dense"). Its theory has no biases, norms or attention: as in
        its code they stay, with absolute parameters, and scores too are absolute. A layer beside
        others, such as a shortcut, may vanish there; we keep one weight.
    Reference: Tanaka et al., arXiv 2006.05467, section 6 and algorithm 1.
    """

    iterations: int = 100

    name: ClassVar[str] = "synflow"
    version: ClassVar[int] = 2
    citation: ClassVar[str] = "Tanaka et al., NeurIPS 2020, arXiv 2006.05467"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, iterations=(1, math.inf))

    def masks(self, gradients: Gradients) -> list[Tensor]:
        weights = [layer.weight.double().abs() for layer in self.layers]
        masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
        for k in range(1, self.iterations + 1):
            flow = synaptic_flow(self.model, [w * m for w, m in zip(weights, masks, strict=True)])
            left = [score.masked_fill(~m, -math.inf) for score, m in zip(flow, masks, strict=True)]
            masks = self.best(left, (1 - self.sparsity) ** (k / self.iterations))
        return masks


def synaptic_flow(model: SparseModel, weights: Sequence[Tensor]) -> list[Tensor]:
    """|w dR/dw| in float64, with `weights` (float64, not negative, dense) in place of those of the Layers.

    ValueError where R is not finite.
    """
    net = model.net
    own = {layer.key: w.detach().requires_grad_() for layer, w in zip(model.layers, weights, strict=True)}
    rest = ((n, t) for n, t in (*net.named_parameters(), *net.named_buffers()) if n not in own)
    absolute = {n: t.detach().double().abs() for n, t in rest if t.is_floating_point()}
    ones = torch.ones(model.example.shape, dtype=torch.float64, device=weights[0].device)
    with evaluating(net):
        flow = torch.func.functional_call(net, {**absolute, **own}, (ones,)).sum()
    if not math.isfinite(total := float(flow.detach())):
        raise ValueError(
            f"synflow: the absolute network's outputs sum to {total}, beyond float64; start from smaller weights"
        )
    grads = torch.autograd.grad(flow, list(own.values()), allow_unused=True, materialize_grads=True)
    return [(w * g).abs() for w, g in zip(weights, grads, strict=True)]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module in the mode it had after."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
