"""Ratios to dense of the same machine and kernel; what may be ranked; the tables beside accuracy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dstbench.reports import costs, ledger
from dstbench.reports.load import frame
from records import make


def timed(records):
    return costs.ratios(costs.timed(frame(records)))


def seconds(method, level, seed, train, machine="a" * 12, shared=False, resumed=0, **more):
    blocks = {"time": {"train": train}, "machine": {"name": machine}, "stamps": {"shared": shared, "resumed": resumed}}
    return make(method, level, seed, **(blocks | more))


def pick(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_flops_are_means_of_cells_and_dense_is_at_every_level():
    records = [make("dense", None), make("rigl", 0.9), make("rigl", 0.9, 1, flops={"ratio": 0.3}), make("rigl", 0.95)]
    board = costs.flops(frame(records))
    row = pick(board, method="rigl", sparsity=0.9)
    assert row["ratio"] == pytest.approx(0.2) and row["papers"] == pytest.approx(0.08) and row["n"] == 2
    assert row["inference"] == pytest.approx(0.1) and row["source"] == "masks"
    assert len(board[board["method"] == "dense"]) == 2
    assert costs.flops(frame([make(status="error"), make(status="off_target", seed=1)])).empty
    text = ledger.flops_table(board).markdown()
    assert "One multiply-add = 2 FLOPs" in text and "÷ dense (papers)" in text and "self-reported" not in text


def test_time_is_compared_within_one_machine_and_setting():
    records = [seconds("dense", None, s, 4.0) for s in range(2)]
    records += [seconds("dense", None, 2, 40.0, "b" * 12), seconds("dense", None, 0, 1.0, id={"kernel": "sparse"})]
    records += [seconds("rigl", 0.9, 0, 2.0), seconds("rigl", 0.9, 2, 20.0, "b" * 12)]
    records += [seconds("rigl", 0.9, 0, 2.0, id={"kernel": "sparse"}), seconds("rigl", 0.9, 1, 3.0, "c" * 12)]
    board = timed(records)
    sparse = board[board["method"] == "rigl"]
    by_kernel = sparse[sparse["setting"].str.contains("sparse")]
    assert list(by_kernel["ratio"]) == [2.0]
    masked = sparse[sparse["setting"].str.contains("masked")]
    assert pick(masked, machine="a" * 12)["ratio"] == 0.5 and pick(masked, machine="b" * 12)["ratio"] == 0.5
    alone = pick(masked, machine="c" * 12)
    assert math.isnan(alone["ratio"]) and "dense reference missing on this machine" in alone["note"]
    assert math.isnan(alone["rank"])


def test_ranks_and_the_dense_reference():
    records = [seconds("dense", None, 0, 4.0), seconds("rigl", 0.9, 0, 2.0), seconds("set", 0.9, 0, 1.0)]
    board = timed(records)
    assert pick(board, method="set")["rank"] == 1 and pick(board, method="rigl")["rank"] == 2
    assert math.isnan(pick(board, method="dense")["rank"]) and pick(board, method="dense")["ratio"] == 1
    assert pick(board, method="rigl")["simulated"] and not pick(board, method="dense")["simulated"]


@pytest.mark.parametrize(("how", "why"), [({"shared": True}, "ran beside other runs"), ({"resumed": 2}, "resumed")])
def test_shared_and_resumed_runs_are_shown_but_not_ranked(how, why):
    records = [seconds("dense", None, 0, 4.0), seconds("rigl", 0.9, 0, 2.0, **how), seconds("set", 0.9, 0, 1.0)]
    row = pick(timed(records), method="rigl")
    assert (row["value"], row["ratio"], row["note"]) == (2.0, 0.5, why) and math.isnan(row["rank"])
    assert pick(timed(records), method="set")["rank"] == 1
    text = ledger.ratio_table(timed(records), "time", "Training time", "s", ["n"]).markdown()
    assert f"not ranked: {why}; simulated sparsity" in text and "seconds" in text


def test_clean_runs_of_a_cell_are_used_alone():
    records = [seconds("dense", None, 0, 4.0), seconds("rigl", 0.9, 0, 2.0), seconds("rigl", 0.9, 1, 9.0, shared=True)]
    row = pick(timed(records), method="rigl")
    assert (row["n"], row["ratio"], row["note"], row["rank"]) == (1, 0.5, "", 1)


def test_a_shared_dense_reference_leaves_nothing_to_rank():
    records = [seconds("dense", None, 0, 4.0, shared=True), seconds("rigl", 0.9, 0, 2.0)]
    row = pick(timed(records), method="rigl")
    assert row["note"] == "dense reference ran beside other runs" and math.isnan(row["rank"]) and row["ratio"] == 0.5


def entry(component, source, joules, shared=False, note=""):
    return {
        "component": component,
        "source": source,
        "joules": joules,
        "scope": "machine",
        "shared": shared,
        "note": note,
    }


def test_energy_is_one_source_at_a_time():
    def energy(cpu, modelled):
        return [entry("cpu_package", "measured:rapl", cpu, True, "needs root"), entry("ops", "modelled:ops", modelled)]

    stamps = {"shared": True}
    records = [
        make("dense", None, energy=energy(10.0, 4.0), stamps=stamps),
        make("rigl", energy=energy(None, 1.0), stamps=stamps),
    ]
    records.append(make("set", energy=[*energy(5.0, 2.0), entry("cpu_package", "estimated:cpu-time", 3.0)]))
    tables = costs.energy(frame(records), records)
    assert list(tables) == [
        ("cpu_package", "estimated:cpu-time", "machine"),
        ("cpu_package", "measured:rapl", "machine"),
        ("ops", "modelled:ops", "machine"),
    ]
    measured = costs.ratios(tables["cpu_package", "measured:rapl", "machine"])
    assert set(measured["method"]) == {"dense", "set"} and pick(measured, method="set")["ratio"] == 0.5
    assert measured["rank"].isna().all()
    modelled = costs.ratios(tables["ops", "modelled:ops", "machine"])
    assert pick(modelled, method="rigl")["rank"] == 1 and pick(modelled, method="rigl")["ratio"] == 0.25
    assert not modelled["simulated"].any()
    shown = ledger.costs(frame(records), records, costs.flops(frame(records)), timed(records), timed(records))
    text = "\n".join(table.markdown() for table in shown)
    assert "1 of 3 readings failed" in text and "needs root" in text and "Energy of ops, modelled:ops" in text
    assert len({table.name for table in shown}) == len(shown)


def test_memory_ratio():
    records = [make("dense", None), make("rigl", 0.9)]
    board = costs.ratios(costs.remembered(frame(records), "training_state"))
    assert pick(board, method="rigl")["ratio"] == pytest.approx(0.1) and pick(board, method="rigl")["rank"] == 1


def test_no_runs_and_no_blocks_make_empty_boards():
    for records in ([], [make(status="error")], [make(time=None, memory=None, flops=None)]):
        runs = frame(records)
        assert costs.flops(runs).empty and costs.ratios(costs.timed(runs)).empty
        assert costs.ratios(costs.remembered(runs, "peak_over_start")).empty and not costs.energy(runs, records)


def test_failures_name_status_reason_and_last_line():
    records = [make(), make("set", status="error"), make("linbreg", status="off_target", sparsity=0.9)]
    records[1]["status"] |= {"reason": "RuntimeError", "traceback": "a\nb\nValueError: last words\n"}
    records[2]["status"]["reason"] = "achieved 0.5"
    records.append(make("nan", score={"test": math.nan}))
    table = ledger.failures(frame(records), records)
    assert len(table.rows) == 3
    text = table.markdown()
    assert (
        "| error | RuntimeError · ValueError: last words |" in text
        and "| off_target | achieved 0.5 | 90.00 % |" in text
    )
    assert "| diverged | the test metric is not finite |" in text


def test_machines_versions_methods_stale_and_files():
    records = [make(seed=s) for s in range(2)] + [
        make("set", machine={"name": "b" * 12, "cpu": "other"}),
        make("x", status="oom"),
    ]
    records.append(make("y", machine=None, code=None))
    machines = ledger.machines(records)
    assert [row[0].text for row in machines.rows] == ["a" * 12, "b" * 12]
    assert machines.rows[0][-1].text == "3" and "8 GiB" in machines.markdown()
    assert "| torch | 2.15.0 | 4 |" in ledger.versions(records).markdown()
    names = {"rigl": {"family": "dynamic", "citation": "Evci et al. 2020"}}
    records[2]["params"] = {**(records[2].get("params") or {}), "own_tuning": True}
    found = ledger.methods(frame(records), names, records)
    assert "| dynamic | rigl | the task's | Evci et al. 2020 |" in found.markdown()
    assert [row[1].text for row in found.rows] == ["rigl", "set", "x", "y"] and found.rows[1][2].text == "own"
    assert [row[0].text for row in found.rows] == ["dynamic", "–", "–", "–"], "a sorted row keeps its family"
    assert [row[0].style for row in found.rows] == ["strong", "strong", "muted", "muted"]
    runs = frame(records, {records[0]["id"]["key"]})
    assert len(ledger.stale(runs).rows) == 1 and "--retry stale" in ledger.stale(runs).markdown()
    assert "| a.json | why |" in ledger.files("f", "F", [(Path("x/a.json"), "why")], "note").markdown()


def test_remarks_on_fairness():
    layers = {"fc1": {"kernel": "masked", "fallback": "5-D weight"}}
    records = [make(), make(seed=1, params={"recipe": {"steps": 9}}), make("set", params={"own_tuning": True})]
    records.append(make("linbreg", task="digits/vit"))
    records[-1]["sparsity"]["layers"] = layers
    text = ledger.fallbacks(frame(records), records).markdown()
    assert "layer fc1 fell back to masked: 5-D weight" in text and "recipe.steps differs between runs: 3, 9" in text
    assert "| set | own tuning" in text and text.count("| digits/vit |") == 1
