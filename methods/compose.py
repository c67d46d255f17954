"""Composers: methods that add something to another method, which they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dstbench.suite import registry
from dstbench.suite.method import Gradients, Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import Task

ADVICE = "wrap one that has not, such as static, rigl or acdc"


@dataclass
class Composer(Method):
    """Does all that the method `on` does; a subclass overrides what it adds.

    Both share Layers, optimiser, generator and memory, so that one resumes with the other. The wrapped method has the
    hyper-parameters that its name stands for, and the composer's sparsity and budget. ValueError where it wraps a
    method itself, or has a hook of its own that this composer `needs` to be everybody's.
    """

    on: str = "rigl"

    family: ClassVar[str] = "wrapper"
    names_methods: ClassVar[tuple[str, ...]] = ("on",)
    needs: ClassVar[tuple[str, ...]] = ("network", "descend")

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = registry.find("method", self.on).load()
        if issubclass(kind, Composer):
            raise ValueError(f"{self.name}: on is {self.on!r}, which has a method that it wraps itself; {ADVICE}")
        for hook in self.needs:
            if getattr(kind, hook) is not getattr(Method, hook):
                raise ValueError(f"{self.name}: on is {self.on!r}, which has a `{hook}` of its own; {ADVICE}")
        self.inner = registry.method(self.on, sparsity=self.sparsity, budget=self.budget)
        keeps = {**self.inner.keeps, **self.keeps}
        vars(self).update(keeps=keeps, grown=self.grown or self.inner.grown, sparse=self.inner.sparse)

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        self.inner.attach(model, recipe, seed)
        self.model, self.layers, self.recipe = model, model.layers, recipe
        self.rng, self.memory = self.inner.rng, self.inner.memory
        model.attach(self.optimizer, self.keeps)

    @property
    def optimizer(self) -> torch.optim.Optimizer:  # type: ignore[override]
        return self.inner.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner.optimizer = optimizer

    @property
    def charged(self) -> int:  # type: ignore[override]
        return self.inner.charged

    @charged.setter
    def charged(self, flops: int) -> None:
        self.inner.charged = flops

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def grain(self) -> int:
        return self.inner.grain

    def skip(self, task: Task) -> str | None:
        return self.inner.skip(task)

    def setup(self, gradients: Gradients) -> None:
        self.inner.setup(gradients)

    def begin(self, t: int) -> None:
        self.inner.begin(t)

    def step(self, t: int) -> None:
        self.inner.step(t)

    def project(self) -> None:
        self.inner.project()

    def lr(self, t: int) -> float:
        return self.inner.lr(t)

    def finish(self) -> None:
        self.inner.finish()
