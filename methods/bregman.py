"""The Bregman family: weights are read off dual variables through a threshold, so zeros come and go by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from dstbench.methods.allocate import ALLOCATIONS, INITS, allocate, counts, fitted
from dstbench.methods.checks import choose, valid
from dstbench.methods.control import CONTROLS, multiplicative, quantile, rise
from dstbench.methods.mirror import Direction, MirrorDescent, adam, ema, heavy_ball, plain
from dstbench.methods.regularizers import REGULARIZERS, Regularizer, sparse_start
from dstbench.suite.heads import attention
from dstbench.suite.method import Gradients, Method
from dstbench.suite.task import Task

MOMENTA: dict[str, Callable[..., Tensor]] = {"": plain, "ema": ema, "heavy_ball": heavy_ball}
SCOPES = ("global", "layer")
LEVELS = {"order": ("coarse_first", "fine_first"), "support": ("fixed", "shrinking"), "off_support": ("hold", "decay")}
BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "start_density": (lambda x: 0 <= x <= 1, "a share of the weights in [0, 1]"),
    "ramp": (lambda x: 0 <= x < 1, "a share of the run in [0, 1)"),
    "beta": (lambda x: 0 <= x < 1, "a decay in [0, 1)"),
    "lam": (lambda x: x >= 0, "a number that is not negative"),
    "delta": (lambda x: x > 0, "a number above 0"),
    "scale": (lambda x: x >= 0, "a number above 0, or 0 for the recipe's"),
}
KEPT = {"dual": "of every weight, zero or not", "momentum": "of every weight, zero or not"}


@dataclass
class LinBreg(Method):
    """Gradient descent on a dual variable v, from which the weights are read: prox of delta lambda J at delta v.

    J is `regularizer`: l1, row, kernel, head (rows in other Layers), or blocks of outputs, block2, 4 and 8.
    `control` says where lambda comes from. "quantile": set at every fine step so that the density is exactly on a curve
    from `start_density` (0: half the target, at least 5 %; never above the target) to the target, which it reaches at
    the share `ramp` of the run; the same for all Layers (`scope` "global"), or each Layer's own, for the density that
    `allocation` gives it ("layer"). "fixed": it is `lam`, and the sparsity is what it will be. "multiplicative": from
    `lam` on by the rule of arXiv 2605.07892. `repair` carries the duals along when lambda moves (an ablation).
    `momentum` is "", "ema" or "heavy_ball". `scale` is a factor on the learning rate (0: the recipe's `plain_scale`),
    which is lr / (1 - momentum) of the recipe for rules that do not accumulate themselves; the heavy ball takes lr as
    it is.

    Passes: the weights that are not zero, groups as wholes, are read; every weight gradient is computed, at every step,
        because the duals of zero weights move too.
    FLOPs: 2 f_S + f_D: forward pass and input gradient read the support, the weight gradient is dense. Ours adds what
        is no Layer, and the first Layer has no input gradient, dense or sparse: its floor is a half, not a third.
    Defaults: `delta` is the code's, `lam` the paper's for its MLP; `control`, `ramp` and `start_density` are ours (the
        paper: fixed lambda from a density of 1 %); allocation, `init`, learning rate and weight decay are the suite's.
    Ambiguous: weight decay is decoupled, on the dual, as in the code of arXiv 2605.07892. The multiplicative rule moves
        lambda at the recipe's period (that code: every 50 steps). Groups of a Conv2d are kernels in the paper. A
        head has one group in queries, keys and values and one in the output's columns, and is off where either is zero.
    Reference: Bungert et al., arXiv 2105.04319, algorithms 1 and 2.
    """

    control: str = "quantile"
    lam: float = 0.1
    regularizer: str = "l1"
    delta: float = 1.0
    momentum: str = ""
    beta: float = 0.9
    scale: float = 0.0
    scope: str = "global"
    allocation: str = "erk"
    init: str = "sparse"
    start_density: float = 0.0
    ramp: float = 0.3
    repair: bool = False

    name: ClassVar[str] = "linbreg"
    family: ClassVar[str] = "bregman"
    citation: ClassVar[str] = "Bungert et al., JMLR 2022, arXiv 2105.04319"
    keeps: ClassVar[Mapping[str, str]] = KEPT
    grown: ClassVar[str] = "one step off zero: at what the dual exceeds its threshold by"

    @property
    def kind(self) -> str:
        return "sgd"

    @property
    def grain(self) -> int:
        return max(self.mirror.regularizer.size(layer) for layer in self.layers)

    @property
    def mirror(self) -> MirrorDescent:
        """The optimiser."""
        return cast(MirrorDescent, self.optimizer)

    def __post_init__(self) -> None:
        super().__post_init__()
        choices: dict[str, Any] = {"control": CONTROLS, "regularizer": REGULARIZERS, "momentum": MOMENTA}
        for field, names in {**choices, "scope": SCOPES, "allocation": ALLOCATIONS, "init": INITS}.items():
            choose(f"{self.name}: {field}", getattr(self, field), names)
        for field, (good, wanted) in BOUNDS.items():
            if not good(value := getattr(self, field)):
                raise ValueError(f"{self.name}: {field} is {value}; give {wanted}")

    def skip(self, task: Task) -> str | None:
        if self.regularizer == "head" and not attention(task.build(0)):
            return f"{self.name}: this network has no attention heads; take another regularizer"
        return None

    def make_optimizer(self, groups: list[dict[str, Any]]) -> MirrorDescent:
        decay, rule = self.recipe.weight_decay[self.kind], Regularizer(self.regularizer)
        return MirrorDescent(groups, self.layers, self.direction(), rule, delta=self.delta, weight_decay=decay)

    def direction(self) -> Direction:
        """What the dual loses in a step."""
        rule = MOMENTA[self.momentum]
        return partial(rule, beta=self.beta) if self.momentum else rule

    def lr(self, t: int) -> float:
        if self.kind == "adam" or self.momentum == "heavy_ball":
            return (self.scale or 1.0) * super().lr(t)
        return (self.scale or self.recipe.plain_scale) * super().lr(t) / (1 - self.recipe.momentum)

    def setup(self, gradients: Gradients) -> None:
        densities = allocate(self.allocation, self.layers, self.density(0))
        sparse_start(self.layers, densities, self.rng, self.init, Regularizer(self.regularizer))
        lam = 0.0 if self.control == "quantile" else self.lam
        self.memory["lam"] = torch.full((len(self.layers),), lam, dtype=torch.float64)

    def density(self, t: int) -> float:
        """The density that the quantile controller asks for after t steps."""
        target = 1 - self.sparsity
        progress = t / (self.ramp * self.recipe.steps) if self.ramp else 1.0
        return rise(progress, min(self.start_density or max(0.05, target / 2), target), target)

    def fine(self, t: int) -> bool:
        """Whether step t moves every weight and lambda."""
        return True

    def begin(self, t: int) -> None:
        self.mirror.lam = dict(zip(self.layers, self.memory["lam"].tolist(), strict=True))
        for layer in self.layers:
            if self.fine(t):
                layer.stream(partial(self.mirror.move_rest, layer))
            elif layer.grad_mask is not layer.forward_mask:
                layer.grad_mask = layer.forward_mask

    def step(self, t: int) -> None:
        self.mirror.move()
        if self.control != "fixed":
            self.regulate(t)
        self.mirror.read()
        self.declare()

    def declare(self) -> None:
        """Passes read the weights that are not zero."""
        for layer in self.layers:
            support = self.mirror.regularizer.support(layer, layer.weight)
            if layer.forward_mask is None or not torch.equal(support, layer.forward_mask):
                layer.forward_mask = support

    def regulate(self, t: int) -> None:
        """Set lambda anew, between the step on the duals and the reading of the weights."""
        lams = self.memory["lam"].tolist()
        if self.control == "quantile":
            lams = self.quantiles(self.density(t + 1))
        elif t + 1 - self.memory.get("adjusted", 0) >= self.recipe.period:
            self.memory["adjusted"] = t + 1
            lams = [multiplicative(lams[0], self.model.density, 1 - self.sparsity, self.memory)] * len(lams)
        new = dict(zip(self.layers, lams, strict=True))
        if self.repair:
            self.mirror.read()  # support and signs of this step, under the old lambda
            self.mirror.repair(new)
        self.mirror.lam = new
        self.memory["lam"] = torch.tensor(lams, dtype=torch.float64)

    def quantiles(self, density: float) -> list[float]:
        """Lambdas, one a Layer, at which the duals leave that density."""
        if self.scope == "global":
            return quantile(self.mirror, self.layers, round(density * sum(layer.numel for layer in self.layers)))
        scores = {layer: self.mirror.scores(layer) for layer in self.layers}
        room = {y.name: int(s.count_nonzero()) * self.mirror.regularizer.size(y) for y, s in scores.items()}
        number = counts(self.layers, fitted(self.layers, allocate(self.allocation, self.layers, density), room))
        return [lam for y, s in scores.items() for lam in quantile(self.mirror, [y], number[y.name], [s])]


@dataclass
class AdaBreg(LinBreg):
    """LinBreg with Adam's step on the dual; `corrected=False` is the published form, without the first bias correction.

    Passes: as LinBreg.
    FLOPs: as LinBreg, 2 f_S + f_D.
    Defaults: beta 0.9, beta2 0.999 and eps 1e-8 are the code's; the learning rate is the recipe's for Adam, as it is;
        all else as LinBreg. With control "fixed", lambda must be far larger than LinBreg's.
    Ambiguous: the code computed the first bias correction but did not apply it until January 2024; applied here.
    Reference: Bungert et al., arXiv 2105.04319, algorithm 3.
    """

    beta2: float = 0.999
    eps: float = 1e-8
    corrected: bool = True

    name: ClassVar[str] = "adabreg"
    keeps: ClassVar[Mapping[str, str]] = {name: KEPT["dual"] for name in ("dual", "first", "second")}

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, beta2=(0, 1 - 1e-9), eps=(0, 1))
        if self.momentum:
            raise ValueError(f"adabreg: momentum is {self.momentum!r}; leave it empty, Adam's is set by beta")

    @property
    def kind(self) -> str:
        return "adam"

    def direction(self) -> Direction:
        return partial(adam, beta1=self.beta, beta2=self.beta2, eps=self.eps, corrected=self.corrected)


@dataclass
class MLLinBreg(LinBreg):
    """LinBreg on two levels: m coarse steps on the support alone, then a fine step on every weight.

    `m` -1 is the recipe's period of topology updates less one; 0 is LinBreg. `order` is "coarse_first" or "fine_first";
    the last step of a run is fine. `support` "fixed" lets a weight that becomes zero come back within the coarse steps,
    "shrinking" does not. Frozen weights are zero and their duals held; momentum there is held (`off_support` "hold")
    or decays ("decay").

    Passes: the weights that are not zero; a coarse step computes the weight gradient on the support of the last fine
        step, a fine one everywhere.
    FLOPs: (3 f_S m + 2 f_S + f_D)/(m + 1), which is RigL's figure at a period of m.
    Defaults: m is the suite's, 99 at full budgets as in the paper; all else as LinBreg, because lambda, learning rate,
        batch and start density of the paper's runs are not known to us.
    Ambiguous: coarse steps first. The support is fixed within them, zeros in it may come back, and groups are whole.
        Biases and norms are always active. The analysis has no momentum; off by default, held off the support. Lambda
        moves in fine steps only.
    Reference: Lunk, Scott & Bungert, arXiv 2602.03535, algorithm 1.
    """

    m: int = -1
    order: str = "coarse_first"
    support: str = "fixed"
    off_support: str = "hold"

    name: ClassVar[str] = "ml_linbreg"
    citation: ClassVar[str] = "Lunk, Scott & Bungert 2026, arXiv 2602.03535"
    keeps: ClassVar[Mapping[str, str]] = {"dual": "held while frozen", "momentum": "held while frozen"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, names in LEVELS.items():
            choose(f"{self.name}: {field}", getattr(self, field), names)
        if self.m < -1:
            raise ValueError(f"{self.name}: m is {self.m}; give the coarse steps of a cycle, or -1 for the recipe's")

    @property
    def coarse_steps(self) -> int:
        """m, resolved."""
        return self.recipe.period - 1 if self.m < 0 else self.m

    def fine(self, t: int) -> bool:
        place = t % (self.coarse_steps + 1)
        due = place == (self.coarse_steps if self.order == "coarse_first" else 0)
        return due or t == self.recipe.steps - 1

    def step(self, t: int) -> None:
        if self.fine(t):
            return super().step(t)
        self.optimizer.step()
        if self.off_support == "decay":
            for held in (layer.reserve.get("momentum") for layer in self.layers):
                if held is not None:
                    held.mul_(self.beta)
        if self.support == "shrinking":
            self.declare()
