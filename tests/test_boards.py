"""Cells and standings: what counts, what is missing, who is ranked, who shares a tie group."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dstbench.reports import costs
from dstbench.reports.boards import cells, levels, reference, standing, ties
from dstbench.reports.load import frame
from dstbench.reports.sections import by_sparsity, cell_table, leaderboard
from records import make

TASKS = ("digits/mlp", "digits/vit")


def grid(**methods):
    """Records of three seeds on two tasks at 90 and 95 %; methods: name -> accuracy, spread over seeds by 0.01."""
    found = [make("dense", None, s, 0.9 + 0.01 * (s - 1), task=t) for t in TASKS for s in range(3)]
    for name, test in methods.items():
        for task in TASKS:
            for level in (0.9, 0.95):
                found += [make(name, level, s, test + 0.01 * (s - 1), task=task) for s in range(3)]
    return found


def pick(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def replace(records, status, **where):
    """The records with those that match run again to another status."""
    return [
        make(r["id"]["method"], r["id"]["sparsity"], r["id"]["seed"], status=status, task=r["id"]["task"])
        if all(r["id"][k] == v for k, v in where.items())
        else r
        for r in records
    ]


def test_a_cell_is_the_t_interval_of_its_seeds():
    row = pick(cells(frame(grid(rigl=0.8))), task="digits/mlp", sparsity=0.9, method="rigl")
    assert (row["n"], row["state"], row["failed"], row["missing"]) == (3, "ok", 0, 0)
    assert row["mean"] == pytest.approx(0.8)
    assert row["half"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3))
    assert row["retention"] == pytest.approx((0.8 - 0.1) / (0.9 - 0.1))
    assert row["seeds"] == pytest.approx({0: 0.69 / 0.8, 1: 0.7 / 0.8, 2: 0.71 / 0.8})


def test_dense_counts_at_every_level_and_once_where_there_is_none():
    table = cells(frame(grid(rigl=0.8)))
    assert len(table[table["method"] == "dense"]) == 4
    assert pick(table, task="digits/vit", sparsity=0.95, method="dense")["retention"] == pytest.approx(1)
    alone = cells(frame(grid()))
    assert len(alone) == 2 and alone["sparsity"].isna().all() and (alone["n"] == 3).all()
    assert len(levels(frame(grid()))) == 6


def test_a_task_only_dense_ran_leaves_others_complete():
    board = standing(cells(frame([*grid(rigl=0.8), make("dense", None, 0, task="digits/resnet")])))
    assert pick(board, method="rigl")["rank"] == 1


def test_a_failed_run_counts_as_chance_and_a_failed_cell_counts_0():
    records = replace(grid(rigl=0.8), "diverged", method="rigl", task="digits/mlp", sparsity=0.95)
    records = replace(records, "collapsed", method="rigl", task="digits/vit", sparsity=0.95, seed=1)
    table = cells(frame(records))
    whole = pick(table, task="digits/mlp", sparsity=0.95, method="rigl")
    assert (whole["state"], whole["retention"], whole["retention_half"], whole["n"]) == ("failed", 0, 0, 3)
    assert math.isnan(whole["mean"])
    part = pick(table, task="digits/vit", sparsity=0.95, method="rigl")
    assert part["mean"] == pytest.approx((0.79 + 0.1 + 0.81) / 3) and part["failed"] == 1
    assert part["retention"] == pytest.approx((0.69 + 0 + 0.71) / 0.8 / 3)
    row = pick(standing(table), method="rigl")
    assert row["rank"] == 1 and row["retention"] == pytest.approx((0.875 * 2 + 0 + part["retention"]) / 4)


def test_a_wholly_failed_cell_of_one_seed_still_leaves_an_interval():
    records = [r for r in grid(rigl=0.8) if not (r["id"]["sparsity"] == 0.95 and r["id"]["task"] == "digits/mlp")]
    records.append(make("rigl", 0.95, 0, status="diverged"))
    row = pick(standing(cells(frame(records))), method="rigl")
    assert row["cells"] == 4 and row["half"] > 0


@pytest.mark.parametrize("status", ["error", "oom", "timeout", "diverged", "collapsed"])
def test_a_method_whose_only_run_failed_is_shown_failed_and_never_ranked(status):
    worse_than_chance = make("set", 0.9, 0, 0.05)
    records = [make("dense", None, 0, 0.9), worse_than_chance, make("bug", 0.9, status=status)]
    table = cells(frame(records))
    row = pick(table, method="bug")
    assert (row["state"], row["statuses"], row["reason"]) == ("failed", f"1 {status}", f"{status}: because")
    board = standing(table)
    assert list(board["method"]) == ["set", "bug", "dense"] and list(board["rank"].dropna()) == [1]
    assert pick(board, method="bug")["why"] == f"1 of 1 failed: {status}: because"
    runs = frame(records)
    for shown in (leaderboard(table, costs.flops(runs), "L"), by_sparsity(table, 0.9), cell_table(table)):
        (line,) = [[cell.text for cell in row] for row in shown.rows if "bug" in [cell.text for cell in row]]
        assert any(text.startswith("failed") for text in line) and not any("±" in text for text in line)
    assert "1 of 1 failed: " in leaderboard(table, costs.flops(runs), "L").text()
    assert (status in ("error", "oom", "timeout")) == math.isnan(row["retention"])


@pytest.mark.parametrize("status", ["error", "oom", "timeout"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_crash_says_nothing_of_a_method_so_its_cell_lacks_that_run(status, seeds):
    records = grid(rigl=0.8, set=0.7)
    for seed in range(seeds):
        records = replace(records, status, method="rigl", task="digits/mlp", sparsity=0.9, seed=seed)
    table = cells(frame(records))
    row = pick(table, task="digits/mlp", sparsity=0.9, method="rigl")
    assert (row["n"], row["failed"], row["crashed"]) == (3 - seeds, 0, seeds)
    assert row["state"] == ("failed" if seeds == 3 else "incomplete") and len(row["seeds"]) == 3 - seeds
    board = standing(table)
    assert pick(board, method="set")["rank"] == 1 and math.isnan(pick(board, method="rigl")["rank"])
    assert pick(board, method="rigl")["why"] == f"1 of 4 cells {row['state']}: {status}: because"
    # What did end is not lowered by what did not.
    assert pick(board, method="rigl")["retention"] == pytest.approx(0.875, abs=0.01)


def test_a_cell_of_diverged_and_crashed_runs_is_failed_but_no_result():
    records = replace(grid(rigl=0.8), "diverged", method="rigl", task="digits/mlp", sparsity=0.9)
    table = cells(frame(replace(records, "error", method="rigl", task="digits/mlp", sparsity=0.9, seed=2)))
    assert pick(table, task="digits/mlp", sparsity=0.9, method="rigl")["statuses"] == "2 diverged, 1 error"
    why = pick(standing(table), method="rigl")["why"]
    assert why == "1 of 4 cells failed: diverged: because (and 1 other reason)"


def test_nothing_ended_of_a_method_though_not_all_of_it_was_run():
    records = [r for r in grid(rigl=0.8) if r["id"]["sparsity"] == 0.9 or r["id"]["method"] != "rigl"]
    records += [make("set", level, 0, 0.7) for level in (0.9, 0.95)]
    records = replace(records, "diverged", method="rigl")
    row = pick(standing(cells(frame(records))), method="rigl")
    assert row["failed"] and row["why"] == "6 of 6 failed: diverged: because" and math.isnan(row["rank"])


def test_a_run_off_target_did_end():
    found = [make("rigl", 0.9, 0, status="off_target"), make("rigl", 0.9, 1, status="error"), make("dense", None)]
    assert pick(cells(frame(found)), method="rigl")["state"] == "incomplete"
    found[0] = make("rigl", 0.95, 0, status="off_target")
    assert pick(standing(cells(frame(found))), method="rigl")["why"] == "1 of 2 cells failed: error: because"


@pytest.mark.parametrize("status", ["off_target", "interrupted", "skipped"])
def test_a_missing_run_makes_its_cell_incomplete_and_its_method_unranked(status):
    records = replace(grid(rigl=0.8, set=0.7), status, method="rigl", task="digits/mlp", sparsity=0.9, seed=2)
    table = cells(frame(records))
    row = pick(table, task="digits/mlp", sparsity=0.9, method="rigl")
    assert (row["state"], row["n"], row["missing"]) == ("incomplete", 2, 1)
    board = standing(table)
    assert (
        math.isnan(pick(board, method="rigl")["rank"])
        and "1 of 4 cells incomplete" in pick(board, method="rigl")["why"]
    )
    assert pick(board, method="set")["rank"] == 1


def test_a_method_with_a_cell_nobody_ran_is_unranked_but_shown():
    records = [r for r in grid(rigl=0.8, set=0.7) if (r["id"]["method"], r["id"]["sparsity"]) != ("set", 0.95)]
    table = cells(frame(records))
    assert pick(table, task="digits/mlp", sparsity=0.95, method="set")["state"] == "missing"
    row = pick(standing(table), method="set")
    assert math.isnan(row["rank"]) and row["why"] == "2 of 4 cells missing" and (row["cells"], row["of"]) == (2, 4)
    assert pick(standing(table[table["sparsity"] == 0.9]), method="set")["rank"] == 2


def test_without_dense_there_is_no_retention_and_no_rank():
    records = [r for r in grid(rigl=0.8) if r["id"]["method"] != "dense"]
    board = standing(cells(frame(records)))
    assert board["rank"].isna().all() and board["why"].str.contains("no dense reference for digits/mlp").all()
    other = [make("dense:adam", None, s) for s in range(2)]
    assert reference(frame(other)) == "dense:adam" and reference(frame([*other, make("dense", None)])) == "dense"
    assert reference(frame([])) is None


def test_failed_dense_runs_do_not_lower_the_reference():
    records = replace(grid(rigl=0.8), "diverged", method="dense", seed=0)
    row = pick(cells(frame(records)), task="digits/mlp", sparsity=0.9, method="rigl")
    assert row["retention"] == pytest.approx(0.7 / (0.905 - 0.1))


def scattered(spread=0.001, seeds=3, **methods):
    """As `grid`, with an independent spread of each method, and dense at 0.9."""
    rng = np.random.default_rng(0)
    found = [make("dense", None, s, 0.9, task=t) for t in TASKS for s in range(seeds)]
    for name, test in methods.items():
        for task in TASKS:
            for level in (0.9, 0.95):
                found += [make(name, level, s, test + spread * rng.normal(), task=task) for s in range(seeds)]
    return found


def test_order_and_tie_groups():
    table = cells(frame(scattered(rigl=0.8, set=0.7, static=0.7, snip=0.3)))
    board = standing(table)
    ranked = board[~board["dense"]]
    assert list(ranked["method"])[::3] == ["rigl", "snip"] and list(ranked["rank"]) == [1, 2, 3, 4]
    assert list(ranked["group"]) == [1, 2, 2, 3] and math.isnan(pick(board, method="dense")["group"])
    group, found = ties({m: table[table["method"] == m] for m in ("snip", "set", "rigl")})
    assert group == {"rigl": 1, "set": 2, "snip": 3}
    assert list(found) == [("rigl", "set"), ("rigl", "snip"), ("set", "snip")]
    gap = pick(board, method="rigl")["retention"] - pick(board, method="set")["retention"]
    assert found["rigl", "set"].mean == pytest.approx(gap) and found["rigl", "set"].pairs == 12


def test_a_comparison_is_at_the_level_of_all_methods_and_its_error_that_of_the_median_pair_or_more():
    table = cells(frame(scattered(0.01, rigl=0.8, set=0.7, static=0.69)))
    seeds = {name: np.array([list(c.values()) for c in part["seeds"]]) for name, part in table.groupby("method")}
    errors = {}
    for pair in (("rigl", "set"), ("rigl", "static"), ("set", "static")):
        gaps = seeds[pair[0]] - seeds[pair[1]]
        errors[pair] = math.sqrt((gaps.var(1, ddof=1) / 3).sum()) / 4
    _, found = ties({m: table[table["method"] == m] for m in ("rigl", "set", "static")})
    for pair, difference in found.items():
        assert difference.error == pytest.approx(max(errors[pair], np.median(list(errors.values()))))
        assert difference.half == pytest.approx(stats.t.ppf(1 - 0.05 / 3 / 2, difference.df) * difference.error)


def test_methods_that_all_seeds_move_alike_are_not_told_apart_without_any_spread():
    board = standing(cells(frame(grid(rigl=0.8, set=0.7, static=0.7))))
    assert list(board["rank"].dropna()) == [1, 2, 2] and list(board["group"].dropna()) == [1, 1, 1]


def test_one_seed_tells_nothing_apart():
    records = [r for r in grid(rigl=0.8, set=0.5) if r["id"]["seed"] == 0]
    board = standing(cells(frame(records)))
    assert pick(board, method="set")["group"] == 1 and math.isnan(pick(board, method="rigl")["half"])
    note = "\n".join(leaderboard(cells(frame(records)), costs.flops(frame(records)), "L").notes)
    assert "cannot be tested" in note


def test_the_leaderboard_shows_tie_groups_and_what_would_be_seen():
    records = scattered(rigl=0.8, set=0.3)
    board = leaderboard(cells(frame(records)), costs.flops(frame(records)), "L")
    assert board.headers[-1] == "tie group" and [row[-1].text for row in board.rows] == ["1", "2", "reference"]
    (note,) = [n for n in board.notes if n.startswith("Tie group")]
    assert "Bonferroni over 2 methods" in note and "points of retention would be seen with 80 % power" in note


def test_lower_is_better_ranks_by_retention():
    score = {"metric": "perplexity", "higher_is_better": False, "chance": 100.0}
    records = [
        make(m, s, 0, 0.5, score=score | {"test": v})
        for m, s, v in (("dense", None, 20.0), ("a", 0.9, 30.0), ("b", 0.9, 60.0))
    ]
    board = standing(cells(frame(records)))
    assert list(board["method"][:2]) == ["a", "b"] and board["retention"][1] == pytest.approx(0.5)


def test_stars_only_from_six_seeds():
    def stars(seeds):
        records = [make("dense", None, s, 0.9) for s in range(seeds)] + [
            make("rigl", 0.9, s, 0.8) for s in range(seeds)
        ]
        return pick(cells(frame(records)), method="rigl")["star"]

    assert stars(5) == "" and stars(6) == "*"


def test_settings_are_never_mixed():
    table = cells(frame([make(test=0.8), make(test=0.6, id={"kernel": "compact"}), make("dense", None)]))
    assert sorted(table.loc[table["method"] == "rigl", "mean"]) == [0.6, 0.8]
    assert table["setting"].nunique() == 2 and table.loc[table["mean"] == 0.6, "retention"].isna().all()


def test_no_runs():
    assert cells(frame([])).empty and standing(cells(frame([]))).empty


def test_leaderboard_text_names_the_rule_the_costs_and_the_unranked():
    records = replace(grid(rigl=0.8, set=0.7), "skipped", method="set", task="digits/mlp", sparsity=0.9)
    runs = frame(records)
    text = leaderboard(cells(runs), costs.flops(runs), "Leaderboard").markdown()
    assert "| 1 | rigl | 87.5 ± " in text and "4/4" in text and "0.075" in text and "0.060" in text
    assert "not ranked: 1 of 4 cells missing" in text and "3/4" in text
    assert "Satterthwaite" in text and "One multiply-add = 2 FLOPs" in text


def test_accuracy_board_and_cell_table_show_what_failed_and_what_is_stale():
    records = replace(grid(rigl=0.8, set=0.7, static=0.6), "timeout", method="set", task="digits/mlp", sparsity=0.95)
    records = replace(records, "error", method="static", task="digits/mlp", sparsity=0.95, seed=0)
    records = replace(records, "off_target", method="static", task="digits/vit", sparsity=0.95)
    stale = next(r["id"]["key"] for r in records if r["id"]["method"] == "rigl" and r["id"]["sparsity"] == 0.95)
    table = cells(frame(records, {stale}))
    text = by_sparsity(table, 0.95).markdown()
    assert (
        "| failed (3 timeout) |" in text
        and "n=2, 1 error" in text
        and "missing (3 off_target)" in text
        and "n=3, 1 stale" in text
    )
    assert "digits/mlp, accuracy %" in text and "80.0 ± 2.5 (n=3)" in text
    shown = cell_table(table)
    assert len(shown.rows) == len(table) == 16
    assert any("cannot go below p = 0.25" in note for note in shown.notes)
