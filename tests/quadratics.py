"""Least squares through one sparse layer, small enough to be checked against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from dstbench.methods.mirror import MirrorDescent
from dstbench.suite.model import SparseModel

Array = np.ndarray


class Problem:
    """L(w) = ||A w - b||^2 / 2 over the weight of one linear layer, (outputs, n), started sparse."""

    def __init__(self, n: int = 50, rows: int = 60, outputs: int = 1, seed: int = 0, noise: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.a = rng.standard_normal((rows, n)) / math.sqrt(rows)
        self.truth = rng.standard_normal((outputs, n)) * (rng.random((outputs, n)) < 0.2)
        self.b = self.a @ self.truth.T + noise * rng.standard_normal((rows, outputs))
        self.start = rng.standard_normal((outputs, n)) * (rng.random((outputs, n)) < 0.3)
        self.smoothness = float(np.linalg.norm(self.a.T @ self.a, 2))
        net = nn.Sequential(nn.Linear(n, outputs, bias=False)).double()
        self.model = SparseModel(net, torch.zeros(2, n, dtype=torch.float64))
        (self.layer,) = self.model.layers
        self.layer.assign(torch.from_numpy(self.start))

    def optimizer(self, **options: Any) -> MirrorDescent:
        optimizer = MirrorDescent(self.model.groups(), self.model.layers, **options)
        self.model.attach(optimizer, {})
        return optimizer

    def loss(self, weight: Array) -> float:
        return 0.5 * float(((self.a @ weight.T - self.b) ** 2).sum())

    def gradient(self, weight: Array) -> Array:
        return (self.a @ weight.T - self.b).T @ self.a

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """One step; returns the loss before it."""
        self.model.zero_grad()
        residual = self.model(torch.from_numpy(self.a)) - torch.from_numpy(self.b)
        loss = 0.5 * residual.square().sum()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    @property
    def weight(self) -> Array:
        return self.layer.weight.numpy().copy()

    @property
    def dual(self) -> Array:
        return self.layer.state["dual"].numpy().copy()
