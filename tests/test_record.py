import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dstbench.suite import record, schema
from dstbench.suite.plan import Run
from records import ended

RUN = Run("rigl", "digits/mlp", 0.9, data="0" * 12)


def test_a_written_record_is_read_back(tmp_path: Path) -> None:
    written = record.empty(RUN, "error", "it broke", "line 1\nline 2")
    path = record.write(written, tmp_path)
    found = json.loads(path.read_text())
    assert path == tmp_path / "records" / f"{RUN.key}-1-{found['digest'][:8]}.json"
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert found["digest"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert record.read(path) == schema.filled(written)
    assert record.load(tmp_path) == ([schema.filled(written)], [])


def test_the_skeleton_has_every_block() -> None:
    found = record.empty(RUN, "skipped", "no")
    assert found["id"]["key"] == RUN.key and found["id"]["hyperparameters"] == {} and found["schema"] == 1
    assert found["status"] == {"name": "skipped", "reason": "no", "traceback": ""}
    blocks = ["params", "score", "sparsity", "flops", "time", "energy", "memory", "curve", "hashes", "machine", "code"]
    assert all(found[b] is None for b in blocks)
    assert found.keys() == {*blocks, "schema", "id", "status", "stamps"}
    with pytest.raises(ValueError, match="status is 'fine'"):
        record.empty(RUN, "fine")


def test_a_new_attempt_is_a_new_file_and_the_newest_counts(tmp_path: Path) -> None:
    for attempt, status in enumerate(["timeout", *["error"] * 9, "ok"], 1):
        assert record.number(record.write(ended(RUN, status), tmp_path)) == attempt
    assert record.finished(record.load(tmp_path)[0]) == {RUN.key: "ok"}, "11 comes after 9"
    assert record.attempts(tmp_path, RUN.key) == list(range(1, 12))


def test_attempts_are_counted_from_the_highest(tmp_path: Path) -> None:
    first, second = (record.write(record.empty(RUN), tmp_path) for _ in range(2))
    first.unlink()
    assert record.number(record.write(record.empty(RUN), tmp_path)) == 3 and second.exists()


def test_interrupted_is_not_done(tmp_path: Path) -> None:
    record.write(record.empty(RUN, "interrupted"), tmp_path)
    assert record.finished(record.load(tmp_path)[0]) == {} and len(record.load(tmp_path)[0]) == 1


def good() -> dict[str, Any]:
    return ended(RUN)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (f"{RUN.key}-2.json", "{", "not JSON"),
        (f"{RUN.key}-2.json", "", "not JSON"),
        (f"{RUN.key}-2.json", b"\xff\xfe", "not UTF-8"),
        ("notes.json", "{}", "not a record"),
        (f"{RUN.key}-2.json", "[1]", "not a record"),
        (f"{RUN.key}-2.json", json.dumps({**good(), "schema": 99}), "schema 99 is newer than 1"),
        (f"{RUN.key}-2.json", json.dumps({**good(), "status": None}), "status is NoneType"),
        (f"{RUN.key}-2.json", json.dumps({**good(), "status": {"name": "fine"}}), "status.reason is None"),
        ("0123456789ab-1.json", json.dumps(good()), "named for '0123456789ab'"),
    ],
)
def test_foreign_files_are_set_aside_and_the_others_load(tmp_path: Path, name: str, text: Any, reason: str) -> None:
    record.write(good(), tmp_path)
    path = record.folder_of(tmp_path) / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    records, ((where, why),) = record.load(tmp_path)
    assert [r["status"]["name"] for r in records] == ["ok"] and where == path and reason in why


def test_no_folder_is_no_records(tmp_path: Path) -> None:
    assert record.load(tmp_path / "none") == ([], [])


def test_a_failed_write_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(record.Unwritable, match=f"{RUN.key} cannot be written: disk full"):
        record.write(good(), tmp_path)
    monkeypatch.undo()
    assert not list(record.folder_of(tmp_path).iterdir()), "no temporary file is left"
    assert record.number(record.write(good(), tmp_path)) == 1


def test_numbers_that_json_lacks_are_refused_and_odd_values_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write({**good(), "score": {"test": float("nan")}}, tmp_path)
    path = record.write({**good(), "params": {"method": {"where": Path("/x")}}}, tmp_path)
    assert record.read(path)["params"]["method"]["where"] == str(Path("/x"))


def test_stale_records_are_those_of_another_source() -> None:
    def of(method: str, source: str | None, **more: str) -> dict[str, Any]:
        run = Run(method, "t", data=f"{source}{more}")
        return {**record.empty(run), "code": {"method_source": source, **more} if source else None}

    records = [of("a", "old"), of("a", "new"), of("b", "any"), of("a", None)]
    records += [of("a", "new", task_source="old"), of("a", "new", task_source="new")]
    keys = [r["id"]["key"] for r in records]
    assert record.stale(records, {"method": {"a": "new"}}) == {keys[0]}
    assert record.stale(records, {"method": {"a": "new"}, "task": {"t": "new"}}) == {keys[0], keys[4]}
    assert record.stale(records, {"method": {}, "task": {"other": "new"}}) == set()


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]} if value == 1 else [value]
    return value


def broken(how: str) -> dict[str, Any]:
    found = good()
    if how in ("deep", "endless"):
        found["params"] = {"method": nested(20 if how == "deep" else 100_000)}
    elif how == "large":
        found["curve"] = {name: [1.0] * 1000 for name in ("step", "loss", "density", "valid")}
    elif how == "key":
        found["id"]["seed"] = 7
    elif how == "budget":
        found["id"] |= {"budget": 1e-13}
    else:
        found["id"] |= {"hyperparameters": nested(19)}
    return found


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("deep", "params is nested deeper than 20 levels"),
        ("deep id", "id is nested deeper than 20 levels"),
        ("endless", "the record is nested deeper than 20 levels"),
        ("large", "curve is 0 MiB; a whole record has 0 at most"),
        ("key", "the identity is not the one"),
        ("budget", "id.budget is 1e-13"),
    ],
)
def test_nothing_is_written_that_would_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    monkeypatch.setattr(record, "LARGEST", 10_000)
    with pytest.raises(ValueError, match=why):
        record.write(broken(how), tmp_path)
    assert not record.folder_of(tmp_path).exists()


def test_the_bounds_of_depth_and_size_are_those_of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for levels in range(10, 25):
        found = {**good(), "params": {"method": nested(levels)}}
        try:
            path = record.write(found, tmp_path)
        except ValueError:
            assert levels > 16
        else:
            assert levels < 18 and record.read(path)["params"]["method"] == found["params"]["method"]
    for bytes_ in range(1500, 4000, 100):
        monkeypatch.setattr(record, "LARGEST", bytes_)
        try:
            path = record.write(good(), tmp_path)
        except ValueError:
            continue
        assert record.read(path)["id"]["key"] == RUN.key
