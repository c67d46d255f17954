import subprocess
import sys
from pathlib import Path

import pytest

from dstbench.suite import listing, record
from dstbench.suite.lock import lock
from dstbench.suite.plan import Run
from dstbench.suite.registry import RegistryError
from records import ended


def test_methods_and_tasks_are_listed_without_torch() -> None:
    code = "from dstbench.suite.listing import rows; rows('methods'), rows('tasks')"
    code += "; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_rows() -> None:
    assert next(r["name"] for r in listing.rows("methods")) == "dense"
    assert {r["name"] for r in listing.rows("kernels")} >= {"masked", "compact"}
    assert "digits/mlp" in [r["name"] for r in listing.rows("tasks")]
    with pytest.raises(RegistryError, match="'method'; did you mean methods"):
        listing.rows("method")


def test_a_broken_plugin_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("1 / 0\n")
    assert "ZeroDivisionError: division by zero" in listing.table(listing.rows("methods", [str(tmp_path / "b.py")]))


def test_columns_are_aligned_and_empty_ones_left_out() -> None:
    rows = [{"a": "x", "b": "", "c": 1}, {"a": "long", "b": "", "c": 22}]
    assert listing.table(rows) == "a     c\nx     1\nlong  22"
    assert listing.table([]) == ""


def test_status_counts_what_is_there(tmp_path: Path) -> None:
    assert listing.status(tmp_path).splitlines()[0] == f"no records in {tmp_path}"
    runs = [Run("m", "t", seed=s) for s in range(4)]
    for run, status in zip(runs, ("ok", "ok", "timeout", "interrupted"), strict=True):
        record.write(ended(run, status), tmp_path)
    (record.folder_of(tmp_path) / "odd.json").write_text("{")
    for key in (runs[0].key, runs[3].key, "0" * 12):
        (tmp_path / "work" / key).mkdir(parents=True)
    with lock(tmp_path):
        text = listing.status(tmp_path, [r.key for r in runs])
    lines = text.splitlines()
    assert lines[1].split() == ["ok", "2"] and lines[2].split() == ["timeout", "1"]
    assert any(line.startswith("running: process ") for line in lines)
    assert "begun, not finished: 2" in lines and "left of the plan: 1 of 4" in lines
    assert lines[-1].startswith("set aside: ") and "odd.json: not a record" in lines[-1]
    assert "running: nothing" in listing.status(tmp_path)
