"""A small convolutional network on random batches, and the loop that trains it by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe

STEPS = 40


def recipe(steps: int = STEPS, **options: Any) -> Recipe:
    return Recipe(steps=steps, batch=8, lr={"sgd": 0.05, "adam": 0.01}, **options)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 20), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(20, 4)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 + t)
    labels = torch.randint(4, (8,), generator=rng)
    return torch.randn(8, 2, 6, 6, generator=rng, dtype=torch.float64) + labels[:, None, None, None], labels


def begin(method: Method, kernel: str = "masked", setup: bool = True, **options: Any) -> SparseModel:
    model = SparseModel(network(), batch(0)[0], kernel=kernel)
    method.attach(model, recipe(**options), seed=3)
    if setup:
        method.setup(lambda batches=1, create_graph=False: [])
    return model


def train(method: Method, model: SparseModel, start: int = 0, stop: int = STEPS) -> list[float]:
    """The loop of the suite, by hand; returns the losses."""
    losses = []
    for t in range(start, stop):
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        losses.append(backward(model, t))
        method.step(t)
    return losses


def backward(model: SparseModel, t: int) -> float:
    model.zero_grad()
    inputs, labels = batch(t)
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    return float(loss.detach())


def active(model: SparseModel) -> int:
    return sum(int(layer.weight.count_nonzero()) for layer in model.layers)
