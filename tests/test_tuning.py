"""The tuning command: equal trials, the choice, the table, and that the recipes follow docs/tuning.md."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.tuning import GRID, Row, Trial, main, rows, table, trials
from dstbench.suite import registry

DOCS = Path(__file__).parents[1] / "docs" / "tuning.md"


def test_both_kinds_have_the_same_number_of_trials():
    listed = trials(["digits/mlp", "digits/vit"], 3, 1.0, None)
    assert len(GRID["sgd"]) == len(GRID["adam"]) and len(set(listed)) == len(listed) == 2 * 2 * len(GRID["sgd"]) * 3
    for kind, rates in GRID.items():
        assert {t.lr for t in listed if t.kind == kind} == set(rates)


def test_the_best_mean_is_chosen_and_the_smaller_rate_among_equals():
    scores = {0.01: (0.8, 0.9), 0.03: (0.9, 0.9), 0.1: (0.95, 0.85), 0.3: (math.nan, 1.0)}
    done = [(Trial("digits/mlp", "sgd", lr, seed), s) for lr, pair in scores.items() for seed, s in enumerate(pair)]
    found = list(rows([*done, (Trial("digits/mlp", "adam", 1.0, 0), 0.2)]))
    assert [row.lr for row in found if row.best] == [0.03, 1.0]
    assert found[3].mean == 0.5  # the diverged trial counts nothing
    assert "| digits/mlp | sgd | 0.3 | 50.00 | diverged, 100.0 |" in table(found)
    assert table(found).count("chosen") == 2


def test_where_lower_is_better_the_least_is_chosen_and_shown_as_it_is():
    scores = {0.01: 2.5, 0.03: 1.9, 0.1: 1.9, 0.3: math.nan}
    found = list(rows((Trial("text/gpt_tiny", "adam", lr, 0), score) for lr, score in scores.items()))
    assert [row.lr for row in found if row.best] == [0.03]
    assert "| text/gpt_tiny | adam | 0.03 | 1.9000 | 1.900 | chosen |" in table(found)
    assert "| text/gpt_tiny | adam | 0.3 | inf | diverged |  |" in table(found)


def test_a_trial_trains_with_the_rate_it_is_given():
    good, none = (Trial("digits/mlp", "sgd", lr, 0, 0.1).run() for lr in (0.1, 1e-9))
    assert good > 0.75 and none < 0.4
    assert Trial("digits/mlp", "sgd", 0.1, 0, 0.1).run() == good


def test_divergence_is_not_a_number():
    assert math.isnan(Trial("digits/mlp", "sgd", 1e9, 0, 0.1).run())


@pytest.mark.slow
def test_command_prints_rows(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.tuning.GRID", {"sgd": (0.1,), "adam": (1e-3,)})
    arguments = ["--tasks", "digits/mlp", "--seeds", "1", "--budget", "0.02"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["task"], r["kind"], r["lr"]) for r in found] == [
        ("digits/mlp", "sgd", 0.1),
        ("digits/mlp", "adam", 1e-3),
    ]


@pytest.mark.slow
def test_command_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.tuning.GRID", {"sgd": (0.1,), "adam": (1e-3,)})
    assert main(["--tasks", "digits/mlp", "--seeds", "1", "--budget", "0.02"]) == 0
    out = capsys.readouterr().out
    assert "| digits/mlp | sgd | 0.1 |" in out and "torch" in out


@pytest.mark.parametrize("name", ["digits/mlp", "digits/resnet", "digits/vit"])
def test_recipes_have_the_rates_that_the_docs_show_as_chosen(name):
    chosen = re.findall(rf"\| {name} \| (\w+) \| ([\d.e-]+) \|.*chosen \|", DOCS.read_text())
    assert {kind: float(lr) for kind, lr in chosen} == dict(registry.task(name).recipe.lr)


def test_the_docs_rows_choose_the_best_mean():
    found = re.findall(r"\| (\S+) \| (\w+) \| ([\d.e-]+) \| ([\d.]+) \| [^|]* \| (chosen)? *\|", DOCS.read_text())
    assert len(found) == 3 * sum(map(len, GRID.values()))
    for task, kind in {(row[0], row[1]) for row in found}:
        group = [Row(t, k, float(lr), (float(v),), bool(c)) for t, k, lr, v, c in found if (t, k) == (task, kind)]
        assert {row.lr for row in group} == set(GRID[kind])
        assert [row.mean for row in group if row.best] == [max(row.mean for row in group)]
