"""Theory, executed: what is proved of LinBreg as checks, and a study of stochastic gradients that the papers lack.

`python -m benchmarks.theory` writes docs/theory.md and its figure, in under half an hour on two cores; `--quick` takes
seconds and writes nothing. Prose outside the page's two marks is left as it is. Exit code 1: a proved claim is not met.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.theory_checks import Check, every
from benchmarks.theory_study import Trace, across, cells, log_mean, text, traces

PAGE = Path(__file__).parents[1] / "docs" / "theory.md"
FIGURE = "figures/theory-stochastic.svg"
BEGIN, END = "<!-- begin: written by python -m benchmarks.theory -->", "<!-- end -->"
GROUPED = ("descent inequality", "dual and weight fit", "loss never rises", "frozen duals stand still")


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def check_rows(found: Iterable[Check]) -> Iterator[list[str]]:
    """A row a check; of a claim about many settings, the worst one a row."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in found:
        groups.setdefault((check.claim, check.proved, "" if check.claim in GROUPED else check.setting), []).append(
            check
        )
    for (claim, proved, _), part in groups.items():
        worst = max(part, key=lambda c: c.measured)
        where = worst.setting if len(part) == 1 else f"{len(part)} settings, the worst: {worst.setting}"
        verdict = "holds" if all(c.met for c in part) else "fails"
        yield [claim, where, f"{worst.measured:.6g}", worst.against, proved, verdict]


def constant_rows(found: Iterable[Trace]) -> Iterator[list[str]]:
    """Least squares with a constant step: plateau, prediction, active weights."""
    for t in found:
        if t.cell.problem.kind == "least_squares" and not t.cell.decay:
            active = f"{t.active[t.late].mean():.1f}"
            awake = bool((t.active[-1] >= t.cell.problem.nonzero).all())
            floor = f"{np.log10(t.cell.floor.mean()):.2f}" if awake else "–"
            plateau = log_mean(t.plateau)
            yield [f"{t.cell.m}", f"{t.cell.noise:g}", f"{t.cell.tau:g}", text(plateau), floor, active]


def decay_rows(found: Iterable[Trace], kind: str) -> Iterator[list[str]]:
    """Runs of one kind of problem: the last gap, its exponents, active weights."""
    for t in found:
        if t.cell.problem.kind == kind and (t.cell.decay or kind == "logistic"):
            exponent = text(t.exponent()) if t.cell.decay else "–"
            row = [f"{t.cell.m}", f"{t.cell.noise:g}", f"{t.cell.decay:g}", text(log_mean(t.gaps[-1])), exponent]
            row += [text(t.slope()), f"{t.active[-1].mean():.1f}", f"{t.wait:g}"]
            yield row if kind == "least_squares" else [row[0], *row[2:]]


def verdicts(found: Sequence[Trace]) -> Iterator[str]:
    """One line a claim about stochastic gradients and m: what was found, and whether it agrees with theory for SGD."""
    squares = [t for t in found if t.cell.problem.kind == "least_squares"]
    tau = max(t.cell.tau for t in squares)
    for m in sorted({t.cell.m for t in squares}):
        own = [t for t in squares if t.cell.m == m and not t.cell.decay]
        by_noise = across([t for t in own if t.cell.tau == tau], "noise")
        word = "holds" if abs(by_noise.mean - 2) <= max(by_noise.half, 0.1) else "fails"
        yield f"m = {m}, constant step: plateau ∝ noise^{text(by_noise)}, theory 2: {word}."
        one = [t for t in own if t.cell.noise == 1] if len({t.cell.tau for t in own if t.cell.noise == 1}) > 1 else []
        if one:
            by_rate = across(one, "tau")
            yield f"m = {m}, constant step: plateau ∝ τ^{text(by_rate)} from τ = 0.1 to 0.3, theory about 1."
        for t in squares:
            if t.cell.m == m and t.cell.decay:
                a, label = t.exponent(), f"noise {t.cell.noise:g}, rate ∝ k^-{t.cell.decay:g}"
                word = "holds" if abs(a.mean - 1) <= max(a.half, 0.1) else "fails"
                if t.early < 1:
                    word = (
                        f"no test of it: all true weights were active throughout the fit in {t.early:.0%} of the runs"
                    )
                yield f"m = {m}, {label}: gap ∝ rate^{text(a)}, theory 1: {word}."


def figure(found: Sequence[Trace], path: Path) -> None:
    """Mean gap of least squares against steps: a column for each noise, a row for each schedule, a line for each m."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    shown = [t for t in found if t.cell.problem.kind == "least_squares" and t.cell.tau == 0.3]
    noises, decays = sorted({t.cell.noise for t in shown}), (0.0, 0.75)
    with plt.rc_context({"svg.hashsalt": "dstbench", "svg.fonttype": "none", "font.size": 9}):
        size = (3.3 * len(noises), 5.2)
        drawn, axes = plt.subplots(2, len(noises), sharex=True, sharey=True, squeeze=False, figsize=size)
        for row, decay in enumerate(decays):
            for column, noise in enumerate(noises):
                ax = axes[row, column]
                for t in shown:
                    if (t.cell.decay, t.cell.noise) == (decay, noise):
                        logs = np.log10(t.gaps)
                        mean, spread = logs.mean(1), logs.std(1)
                        (line,) = ax.plot(t.steps, 10**mean, label=f"m = {t.cell.m}", linewidth=1.3)
                        low, high = 10 ** (mean - spread), 10 ** (mean + spread)
                        ax.fill_between(t.steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
                        if not decay and not t.cell.m:
                            ax.axhline(t.cell.floor.mean(), color="black", linestyle=":", linewidth=1)
                ax.set(xscale="log", yscale="log")
                rate = f"rate ∝ k^-{decay:g}" if decay else "constant rate"
                ax.set_title(f"noise {noise:g}, {rate}", fontsize=9)
                ax.grid(alpha=0.25)
        for ax in axes[-1]:
            ax.set_xlabel("steps")
        for ax in axes[:, 0]:
            ax.set_ylabel("suboptimality")
        axes[0, 0].legend(frameon=False)
        drawn.tight_layout()
        path.parent.mkdir(exist_ok=True)
        drawn.savefig(path, metadata={"Date": None})
        plt.close(drawn)


def report(checks: Sequence[Check], found: Sequence[Trace], command: str, wall: float) -> str:
    """What stands between the marks of the page."""
    from dstbench.suite import machine

    here, versions = machine.facts(), machine.versions()
    made = f"{date.today()}, `{command}`, {wall / 60:.0f} minutes ({sum(os.times()[:4]) / 60:.1f} of processor time), "
    made += f"{here['cpu']}, {here['cores']} cores, "
    made += f"{platform.system()}, Python {here['python']}, "
    made += ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy", "scipy") if name in versions) + "."
    checked = table(["claim", "setting", "measured", "against", "proved", "verdict"], check_rows(checks))
    constant = table(
        ["m", "noise", "τ", "log10 of the plateau", "SGD on the true support", "active, 10 are true"],
        constant_rows(found),
    )
    tail = ["log10 of the last gap", "a: gap ∝ rate^a", "b: gap ∝ k^b", "active at the end", "true ones found by step"]
    decaying = table(["m", "noise", "decay", *tail], decay_rows(found, "least_squares"))
    logistic = table(["m", "decay", *tail], decay_rows(found, "logistic"))
    lines = "\n".join(f"- {line}" for line in verdicts(found))
    return "\n\n".join([made, "### Checks", checked, "### Least squares, constant step", constant,
                        "### Least squares, decaying step", decaying, "### Logistic regression, batches of 20 of 400",
                        logistic, "### Beside theory for SGD", lines])  # fmt: skip


def written(page: str, block: str) -> str:
    """The page with the block between its marks; ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE}: the marks {BEGIN!r} and {END!r} are missing; put them where the tables belong")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and the study; print or write the page's tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.theory", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds of each, printed; the page stays")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: all cores)")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    checks = every(options.quick)
    found = list(traces(cells(options.quick), 1 if options.quick else options.jobs))
    command = "python -m benchmarks.theory" + (" --quick" if options.quick else "")
    block = report(checks, found, command, time.monotonic() - started)
    if options.quick:
        print(block)
    else:
        figure(found, PAGE.parent / FIGURE)
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), block), encoding="utf-8")
        print(f"written: {PAGE} and {PAGE.parent / FIGURE}")
    broken = [c for c in checks if (c.proved == "yes" and not c.met) or (c.proved == "must fail" and c.met)]
    for check in broken:
        print(f"not as proved: {check}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
