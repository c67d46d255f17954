"""Checks of what a method spends outside the pass."""

from __future__ import annotations

from functools import partial

from dstbench.suite.checks.subject import Subject, around_begin, around_step, few
from dstbench.suite.meters.flops import FlopMeter
from dstbench.suite.train import Training


def work_outside_the_pass_is_charged(subject: Subject) -> str:
    """Products that `begin`, `step` and `finish` dispatch, hidden passes too, are at most what the method charges.

    Of operations without a formula it is only known that they cost something.
    """
    training, wrong = subject.training(), list[str]()
    meters: list[FlopMeter] = []
    charged: list[int] = []

    def start(training: Training, t: int) -> None:
        charged.append(training.method.charged)
        meters.append(FlopMeter())
        meters[-1].__enter__()

    def stop(where: str, training: Training, t: int) -> None:
        meters[-1].__exit__(None, None, None)
        spent, booked = meters[-1].total, training.method.charged - charged[-1]
        call = where if where == "finish" else f"{where}({t})"
        if meters[-1].uncounted and booked <= spent:
            names = ", ".join(meters[-1].uncounted)
            wrong.append(f"{call} calls {names}, whose FLOPs are not known, and does not charge them: call self.charge")
        elif spent > booked:
            wrong.append(
                f"{call} computes {spent} FLOPs and charges {booked}: call self.charge, or leave it to the pass"
            )

    for around, name in ((around_begin, "begin"), (around_step, "step")):
        training = subject.training()
        with around(training, before=start, after=partial(stop, name)):
            training.run()
    start(training, training.t)
    training.method.finish()
    stop("finish", training, training.t)
    return few(wrong)


def every_operation_is_counted(subject: Subject) -> str:
    """No pass of the network dispatches a product whose FLOPs nobody knows."""
    found = subject.run.training.model.uncounted
    calls = [f"{name} ({count} call{'s' * (count > 1)} a pass)" for name, count in found.items()]
    mend = "give a formula by torch.utils.flop_counter.register_flop_formula"
    return f"FLOPs are not counted of {few(calls)}: {mend}" if calls else ""


def overhead(subject: Subject) -> str:
    """The share of training time that `begin` and `step` take; said, never judged."""
    clock = subject.run.training.clock.block(subject.run.training.t, simulated=True)
    share = clock["overhead"] / max(clock["train"], 1e-9)
    return f"begin and step take {100 * share:.0f} % of the training time here, optimiser included"
