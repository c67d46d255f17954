"""What is proved of LinBreg, and of ML LinBreg where it is, looked at in float64 runs of the suite's own methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dstbench.methods.bregman import AdaBreg, LinBreg, MLLinBreg
from dstbench.suite.train import Training
from dstbench.tasks.convex import ConvexTask, PowerLaw, Problem

Array = np.ndarray
SLACK = 1e-10  # of max(1, L), what rounding may add
PER_STEP = 1e-3  # relative, of a ratio of losses


@dataclass(frozen=True)
class Check:
    """A claim in one setting: what was measured, what it is held against, and whether the claim is met.

    `proved` says whether it has to be: of the others some are only seen to hold, and some must fail.
    """

    claim: str
    setting: str
    measured: float
    against: str
    met: bool
    proved: str = "yes"


@dataclass(frozen=True)
class State:
    """Weights and duals, (outputs, inputs), after step t; `fine` says whether that step moved every dual."""

    t: int
    weight: Array
    dual: Array
    fine: bool


def training(problem: Problem, method: LinBreg, tau: float, steps: int, *, start: float = 1.0) -> Training:
    """A run of the whole gradient with the constant step `tau`, set up."""
    zero = {"sgd": 0.0, "adam": 0.0}
    recipe = PowerLaw(steps, problem.rows, {"sgd": tau, "adam": tau}, weight_decay=zero, momentum=0.0)
    run = Training(ConvexTask("theory/check", recipe, problem=problem, start=start), method)
    run.setup()
    return run


def states(run: Training) -> Iterator[State]:
    """The state before the first step, t = -1, and after each."""
    method, (layer,) = run.method, run.model.layers
    assert isinstance(method, LinBreg)
    weight = layer.weight.numpy().copy()
    dual = weight / method.delta + method.lam * subgradient(weight, method.regularizer)
    yield State(-1, weight, dual, True)
    for t in range(run.recipe.steps):
        run.run(until=t + 1)
        yield State(t, layer.weight.numpy().copy(), method.mirror.dual(layer).numpy().copy(), method.fine(t))


def norms(weight: Array, groups: str) -> Array:
    """The norm of each group, spread over its entries, and weighted by the root of its size."""
    if groups == "l1":
        return np.abs(weight)
    return np.broadcast_to(np.linalg.norm(weight, axis=1, keepdims=True) / math.sqrt(weight.shape[1]), weight.shape)


def subgradient(weight: Array, groups: str) -> Array:
    """Of J, zero where the weight is."""
    size = norms(weight, groups)
    return np.divide(weight, size, out=np.zeros_like(weight), where=size > 0)


def distance(dual: Array, a: Array, b: Array, method: LinBreg) -> float:
    """The Bregman distance of J_delta from b to a, with the subgradient `dual` at b."""

    def mirror_map(w: Array) -> float:
        return method.lam * float(norms(w, method.regularizer).sum()) + float((w**2).sum()) / (2 * method.delta)

    return mirror_map(a) - mirror_map(b) - float((dual * (a - b)).sum())


def methods(**options: float | str) -> Iterator[tuple[str, LinBreg]]:
    """LinBreg, and ML LinBreg with 9 and 99 coarse steps."""
    fixed = {"control": "fixed", "start_density": 0.3, **options}
    yield "linbreg", LinBreg(**{k: v for k, v in fixed.items() if k != "order"})  # type: ignore[arg-type]
    for m in (9, 99):
        yield f"ml_linbreg m={m}", MLLinBreg(m=m, **fixed)  # type: ignore[arg-type]


def descent(steps: int) -> Iterator[Check]:
    """L(+) <= L - D(w, w+)/tau - (1/tau - delta l) D(w+, w), each step; so the loss falls where tau delta l < 2.

    The second claim of a state: |v| <= lam where the weight is 0, and w = delta (v - lam s(w)) elsewhere.
    """
    for groups, share in (("l1", 1.0), ("l1", 1.9), ("row", 1.9), ("l1", 3.0)):
        problem = Problem(rows=60, inputs=40, outputs=6 if groups == "row" else 1, nonzero=8, spread=1.0)
        for name, method in methods(lam=0.3, delta=0.5, regularizer=groups):
            tau = share / (method.delta * problem.smoothness)
            run, where = training(problem, method, tau, steps), f"{name}, {groups}, τδℓ = {share:g}"
            violation = rise = broken = frozen = 0.0
            asleep = None
            for old, new in pairwise(states(run)):
                asleep = old.weight == 0 if old.fine else asleep
                before, after = (float(problem.losses(s.weight).sum()) for s in (old, new))
                bound = before - distance(new.dual, old.weight, new.weight, method) / tau
                rest = 1 / tau - method.delta * problem.smoothness
                bound -= rest * distance(old.dual, new.weight, old.weight, method)
                violation = max(violation, (after - bound) / max(1, before))
                rise, broken = max(rise, after - before), max(broken, membership(new, method))
                if not new.fine:
                    frozen = max(frozen, float(np.abs(new.dual - old.dual)[asleep].max(initial=0.0)))
                if after > 1e9:
                    break
            yield Check("descent inequality", where, violation, f"≤ {SLACK:g}", violation <= SLACK)
            yield Check("dual and weight fit", where, broken, "≤ 1e-12", broken <= 1e-12)
            if share < 2:
                yield Check("loss never rises", where, rise, f"≤ {SLACK:g}", rise <= SLACK)
            elif name == "linbreg":
                yield Check("loss never rises", where, rise, f"≤ {SLACK:g}", rise <= SLACK, "must fail")
            if isinstance(method, MLLinBreg):
                yield Check("frozen duals stand still", where, frozen, "= 0", frozen == 0)


def membership(state: State, method: LinBreg) -> float:
    """By how much duals and weights miss each other, relative to the size of the largest dual."""
    size, on = norms(state.dual, method.regularizer), norms(state.weight, method.regularizer) > 0
    off = np.maximum(size - method.lam, 0)[~on].max(initial=0.0)
    read = method.delta * (state.dual - method.lam * subgradient(state.weight, method.regularizer))
    return float(max(off, np.abs(state.weight - read)[on].max(initial=0.0)) / max(1.0, np.abs(state.dual).max()))


def rate(steps: int, problems: int) -> Iterator[Check]:
    """L(w_k) - L* <= D(w*, w_0) / (tau k), for tau <= 1/(delta l): k counts steps, or fine steps."""
    for name, method in methods(lam=0.3):
        cycle = method.coarse_steps + 1 if isinstance(method, MLLinBreg) else 1
        worst = {"fine steps": 0.0, "all steps": 0.0}
        for number in range(problems):
            problem = Problem(rows=60, inputs=30, nonzero=6, spread=1.0, number=number)
            best, least = problem.optimum
            tau = 1 / problem.smoothness
            seen = states(training(problem, method, tau, steps * cycle))
            first = next(seen)
            bound = distance(first.dual, best, first.weight, method) / tau
            for state in seen:
                gap = float((problem.losses(state.weight) - least).sum())
                worst["all steps"] = max(worst["all steps"], gap * (state.t + 1) / bound)
                if (state.t + 1) % cycle == 0:
                    worst["fine steps"] = max(worst["fine steps"], gap * ((state.t + 1) // cycle) / bound)
        if cycle == 1:
            yield Check("rate 1/k", name, worst["all steps"], "≤ 1", worst["all steps"] <= 1)
            continue
        for what, value in worst.items():
            proved = "no, seen" if what == "fine steps" else "no, fails"
            yield Check("rate 1/k", f"{name}, k counts {what}", value, "≤ 1", value <= 1, proved)


def local(steps: int) -> Iterator[Check]:
    """With the support found, the loss falls by (1 - delta tau mu)^2 a step, mu the least eigenvalue on the support."""
    problem = Problem(rows=80, inputs=40, nonzero=8, number=1)
    a, tau = problem.data[0], 1 / problem.smoothness
    for name, method in methods(lam=1.0):
        run, last = training(problem, method, tau, steps, start=0.0), None
        for state in states(run):
            loss = float(problem.losses(state.weight).sum())
            on = state.weight[0] != 0
            if last is not None and loss < 1e-22 and (on == last[1]).all():
                break
            last = loss, on
        assert last is not None
        slowest = float(np.linalg.eigvalsh(a[:, on].T @ a[:, on] / problem.rows)[0])
        ratio, expected = loss / last[0], (1 - tau * slowest) ** 2
        met = abs(ratio / expected - 1) <= PER_STEP
        yield Check("local rate", f"{name}, {on.sum()} active of 8 true", ratio, f"{expected:.6f} ± 0.1 %", met)


def clock() -> Iterator[Check]:
    """From zero, the first weight wakes in fine step floor(lam / (tau max|g_0|)) + 1; AdaBreg: floor(lam / tau) + 1.

    Fine step first: else the first coarse steps move the duals of the mask that was drawn for the start.
    """
    problem = Problem(rows=60, inputs=40, nonzero=8)
    size, tau = float(np.abs(problem.gradient(np.zeros((1, 40)))).max()), 0.05
    for lam in (0.5, 2.0):
        for name, method in methods(lam=lam, order="fine_first"):
            cycle = method.coarse_steps + 1 if isinstance(method, MLLinBreg) else 1
            yield _woken(problem, method, f"{name}, λ = {lam:g}", tau, math.floor(lam / (tau * size)) * cycle + 1)
        adam = AdaBreg(control="fixed", lam=lam, start_density=0.3)
        yield _woken(problem, adam, f"adabreg, λ = {lam:g}", 0.03, math.floor(lam / 0.03) + 1)


def _woken(problem: Problem, method: LinBreg, where: str, tau: float, expected: int) -> Check:
    run = training(problem, method, tau, expected + 1, start=0.0)
    found = next((state.t + 1 for state in states(run) if state.weight.any()), 0)
    return Check("activation clock", where, found, f"= {expected}", found == expected)


def every(quick: bool) -> list[Check]:
    """All checks; `quick` takes fewer steps and problems."""
    return [
        *descent(20 if quick else 200),
        *rate(5 if quick else 30, 1 if quick else 5),
        *local(1500),
        *clock(),
    ]
