"""The command of docs/theory.md: its measures against closed forms, its checks at small sizes, its page."""

import math
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks import theory, theory_checks
from benchmarks.theory_checks import Check, distance, norms, states, subgradient, training
from benchmarks.theory_study import LEAST_SQUARES, Cell, Trace, across, cells, joined
from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.tasks.convex import Problem

CELL = Cell(replace(LEAST_SQUARES, outputs=3), 0, 1.0, 0.3, 0.0, 40, 200)


def trace(gap, **changes):
    """A trace of 3 replicates whose gaps are given as a function of step, and differ by a factor."""
    cell = replace(CELL, steps=1000, **changes)
    steps = np.array(cell.looks)
    gaps = np.stack([gap(steps) * factor for factor in (1.0, 1.1, 0.9)], 1)
    return Trace(cell, steps, gaps, np.ones_like(gaps), steps[:, None] >= [0, 90, 2000])


def test_distances_are_those_of_the_mirror_map():
    method = LinBreg(lam=0.3, delta=0.5, control="fixed")
    a, b = np.array([[1.0, 0, -2]]), np.array([[0.5, 1, 0]])
    v = b / 0.5 + 0.3 * np.sign(b)
    expected = 0.3 * (3 - 1.5) + (5 - 1.25) / (2 * 0.5) - (v * (a - b)).sum()
    assert distance(v, a, b, method) == pytest.approx(expected)
    rows = np.array([[3.0, 4], [0, 0]])
    assert norms(rows, "row").tolist() == [[5 / math.sqrt(2)] * 2, [0, 0]]
    np.testing.assert_allclose(subgradient(rows, "row"), math.sqrt(2) * rows / 5)


def test_states_are_those_of_linbreg():
    problem = Problem(rows=30, inputs=10, nonzero=2)
    method = MLLinBreg(m=1, control="fixed", lam=0.2, start_density=0.5)
    found = list(states(training(problem, method, 0.1, 4)))
    assert [s.t for s in found] == [-1, 0, 1, 2, 3] and [s.fine for s in found[1:]] == [False, True, False, True]
    for old, new in ((found[1], found[2]), (found[3], found[4])):
        np.testing.assert_allclose(new.dual, old.dual - 0.1 * problem.gradient(old.weight), atol=1e-14)
    for s in found:
        np.testing.assert_allclose(s.weight, np.sign(s.dual) * np.maximum(np.abs(s.dual) - 0.2, 0), atol=1e-14)


@pytest.mark.parametrize(
    "make, number", [(lambda: theory_checks.descent(6), 40), (lambda: theory_checks.rate(3, 1), 3)]
)
def test_proved_claims_hold_in_short_runs(make, number):
    found = list(islice(make(), number))
    assert found and all(c.met for c in found if c.proved == "yes"), [c for c in found if not c.met]


def test_a_violated_claim_is_seen():
    """Duals that do not fit their weights."""
    state = theory_checks.State(0, np.array([[1.0, 0.0]]), np.array([[1.2, 0.9]]), True)
    method = LinBreg(lam=0.2, control="fixed")
    assert theory_checks.membership(state, method) == pytest.approx(0.7 / 1.2)


def test_exponents_are_those_of_a_power():
    found = trace(lambda k: 3 * k**-0.5)
    assert found.slope().mean == pytest.approx(-0.5) and found.slope().half == pytest.approx(0, abs=1e-9)
    decaying = trace(lambda k: (1 + k / 10) ** -0.75, decay=0.75)
    assert decaying.exponent().mean == pytest.approx(1)
    by_noise = across([trace(lambda k, n=n: n**2 + 0.0 * k, noise=n) for n in (0.3, 1.0, 3.0)], "noise")
    assert by_noise.mean == pytest.approx(2)
    assert joined([found, found]).gaps.shape[1] == 6


def test_waiting_is_until_all_true_weights_are_active():
    found = trace(lambda k: 1.0 / k)
    assert found.wait == found.steps[found.steps >= 90][0] and found.early == pytest.approx(2 / 3)
    assert replace(found, found=found.found[:, 2:]).wait == math.inf


def test_the_plateau_is_that_of_stochastic_descent_in_a_loop_of_numpy():
    """The closed form against 40,000 steps of SGD on the true support."""
    cell = replace(CELL, problem=Problem(rows=40, inputs=10, outputs=1, nonzero=3))
    a, y, truth = cell.problem.data
    on = truth[0] != 0
    a, w, rng, gaps = a[:, on], truth[0, on].copy(), np.random.default_rng(0), []
    for _ in range(40_000):
        w -= 0.3 * a.T @ (a @ w - y[:, 0] - rng.standard_normal(40)) / 40
        gaps.append(((a @ (w - truth[0, on])) ** 2).mean() / 2)
    assert np.mean(gaps[200:]) == pytest.approx(float(cell.floor[0]), rel=0.05)


def test_a_cell_runs_and_replicates_are_independent_of_how_many_there_are():
    found = replace(CELL, m=3, steps=20).run()
    assert found.gaps.shape == (len(found.steps), 3) and found.active.shape == found.gaps.shape
    assert (found.gaps > 0).all() and found.steps[-1] == 20


def test_the_grid_covers_noise_m_and_decay():
    full = cells(quick=False)
    assert len(full) == len(set(full)) and {c.m for c in full} == {0, 9, 99}
    assert {c.noise for c in full} >= {0.3, 1.0, 3.0} and len(cells(quick=True)) < len(full)


def test_the_page_keeps_its_prose(tmp_path):
    page = f"# Title\n\nprose\n\n{theory.BEGIN}\nold\n{theory.END}\n\nmore\n"
    assert theory.written(page, "new") == f"# Title\n\nprose\n\n{theory.BEGIN}\n\nnew\n\n{theory.END}\n\nmore\n"
    with pytest.raises(ValueError, match=r"the marks .* are missing"):
        theory.written("# Title", "new")


def test_the_published_page_has_no_proved_claim_that_fails():
    page = (Path(theory.__file__).parents[1] / "docs" / "theory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (yes|no, seen|no, fails|must fail) \| (\w+) \|$", page, re.M)
    assert len(rows) > 10
    assert all(verdict == "holds" for proved, verdict in rows if proved == "yes")
    assert (Path(theory.__file__).parents[1] / "docs" / theory.FIGURE).exists()


def test_rows_of_many_settings_show_the_worst():
    checks = [Check("descent inequality", s, x, "≤ 1", x <= 1) for s, x in (("a", 0.1), ("b", 2.0))]
    assert list(theory.check_rows(checks)) == [
        ["descent inequality", "2 settings, the worst: b", "2", "≤ 1", "yes", "fails"]
    ]
