"""Checks of how many weights are read: on target, in every Layer, and exact under ties and zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from dstbench.suite.achieved import GRAIN, slack
from dstbench.suite.checks.subject import STEPS, Recorded, Subject, Watch, active, after_optimizer, few
from dstbench.suite.train import Training

MIDDLE = STEPS // 2 - 1  # on the recipe's period the step of an update


def density_is_on_target(subject: Subject) -> str:
    """After the last step as many weights are read as a run of this sparsity may end with (`achieved.slack`)."""
    return _missed(subject.run)


def density_is_near_target(subject: Subject) -> str:
    """The same, or within a unit of the method's structure: a small network has few."""
    method, found = subject.run.training.method, active(subject.run.training.model.layers)
    return "" if abs(found - _wanted(subject.run.training)) <= method.grain else _missed(subject.run)


def _wanted(training: Training) -> int:
    return round((1 - training.method.sparsity) * training.model.maskable)


def _missed(run: Recorded) -> str:
    method = run.training.method
    wanted, found = _wanted(run.training), active(run.training.model.layers)
    if not method.sparse or abs(found - wanted) <= slack(wanted, method.grain):
        return ""
    text = f"{found} weights are active after the last step, the target is {wanted}: "
    if abs(found - wanted) <= method.grain:
        return f"{text}a `grain` ({method.grain}) excuses {GRAIN:.0%} of the target at most, runs will be off_target"
    return f"{text}cut once more before the run ends"


def no_layer_is_empty(subject: Subject) -> str:
    """Every Layer keeps a weight, or the network is cut in two."""
    empty = [layer.name for layer in subject.run.training.model.layers if not layer.nnz()]
    return (
        f"no weight is left in {', '.join(empty)}: keep one at least (dstbench.methods.allocate does)" if empty else ""
    )


def counts_are_exact_under_ties(subject: Subject) -> str:
    """All initial weights of a Layer equal in size: the number of active ones is that of any other run."""
    training = subject.training(ready=False)
    for layer in training.model.layers:
        sign = torch.where(layer.weight < 0, -1.0, 1.0)
        layer.assign(sign * layer.weight.abs().mean())
    training.setup()
    return _same_counts(subject, Recorded.of(training), "with weights of equal size")


def counts_are_exact_under_zeros(subject: Subject) -> str:
    """Weights set to zero, by half or all: the number of active ones is that of any other run.

    Where all are zero many gradients are too: a method that reads what is not zero may then read less for a while.
    """
    found = (_same_counts(subject, run, how, share) for share, how, run in _zeroed(subject))
    return next(filter(None, found), "")


def _zeroed(subject: Subject) -> Iterator[tuple[float, str, Recorded]]:
    """Runs in which this share of every Layer becomes zero; how it became so."""
    for share, words in ((0.5, "half of the weights"), (1.0, "all weights")):
        training = subject.training()
        yield share, f"with {words} zero before step {MIDDLE}", Recorded.of(training, before=_at_middle(share))
        training = subject.training()
        after_optimizer(training, _from_middle(training, share))
        yield share, f"with {words} zero after the optimiser, from step {MIDDLE} on", Recorded.of(training)
    if _stays_at_zero(subject):
        return
    training = subject.training(ready=False)
    _zero(training, 1.0)
    training.setup()
    yield 1.0, "with all initial weights zero", Recorded.of(training)


def _stays_at_zero(subject: Subject) -> bool:
    """Whether dense training, too, leaves whole Layers of the network at zero, as in a ViT: nothing grows there."""
    training = replace(subject, name="dense").training(ready=False)
    _zero(training, 1.0)
    training.setup()
    training.run()
    return not all(bool(layer.weight.any()) for layer in training.model.layers)


def _at_middle(share: float) -> Watch:
    def disturb(training: Training, t: int) -> None:
        if t == MIDDLE:
            _zero(training, share)

    return disturb


def _from_middle(training: Training, share: float) -> Callable[[], None]:
    done: list[int] = []

    def disturb() -> None:
        if training.t >= MIDDLE and (share < 1 or not done):
            done.append(training.t)
            _zero(training, share)

    return disturb


def _zero(training: Training, share: float) -> None:
    """Set this share of the weights of every Layer to zero."""
    rng = torch.Generator().manual_seed(1)
    for layer in training.method.layers:
        gone = torch.rand(layer.shape, generator=rng) < share
        layer.assign(layer.weight.masked_fill(gone.to(layer.parameter.device), 0))


def _same_counts(subject: Subject, run: Recorded, how: str, share: float = 0.0) -> str:
    method = run.training.method
    most = slack(_wanted(run.training), method.grain) if method.grain > 1 else 1
    pairs = enumerate(zip(run.counts, subject.run.counts, strict=True))
    off = ((t, a, b) for t, (a, b) in pairs if a - b > most or (b - a > most and share < 1))
    wrong = [f"{a} weights at step {t} {how}, {b} otherwise" for t, a, b in off]
    if not wrong and not _missed(subject.run) and (missed := _missed(run)):
        wrong = [f"{how} {missed}"]
    mend = ": take exactly k of the largest scores (dstbench.methods.allocate.top), never those above a threshold"
    return few(wrong) + mend if wrong else ""
