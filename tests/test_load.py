"""Records are read, upgraded, checked; what cannot be read is named and the rest loads."""

from __future__ import annotations

import json
import math

import pytest

from dstbench.reports.load import frame, load
from dstbench.suite import schema
from dstbench.suite.schema import FIELDS, upgrade, validate
from records import make


def put(folder, record, attempt=1, name=None):
    records = folder / "records"
    records.mkdir(parents=True, exist_ok=True)
    path = records / (name or f"{record['id']['key']}-{attempt}.json")
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def reasons(loaded):
    return {path.name: reason for path, reason in loaded.set_aside}


def test_no_folder_is_no_records(tmp_path):
    loaded = load(tmp_path / "nowhere")
    assert (loaded.records, loaded.set_aside, loaded.superseded) == ([], [], [])
    assert frame([]).empty and "score.test" in frame([])


def test_the_newest_attempt_counts_and_older_ones_are_named(tmp_path):
    for attempt, test in ((2, 0.8), (10, 0.7), (9, 0.6)):
        put(tmp_path, make(test=test), attempt)
    loaded = load(tmp_path)
    assert [record["score"]["test"] for record in loaded.records] == [0.7]
    assert [path.name.split("-")[1] for path, _ in loaded.superseded] == ["2.json", "9.json"]
    assert all("-10.json" in reason for _, reason in loaded.superseded)


def test_the_runs_of_given_keys_alone_and_all_that_was_set_aside(tmp_path):
    records = [make(seed=seed) for seed in range(3)]
    for record in records:
        put(tmp_path, record), put(tmp_path, record, 2)
    put(tmp_path, "{", name="00000000000a-1.json")
    wanted = {record["id"]["key"] for record in records[:2]}
    loaded = load(tmp_path, wanted)
    assert {record["id"]["key"] for record in loaded.records} == wanted and len(loaded.set_aside) == 1
    assert {path.name[:12] for path, _ in loaded.superseded} == wanted
    assert load(tmp_path, ()).records == [] and len(load(tmp_path).records) == 3


def test_bad_files_are_set_aside_and_the_others_load(tmp_path):
    good = put(tmp_path, make())
    put(tmp_path, '{"schema": 1', name="00000000000a-1.json")
    put(tmp_path, "[1]", name="00000000000b-1.json")
    put(tmp_path, '{"schema": 2}', name="00000000000c-1.json")
    put(tmp_path, '{"x": 2}', name="00000000000d-1.json")
    put(tmp_path, make(seed=1), name="00000000000e-1.json")
    put(tmp_path, "hello", name="notes.txt")
    put(tmp_path, "{", name=".00000000000f-1.json.tmp")
    put(tmp_path, "[" * 100_000, name="000000000010-1.json")
    (tmp_path / "records" / "000000000011-1.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / "records" / "000000000012-1.json").mkdir()
    put(tmp_path, '{"schema": 0}', name="000000000013-1.json")
    loaded = load(tmp_path)
    assert [record["file"] for record in loaded.records] == [good.name]
    found = reasons(loaded)
    expected = {
        "00000000000a-1.json": "corrupt: ",
        "00000000000b-1.json": "holds list",
        "00000000000c-1.json": "schema 2 is newer than 1",
        "00000000000d-1.json": "schema is None",
        "00000000000e-1.json": "named for '00000000000e'",
        "notes.txt": "its name is not",
        ".00000000000f-1.json.tmp": "did not finish",
        "000000000010-1.json": "corrupt: ",
        "000000000011-1.json": "not UTF-8",
        "000000000012-1.json": "unreadable",
        "000000000013-1.json": "too old",
    }
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        assert part in found[name], (name, found[name])


def test_older_schemas_are_upgraded_step_by_step(monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA", 3)
    monkeypatch.setattr(
        schema, "UPGRADES", {1: lambda r: {**r, "path": "one"}, 2: lambda r: {**r, "path": r["path"] + " two"}}
    )
    assert upgrade({"schema": 1}) == {"schema": 3, "path": "one two"}
    assert upgrade({"schema": 3}) == {"schema": 3}
    with pytest.raises(ValueError, match="no upgrade to schema 1"):
        upgrade({"schema": 0})
    with pytest.raises(ValueError, match="upgrade dstbench"):
        upgrade({"schema": 4})
    for wrong in (None, "1", True, 1.0):
        with pytest.raises(ValueError, match="whole number"):
            upgrade({"schema": wrong})


@pytest.mark.parametrize("block", sorted(FIELDS))
def test_each_block_is_checked_field_by_field(block):
    for field, types in FIELDS[block].items():
        record = make()
        validate(record)
        record[block][field] = object()
        with pytest.raises(ValueError, match=rf"{block}\.{field}"):
            validate(record)
        if type(None) not in types:
            del record[block][field]
            with pytest.raises(ValueError, match=rf"{block}\.{field} is None"):
                validate(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": {"name": "fine"}}, "status.name is 'fine'"),
        ({"status": None}, "status is NoneType"),
        ({"score": None}, "the block score is null"),
        ({"sparsity": None}, "the block sparsity is null"),
        ({"energy": {"a": 1}}, "energy is dict"),
        ({"energy": [{"component": "cpu"}]}, "energy.0..joules|energy.0..source"),
        ({"energy": [3]}, "energy.0. is int"),
        ({"curve": {"loss": [1.0]}}, "lengths"),
        ({"curve": {"loss": [1.0, "x"]}}, "curve holds"),
        ({"curve": {"loss": [1.0, 10**400]}}, "curve holds"),
        ({"flops": {"total": 10**400}}, "expected a number from 0 to 1e.300"),
        ({"flops": {"total": True}}, "flops.total is True"),
        ({"sparsity": {"layers": {"fc1": 3}}}, "fc1"),
    ],
)
def test_contradictions_are_named(change, message):
    record = make()
    for name, value in change.items():
        record[name] = record[name] | value if isinstance(value, dict) and isinstance(record[name], dict) else value
    with pytest.raises(ValueError, match=message):
        validate(record)


def test_failed_records_may_lack_every_block():
    for status in ("diverged", "timeout", "oom", "error", "interrupted", "skipped"):
        record = make(status=status) | dict.fromkeys(("machine", "code", "stamps"))
        validate(record)
        row = frame([record]).iloc[0]
        assert math.isnan(row["score.test"]) and row["outcome"] in ("failed", "crashed", "missing")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("ok", "counted"), ("diverged", "failed"), ("collapsed", "failed"), ("timeout", "crashed"),
     ("oom", "crashed"), ("error", "crashed"), ("off_target", "missing"),
     ("interrupted", "missing"), ("skipped", "missing")],
)  # fmt: skip
def test_outcomes(status, outcome):
    assert frame([make(status=status)]).loc[0, "outcome"] == outcome


def test_outcome_follows_the_figures_not_only_the_word():
    assert (
        frame([make(sparsity=0.9) | {"sparsity": make()["sparsity"] | {"on_target": False}}]).loc[0, "outcome"]
        == "missing"
    )
    for value in (math.nan, math.inf, None):
        assert frame([make(score={"test": value})]).loc[0, "outcome"] == "failed"


def test_frame_columns():
    table = frame([make(), make("dense", None)], stale={make()["id"]["key"]})
    assert list(table["dense"]) == [False, True]
    assert list(table["stale"]) == [True, False]
    assert math.isnan(table.loc[1, "sparsity"]) and table["flops.total"].dtype == float
    assert set(table["setting"]) == {"budget 1 · fp32 · masked · cpu · 1 thread"}


def test_a_precision_left_to_the_recipe_is_the_recipes():
    known = make(id={"precision": None}, params={"recipe": {"precision": "bf16"}})
    unknown = make(id={"precision": None}, params=None)
    shown = [setting.split(" · ")[1] for setting in frame([known, unknown])["setting"]]
    assert shown == ["bf16", "precision of the recipe"]


def test_runs_that_must_not_be_averaged_get_names_that_differ():
    changed = make(id={"hyperparameters": {"drop": 0.5, "alpha": 1, "sparsity": 0.9}})
    assert list(frame([make(), changed])["method"]) == ["rigl", "rigl(alpha=1, drop=0.5)"]
    versions = frame([make(), make(id={"method_version": 2}), make("set")])
    assert list(versions["method"]) == ["rigl v1", "rigl v2", "set"]
    recipes = frame([make(), make(id={"recipe": {"steps": 9, "lr": {"sgd": 1}}})])
    assert list(recipes["task"]) == ["digits/mlp", "digits/mlp(lr={'sgd': 1}, steps=9)"]
    tasks = frame([make(), make(id={"data": "e" * 12}), make(task="digits/vit")])
    assert list(tasks["task"]) == ["digits/mlp v1 data " + "d" * 12, "digits/mlp v1 data " + "e" * 12, "digits/vit"]
    assert frame([make(), make(id={"kernel": "compact", "threads": 2})])["setting"].nunique() == 2
