"""One call of `run`: its exit code, its last lines, and what the report is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dstbench.suite import executors, logs, record
from dstbench.suite.plan import Run
from test_manners import call


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end at once: error for `static`, ok for all others."""

    class Fake:
        def __init__(self, *_: object) -> None: ...

        def run(self, runs: Any, results: Path) -> Any:
            for run in runs:
                status = "error" if run.method == "static" else "ok"
                record.write(record.empty(run, status, "ValueError: no\nluck" if status == "error" else ""), results)
                logs.add(logs.path(results, run.key), "something")
                yield executors.Outcome(run, status, 0.1)

    monkeypatch.setattr(executors, "Local", Fake)


PLAN = ["--tasks", "digits/mlp", "--sparsity", "0.5", "--seeds", "0-1", "--device", "cpu"]


@pytest.mark.usefixtures("fake")
def test_the_last_lines_name_the_failed_runs_and_their_logs() -> None:
    result = call("run", "--methods", "dense,static", *PLAN)
    assert result.exit_code == 1 and "2 error, 2 ok" in result.stdout
    keys = {r["id"]["seed"]: r["id"]["key"] for r in record.load("results")[0] if r["id"]["method"] == "static"}
    assert result.stderr.splitlines() == [
        f"error: static digits/mlp 0.5 seed 0: ValueError: no; log: results/logs/{keys[0]}.log",
        f"error: static digits/mlp 0.5 seed 1: ValueError: no; log: results/logs/{keys[1]}.log",
        "2 of 4 runs ended in error; --retry error repeats them",
    ]
    assert call("run", "--methods", "dense,static", *PLAN).exit_code == 1, "they are still in the plan"
    assert call("run", "--methods", "dense,static", *PLAN, "--exit-zero").exit_code == 0
    healthy = call("run", "--methods", "dense", *PLAN)
    assert healthy.exit_code == 0 and healthy.stderr == ""


@pytest.mark.usefixtures("fake")
def test_the_report_is_over_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from dstbench.reports import page

    asked: list[Any] = []

    def write(results: Path, out: Path, stale: Any, names: Any, keys: Any) -> Any:
        found = [r["id"] for r in record.load(results)[0] if keys is None or r["id"]["key"] in keys]
        asked.append((str(out), sorted({(who["method"], who["task"]) for who in found})))
        return page.Summary("board", out / "index.html", [])

    monkeypatch.setattr(page, "write", write)
    mlp = [("dense", "digits/mlp"), ("static", "digits/mlp")]
    vit = [("dense", "digits/vit")]
    call("run", "--methods", "dense,static", *PLAN)
    assert not asked, "`run` alone writes none"
    call("run", "--methods", "dense", *PLAN[2:], "--tasks", "digits/vit", "--report", "site")
    call("--methods", "dense,static", *PLAN)
    call("--methods", "dense,static", *PLAN, "--all-records")
    call("report")
    call("report", "--tasks", "digits/mlp", "--report", "mine")
    call("report", "--methods", "dense")
    assert asked == [
        ("site", vit),
        ("report", mlp),
        ("report", sorted(mlp + vit)),
        ("report", sorted(mlp + vit)),
        ("mine", mlp),
        ("report", sorted(mlp[:1] + vit)),
    ]
    wrong = call("report", "--methods", "rigl")
    assert (
        wrong.exit_code == 2 and wrong.stderr == "error: --methods: no record is of 'rigl'; there are: dense, static\n"
    )
    none = call("report", "--methods", "static", "--tasks", "digits/vit")
    assert none.exit_code == 2 and "--methods and --tasks: no record in results is of both" in none.stderr


def test_an_older_report_stays_where_there_is_nothing_to_report(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("older")
    record.write(record.empty(Run("m", "t")), tmp_path / "results")
    (path,) = (tmp_path / "results" / "records").iterdir()
    path.write_text("{")
    result = call("report")
    assert result.exit_code == 2 and "no record to report in results, 1 files are set aside" in result.stderr
    assert [p.read_text() for p in (tmp_path / "report").iterdir()] == ["older"]
