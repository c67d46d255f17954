"""Checks of how many weights are read: on target, in every Layer, and exact under ties and zeros."""

from __future__ import annotations

import torch

from suite.checks.subject import STEPS, Recorded, Subject, active, few
from suite.train import Training

TOLERANCE = 0.01  # of the target


def density_is_on_target(subject: Subject) -> str:
    """After the last step as many weights are read as the sparsity says, within 1 % or a unit of the structure."""
    return _missed(subject.run)


def _missed(run: Recorded) -> str:
    method, model = run.training.method, run.training.model
    if not method.sparse:
        return ""
    wanted, found = round((1 - method.sparsity) * model.maskable), active(model.layers)
    slack = max(1, TOLERANCE * wanted, method.grain)
    if abs(found - wanted) <= slack:
        return ""
    return f"{found} weights are active after the last step, the target is {wanted}: cut once more before the run ends"


def no_layer_is_empty(subject: Subject) -> str:
    """Every Layer keeps a weight, or the network is cut in two."""
    empty = [layer.name for layer in subject.run.training.model.layers if not layer.nnz()]
    return f"no weight is left in {', '.join(empty)}: keep one at least (methods.allocate does)" if empty else ""


def counts_are_exact_under_ties(subject: Subject) -> str:
    """All initial weights of a Layer equal in size: the number of active ones is that of any other run."""
    training = subject.training(ready=False)
    for layer in training.model.layers:
        sign = torch.where(layer.weight < 0, -1.0, 1.0)
        layer.assign(sign * layer.weight.abs().mean())
    training.setup()
    return _same_counts(subject, Recorded.of(training), "with weights of equal size")


def counts_are_exact_under_zeros(subject: Subject) -> str:
    """Half of the active weights set to zero in mid-run: the number of active ones is that of any other run."""
    rng = torch.Generator().manual_seed(1)

    def disturb(training: Training, t: int) -> None:
        if t == STEPS // 2 - 1:
            for layer in training.method.layers:
                keep = torch.rand(layer.shape, generator=rng) < 0.5
                layer.assign(layer.weight * keep.to(layer.parameter.device))

    return _same_counts(subject, Recorded.of(subject.training(), disturb=disturb), "with zeros among the weights")


def _same_counts(subject: Subject, run: Recorded, how: str) -> str:
    method = run.training.method
    slack = max(method.grain, 0.01 * run.training.model.maskable if method.grain > 1 else 1)
    pairs = enumerate(zip(run.counts, subject.run.counts, strict=True))
    wrong = [f"{a} weights at step {t} {how}, {b} otherwise" for t, (a, b) in pairs if abs(a - b) > slack]
    mend = ": take exactly k of the largest scores (methods.allocate.top), never those above a threshold"
    return few(wrong) + mend if wrong else _missed(run)
