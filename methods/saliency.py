"""One cut by more than magnitude: by the inputs of a weight (Wanda), by the curvature of the loss (WoodFisher)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dstbench.methods.allocate import global_top, uniform
from dstbench.methods.checks import valid
from dstbench.methods.finetune import OneShot
from dstbench.methods.structured import fan_ins, leading
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# ---- Wanda -----------------------------------------------------------------------------------------------------------


@dataclass
class Wanda(OneShot):
    """OneShot that ranks, within each row, |w| times the norm of the input that the weight reads.

    Norms are over the batch of the step before the cut, and over all positions where an input is used: of a Conv2d, one
    for each input channel. Every row of a Layer, what feeds one output, keeps the same number of weights.

    Passes: as OneShot.
    FLOPs: as OneShot; the norms, two operations an input, are charged neither by the paper nor here.
    Defaults: OneShot's. The paper prunes trained language models, by 128 sequences, without training on.
    Ambiguous: the code for language models feeds each block with the output of the pruned block before it; here all
        inputs are the dense network's, as in its code for image classifiers. Convolutions are not in the paper. Where
        counts do not divide, the fan-ins of single Layers move by one connection, as few as bring the sum within half
        the rows of the narrowest Layer.
    Reference: Sun et al., arXiv 2306.11695, equation 1.
    """

    scope: ClassVar[str] = "layer"  # type: ignore[misc]

    name: ClassVar[str] = "wanda"
    citation: ClassVar[str] = "Sun et al., ICLR 2024, arXiv 2306.11695"

    @property
    def grain(self) -> int:
        return min(layer.shape[0] for layer in self.layers)

    def skip(self, task: Task) -> str | None:
        net = task.build(0)
        layers = SparseModel(net, task.example(), task.dense).layers
        odd = [y.name for y in layers if not isinstance(_module(net, y), KINDS)]
        return f"wanda: {odd[0]!r} is no Linear or convolution, whose inputs it could look at" if odd else None

    def setup(self, gradients: Gradients) -> None:
        late(self)

    def begin(self, t: int) -> None:
        if t == self.cut - 1:
            self.hooks = [_module(self.model.net, y).register_forward_pre_hook(self.look(y)) for y in self.layers]
        super().begin(t)

    def thin(self) -> None:
        fan_in = fan_ins(self.layers, uniform(self.layers, 1 - self.sparsity))
        for layer in self.layers:
            # Where the step before the cut did not reach the Layer, weights alone decide.
            squares = self.memory.pop(f"input.{layer.name}", layer.weight.new_ones(layer.shape[1]))
            norm = squares.sqrt().view(-1, 1, layer.shape[1])  # by group of channels
            norm = norm.expand(-1, layer.shape[0] // len(norm), -1).reshape(layer.shape[:2])
            score = layer.weight.abs() * norm.view(*layer.shape[:2], *[1] * (layer.weight.dim() - 2))
            layer.activate(leading(score.flatten(1), fan_in[layer.name]).view(layer.shape))

    def look(self, layer: Layer) -> Callable[..., None]:
        """A hook that adds up the squares of the layer's inputs."""
        key = f"input.{layer.name}"

        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            over = [d for d in range(x.dim()) if d != (x.dim() - 1 if isinstance(module, nn.Linear) else 1)]
            self.memory[key] = self.memory.get(key, 0) + x.square().sum(over).to(layer.weight.dtype)

        return add

    def step(self, t: int) -> None:
        super().step(t)
        if t == self.cut - 1:
            for hook in self.hooks:
                hook.remove()


def late(method: OneShot) -> None:
    """ValueError where nothing comes before the cut."""
    if method.cut == 0:
        raise ValueError(f"{method.name}: at is {method.at}, which cuts before the first step; give a larger share")


def _module(net: nn.Module, layer: Layer) -> nn.Module:
    return net.get_submodule(layer.key.rpartition(".")[0])


# ---- WoodFisher ------------------------------------------------------------------------------------------------------


@dataclass
class WoodFisher(OneShot):
    """OneShot that ranks w^2 / (2 [F^-1]), what the loss rises by, and moves the other weights to make up for the cut.

    F is the empirical Fisher matrix in blocks of `block` weights that follow each other in memory: `damp` on its
    diagonal and the mean of g g^T over the gradients g of the last `samples` steps before the cut. Its inverse is
    found by one Sherman-Morrison update a step. The cut takes the smallest scores over all Layers, at least one weight
    staying in each, and adds up the updates of single weights, -w_q F^-1 e_q / [F^-1]_qq, on those that stay.

    Passes: as OneShot.
    FLOPs: as OneShot, and 6 `block` operations a weight in each of those steps, 2 `block` at the cut: `charge`d.
    Defaults: `damp` 1e-5 is the paper's; `block` 8 and `samples` 32 are small for a short run (the paper: blocks of 50
        to 10 000, 240 to 8 000 gradients).
    Ambiguous: the paper's gradients are those of single samples at one point; ours are those of batches, along the last
        steps, so that they cost no pass. All is cut at once and trained on, as in its one-shot results.
    Reference: Singh & Alistarh, arXiv 2004.14340, equations 4, 7 and 12.
    """

    block: int = 8
    samples: int = 32
    damp: float = 1e-5
    scope: ClassVar[str] = "global"  # type: ignore[misc]

    name: ClassVar[str] = "woodfisher"
    citation: ClassVar[str] = "Singh & Alistarh, NeurIPS 2020, arXiv 2004.14340"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, block=(1, math.inf), samples=(1, math.inf), damp=(1e-30, math.inf))

    def setup(self, gradients: Gradients) -> None:
        late(self)

    def step(self, t: int) -> None:
        if (first := max(0, self.cut - self.samples)) <= t < self.cut:
            for layer in self.layers:
                grad, key = blocked(layer.grad, self.block), f"inverse.{layer.name}"
                if t == first:
                    eye = torch.eye(self.block, dtype=grad.dtype, device=grad.device) / self.damp
                    self.memory[key] = eye.expand(len(grad), -1, -1).clone()
                absorb(self.memory[key], grad, self.cut - first)
                self.charge(6 * self.block * layer.numel)
        super().step(t)

    def thin(self) -> None:
        inverses = [self.memory.pop(f"inverse.{layer.name}") for layer in self.layers]
        diagonals = [unblocked(i.diagonal(dim1=1, dim2=2), y) for i, y in zip(inverses, self.layers, strict=True)]
        scores = [y.weight**2 / (2 * d) for y, d in zip(self.layers, diagonals, strict=True)]
        masks = global_top(scores, round((1 - self.sparsity) * sum(layer.numel for layer in self.layers)))
        for layer, mask, inverse, diagonal in zip(self.layers, masks, inverses, diagonals, strict=True):
            gone = blocked((layer.weight / diagonal).masked_fill(mask, 0), self.block)
            weight = layer.weight - unblocked(torch.einsum("bij,bj->bi", inverse, gone), layer)
            self.charge(2 * inverse.numel())
            layer.activate(mask)
            layer.assign(weight.masked_fill(~mask, 0))


def blocked(dense: Tensor, block: int) -> Tensor:
    """A tensor in rows of `block` entries, the last one filled up with zeros."""
    flat = dense.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def unblocked(rows: Tensor, layer: Layer) -> Tensor:
    """What `blocked` made of a tensor of the layer's shape, back in that shape."""
    return rows.reshape(-1)[: layer.numel].view(layer.shape)


def absorb(inverse: Tensor, grad: Tensor, samples: int) -> None:
    """One gradient more in F, of `samples`: the inverse, (blocks, block, block), by Sherman and Morrison, in place."""
    along = torch.einsum("bij,bj->bi", inverse, grad)
    scale = samples + (grad * along).sum(1)
    inverse.sub_(torch.einsum("bi,bj->bij", along, along / scale[:, None]))
