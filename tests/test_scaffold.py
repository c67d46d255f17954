"""`dstbench new`: what it writes is clean, passes its own test and the check, and nothing is ever overwritten."""

from __future__ import annotations

import fnmatch
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dstbench import cli
from dstbench.suite import registry, scaffold
from dstbench.suite.plugins import CONTRACT

ROOT = Path(__file__).parents[1]
NAMES = {"method": "my_first_method", "task": "tumours"}


@pytest.fixture
def written(tmp_path: Path) -> dict[str, list[Path]]:
    return {kind: scaffold.write(kind, name, tmp_path / "new") for kind, name in NAMES.items()}


def test_the_files_are_a_plugin_and_its_test(written: dict[str, list[Path]], tmp_path: Path) -> None:
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        ["my_first_method.py", "test_my_first_method.py", "tumours.py", "test_tumours.py"]
    )
    method = registry.find("method", "my_first_method", [written["method"][0]]).load()
    task = registry.task("tumours", [written["task"][0]])
    assert (method.__name__, type(task).__name__) == ("MyFirstMethod", "Tumours")
    assert method.contract == type(task).contract == CONTRACT  # type: ignore[attr-defined]
    built = registry.method("my_first_method", [written["method"][0]], sparsity=0.5)
    assert built.hyperparameters() == {"sparsity": 0.5, "budget": 1.0, "alpha": 0.3, "stop": 0.75}
    for line in ("Passes:", "FLOPs:", "Defaults:", "Reference:"):
        assert f"\n    {line} " in method.__doc__


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_the_files_are_clean_by_our_settings(
    written: dict[str, list[Path]], tmp_path: Path, command: list[str]
) -> None:
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", "pyproject.toml", str(tmp_path / "new")]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_the_files_pass_their_own_test_from_anywhere(written: dict[str, list[Path]], tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written[kind][1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("kind", [pytest.param("method", marks=pytest.mark.slow), "task"])
def test_the_files_pass_the_check(written: dict[str, list[Path]], kind: str) -> None:
    result = CliRunner().invoke(cli.app, ["check", str(written[kind][0])])
    assert result.exit_code == 0 and "BAD" not in result.output, result.output
    assert result.output.splitlines()[-1].startswith(f"{NAMES[kind]}: ")


@pytest.mark.parametrize("kind", NAMES)
def test_the_advice_is_commands_that_work(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["new", kind, NAMES[kind], "--folder", "a b"], prog_name="dstbench")
    file, test = f"a b/{NAMES[kind]}.py", f"a b/test_{NAMES[kind]}.py"
    assert result.exit_code == 0 and f"wrote '{file}' and '{test}'" in result.output
    first, run, report = (shlex.split(line) for line in result.output.splitlines()[2:])
    both = {"method": ["pytest", test, "#", "begins", "with", "the", "whole", "of:"], "task": ["pytest", test]}
    check = ["dstbench", "check", file]
    assert first == ([*both[kind], *check] if kind == "method" else [*check, "&&", *both[kind]])
    found = CliRunner().invoke(cli.app, [*run[1:], "--dry-run"])
    assert found.exit_code == 0 and f"{len(run[run.index('--methods') + 1].split(',')) * 2} runs" in found.output
    assert report == ["dstbench", "report", "--plugin", file]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("metod", "mine", "nothing to make as 'metod'; did you mean method?"),
        ("method", "My-Method", "'My-Method' cannot name a file and a class.*such as my_method$"),
        ("method", "two words", "such as two_words$"),
        ("task", "digits/mine", "such as digits_mine$"),
        ("task", "../mine", "such as mine$"),
        ("method", "9lives", "such as my_9lives$"),
        ("method", "lambda", "such as my_lambda$"),
        ("method", "_", "such as my$"),
        ("method", "", "such as my$"),
        ("method", "rigl", r"'rigl' is the name of a method already \(built-in\); try my_rigl$"),
        ("task", "rigl", "'rigl' is the name of a method already"),
        ("task", "torch", r"'torch' is the name of a module that torch\.py would hide; try my_torch$"),
        ("method", "method", "'method' would make a class Method, a name that the file imports; try my_method$"),
        ("task", "iterator", "a class Iterator"),
    ],
)
def test_a_name_that_will_not_do_is_refused(kind: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(scaffold.Refused, match=message):
        scaffold.write(kind, name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_offered_will_do(tmp_path: Path) -> None:
    assert all(path.exists() for name in ("my", "my_9lives") for path in scaffold.write("method", name, tmp_path))


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_nothing_is_overwritten(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    result = CliRunner().invoke(cli.app, ["new", "method", "mine", "--folder", str(tmp_path)])
    assert result.exit_code == 2 and f"error: {tmp_path / there}: there already" in result.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "mine")]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(scaffold.Refused, match=r"cannot be written: .*--folder DIR"):
        scaffold.write("task", "mine", tmp_path / "file" / "deeper")


def test_the_templates_are_installed_with_the_package() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dstbench.suite"]
    files = [str(p.relative_to(ROOT / "suite")) for p in (ROOT / "suite" / "templates").iterdir()]
    assert len(files) == 4 and all(any(fnmatch.fnmatch(file, glob) for glob in globs) for file in files)
