"""Composers: methods that add something to another method, which they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from suite import registry
from suite.method import Gradients, Method
from suite.model import SparseModel
from suite.recipe import Recipe
from suite.task import Task


@dataclass
class Composer(Method):
    """Does all that the method `on` does; a subclass overrides what it adds.

    Both share Layers, optimiser, generator and memory, so that one resumes with the other. The wrapped method has the
    hyper-parameters that its name stands for, and the composer's sparsity. ValueError for one that has a network,
    passes or an optimiser of its own: there weights follow from something else that is stepped.
    """

    on: str = "rigl"

    family: ClassVar[str] = "wrapper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inner = registry.method(self.on, sparsity=self.sparsity)
        for hook in ("network", "descend", "make_optimizer"):
            if getattr(type(self.inner), hook) is not getattr(Method, hook):
                raise ValueError(
                    f"{self.name}: on is {self.on!r}, which has a `{hook}` of its own; wrap a method that has the "
                    "task's network, one pass a step and the recipe's optimiser, such as 'static', 'rigl' or 'acdc'"
                )
        vars(self).update(keeps=self.inner.keeps, grown=self.inner.grown, sparse=self.inner.sparse)

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        self.inner.attach(model, recipe, seed)
        self.model, self.layers, self.recipe = model, model.layers, recipe
        self.rng, self.memory, self.optimizer = self.inner.rng, self.inner.memory, self.inner.optimizer

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
