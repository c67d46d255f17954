"""The example package, and plugin files: installed, from outside the repository, in worker processes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstbench.suite import record, registry, scaffold, sources
from dstbench.suite.check import check
from dstbench.suite.plan import Run
from dstbench.suite.run import execute

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "dstbench-example"
PIP = ("install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")  # pip leaves build/ and egg-info where it builds
    command = [sys.executable, "-m", "pip", *PIP, "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package installed for this process alone; its folder may be edited."""
    shutil.copytree(site, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    yield tmp_path / "site" / "dstbench_example"
    for name in [name for name in sys.modules if name.split(".")[0] == "dstbench_example"]:
        del sys.modules[name]


def dstbench(site: Path, folder: Path, *arguments: object) -> str:
    """What the command prints, called from `folder`, outside the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_all.py"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_package_is_listed_with_its_distribution(site: Path, tmp_path: Path) -> None:
    for what, name in (("methods", "example_method"), ("tasks", "example_task")):
        rows = {row["name"]: row for row in json.loads(dstbench(site, tmp_path, "list", what, "--json"))}
        assert rows[name]["origin"] == "dstbench-example 0.1.0" and not rows[name]["broken"]
        assert rows["rigl" if what == "methods" else "digits/mlp"]["origin"] == "built-in"


@pytest.mark.slow
def test_it_stands_on_the_board_beside_built_ins_and_a_file(site: Path, tmp_path: Path) -> None:
    """In worker processes; the file is given relative to another folder than its own."""
    file, _ = scaffold.write("method", "of_a_file", tmp_path / "plugins")
    methods = ["dense", "rigl", "example_method", "of_a_file"]
    options = ["--methods", ",".join(methods), "--tasks", "example_task", "--sparsity", "0.9", "--seeds", "0"]
    options += ["--budget", "0.4", "--jobs", "1", "--plugin", "../plugins/of_a_file.py"]
    said = dstbench(site, tmp_path / "here", *options)
    board = said[said.index("Leaderboard") :]
    assert all(f" {name} " in board for name in methods), said
    found = {r["id"]["method"]: r for r in record.load(tmp_path / "here" / "results")[0]}
    assert [found[name]["status"]["name"] for name in methods] == ["ok"] * 4
    origins = [found[name]["code"]["distribution"] for name in methods[2:]]
    assert origins == ["dstbench-example 0.1.0", f"plugin {file}"]
    for name in methods:
        assert found[name]["id"]["method_version"] == 1 and len(found[name]["code"]["method_source"]) == 12


@pytest.mark.slow
def test_the_package_passes_the_check(site: Path, tmp_path: Path) -> None:
    for name in ("example_method", "example_task"):
        said = dstbench(site, tmp_path, "check", name)
        assert "BAD" not in said and said.splitlines()[-1].startswith(f"{name}: ")


@pytest.mark.slow
def test_the_package_s_method_passes_the_check(installed: Path) -> None:
    verdicts = check("example_method")
    assert verdicts and all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]


def test_without_noise_it_is_rigl(installed: Path, tmp_path: Path) -> None:
    hashes = []
    for name, given in (("rigl", {}), ("example_method", {"noise": 0.0}), ("example_method", {})):
        execute(Run(name, "example_task", 0.9, budget=0.3, hyperparameters=given).to_json(), str(tmp_path / "r"))
        key = Run(name, "example_task", 0.9, budget=0.3, hyperparameters=given).key
        (path,) = (tmp_path / "r" / "records").glob(f"{key}-*.json")
        hashes.append(record.read(path)["hashes"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_edit_makes_the_records_of_an_installed_method_stale(installed: Path, tmp_path: Path) -> None:
    run = Run("example_method", "example_task", 0.9, budget=0.1)
    execute(run.to_json(), str(tmp_path))
    records, _ = record.load(tmp_path)
    before, code = sources.hashes(records), records[0]["code"]
    assert code["method_source"] == before["method"]["example_method"]
    assert code["task_source"] == before["task"]["example_task"] and not record.stale(records, before)
    (installed / "method.py").write_text((installed / "method.py").read_text().replace("0.5", "0.4"))
    after = sources.hashes(records)
    assert after["task"] == before["task"] and record.stale(records, after) == {run.key}


def test_an_edit_makes_the_records_of_an_installed_task_stale(installed: Path, tmp_path: Path) -> None:
    run = Run("example_method", "example_task", 0.9, budget=0.1)
    execute(run.to_json(), str(tmp_path))
    records, _ = record.load(tmp_path)
    before = sources.hashes(records)
    (installed / "task.py").write_text((installed / "task.py").read_text() + "# another task is no other method\n")
    after = sources.hashes(records)
    assert after["method"] == before["method"] and record.stale(records, after) == {run.key}
    older = [{**r, "code": {k: v for k, v in r["code"].items() if k != "task_source"}} for r in records]
    assert record.stale(older, after) == set(), "records of older versions know no source of the task"


def test_an_edit_makes_the_records_of_a_file_stale(tmp_path: Path) -> None:
    file, _ = scaffold.write("method", "of_a_file", tmp_path)
    run = Run("of_a_file", "digits/mlp", 0.9, budget=0.1, plugins=(str(file),))
    execute(run.to_json(), str(tmp_path))
    records, _ = record.load(tmp_path)
    assert not record.stale(records, sources.hashes(records, [file]))
    file.write_text(file.read_text().replace("alpha: float = 0.3", "alpha: float = 0.2"))
    assert record.stale(records, sources.hashes(records, [file])) == {run.key}


def test_the_folder_in_docs_is_clean() -> None:
    tracked = {"README.md", "pyproject.toml", *(f"dstbench_example/{n}.py" for n in ("__init__", "method", "task"))}
    files = {str(p.relative_to(EXAMPLE)) for p in EXAMPLE.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    assert files == tracked
    points = (EXAMPLE / "pyproject.toml").read_text()
    assert 'dstbench.methods"]\nexample_method = ' in points and 'dstbench.tasks"]\nexample_task = ' in points
    assert registry.KINDS.keys() == {"method", "task"}
