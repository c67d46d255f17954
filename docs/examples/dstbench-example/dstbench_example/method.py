"""A method that is another one with a difference: RigL with noise in the score by which weights grow."""

from __future__ import annotations

import torch
from torch import Tensor

from dstbench import Layer, register
from dstbench.methods.dynamic import RigL


@register(name="example_method", family="dynamic", citation="")
class ExampleMethod(RigL):
    """RigL that grows at random among large gradients: the score is |gradient| times u^noise, u uniform in (0, 1).

    `noise` is the strength of chance: 0 is RigL.

    Passes: as RigL's.
    FLOPs: as RigL's.
    Defaults: `noise` is a guess.
    Reference: none; an example for authors of plugins.
    """

    contract = 2

    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"{self.name}: noise is {self.noise}; give a strength of 0 or more")

    def growth(self, layer: Layer) -> Tensor:
        chance = torch.rand(layer.shape, generator=self.rng).to(layer.grad.device)
        return super().growth(layer) * chance**self.noise
