"""Dense training: the reference of every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.checks import choose
from dstbench.suite.method import Method
from dstbench.suite.recipe import KINDS


@dataclass
class Dense(Method):
    """Trains every weight by the recipe's optimiser, or by the one that `rule` names: "sgd" or "adam".

    Passes: read and compute all.
    FLOPs: 3 f_D a step.
    """

    rule: str = ""

    name: ClassVar[str] = "dense"
    family: ClassVar[str] = "dense"
    sparse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule:
            choose("dense: rule", self.rule, KINDS)

    @property
    def kind(self) -> str:
        """The rule named, or the recipe's."""
        return self.rule or self.recipe.optimizer
