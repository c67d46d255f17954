"""A wheel holds dstbench/ alone, and files of the working directory change nothing, whatever their names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from dstbench.suite import plugins, record, registry

ROOT = Path(__file__).parents[1]
SOURCES = ("dstbench", "suite", "methods", "tasks", "reports", "run_all.py", "pyproject.toml", "README.md", "LICENSE")
PIP = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")
RUN = ["--methods", "dense,rigl", "--tasks", "digits/mlp", "--sparsity", "0.9", "--seeds", "0"]
RUN += ["--budget", "0.05", "--jobs", "1"]
OWN = ("suite", "methods", "tasks", "reports")
NEIGHBOURS = ("torch", "numpy", "random", "typer", "psutil", "multiprocessing", "digits", "dense", "page")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and this environment's packages (but nothing editable) behind it."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *PIP, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", *PIP, str(wheel)], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "behind.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return folder / "env"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory whose packages and modules fail when they are imported."""
    folder = tmp_path / "hostile"
    for name in OWN:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name}')")
    for name in (*NEIGHBOURS, "run_all"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('a neighbour {name}')")
    return folder


def call(command: list[str | Path], folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)


def results(command: list[str | Path], folder: Path, path: Path | None = None) -> dict[str, tuple[object, ...]]:
    """Key -> what the records of a short run hold that must not depend on the folder."""
    done = call([*command, *RUN], folder, path)
    assert done.returncode == 0, done.stdout + done.stderr
    found, set_aside = record.load(folder / "results")
    assert len(found) == 2 and not set_aside
    sources = ("method_source", "task_source")
    return {
        r["id"]["key"]: (r["status"], r["hashes"], r["score"], r["flops"], *(r["code"][s] for s in sources))
        for r in found
    }


def test_the_wheel_holds_dstbench_and_metadata_alone(site: Path) -> None:
    done = call([sys.executable, "-m", "pip", "--python", site / "bin" / "python", "show", "-f", "dstbench"], site)
    head, _, listed = done.stdout.partition("Files:\n")
    files = [line.strip() for line in listed.splitlines()]
    assert {file.split("/")[0] for file in files} == {"dstbench", "dstbench-0.1.0.dist-info", ".."}
    assert [file for file in files if file.startswith("..")] == ["../../../bin/dstbench"]
    places = (p for room in OWN for p in (ROOT / room).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    sources = {"py.typed", "cli.py", "__main__.py"} | {str(p.relative_to(ROOT)) for p in places}
    assert sources <= {file.removeprefix("dstbench/") for file in files}, (
        "a package or its data is missing in pyproject.toml"
    )
    assert "Author: The dstbench authors" in head


@pytest.mark.slow
def test_a_hostile_folder_changes_no_record(site: Path, hostile: Path, tmp_path: Path) -> None:
    """By the wheel's command and from the checkout; `python -m dstbench` starts there too."""
    expected = results([sys.executable, ROOT / "run_all.py", "run"], tmp_path / "clean")
    assert results([site / "bin" / "dstbench"], hostile) == expected
    assert (hostile / "report" / "index.html").stat().st_size > 10_000
    shutil.rmtree(hostile / "results")
    assert results([sys.executable, ROOT / "run_all.py", "run"], hostile) == expected
    listed = call([site / "bin" / "python", "-m", "dstbench", "list", "methods"], hostile)
    assert listed.returncode == 0 and "ml_linbreg" in listed.stdout, listed.stderr


@pytest.mark.slow
def test_packages_of_our_folders_names_on_the_search_path_are_left_alone(site: Path, tmp_path: Path) -> None:
    """PYTHONPATH goes before installed packages, so only names that are not ours alone can stand there."""
    path = tmp_path / "path"
    for name in OWN:
        (path / name).mkdir(parents=True)
        (path / name / "__init__.py").write_text("MINE = True\n")
    (path / "run_all.py").write_text("raise RuntimeError('a run_all of the user')")
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import suite, tasks, methods, reports\nassert suite.MINE and tasks.MINE and methods.MINE and reports.MINE\n"
        "from dstbench import register\nfrom dstbench.methods.dense import Dense\n@register\nclass Mine(Dense): pass\n"
    )
    options = ["--plugin", plugin]
    done = call([site / "bin" / "dstbench", "run", *RUN, *options, "--methods", "mine"], tmp_path / "here", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["status"]["name"] for r in record.load(tmp_path / "here" / "results")[0]] == ["ok"]
    listed = call([sys.executable, ROOT / "run_all.py", "list", "methods", *options, "--json"], tmp_path, path)
    (mine,) = [row for row in json.loads(listed.stdout) if row["name"] == "mine"]
    assert not mine["broken"], "from a checkout too"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "line", ["from suite.method import Method", "import methods.dynamic", "from tasks import digits"]
)
def test_a_plugin_of_contract_1_is_told_what_to_write(line: str, site: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "old.py"
    plugin.write_text(f"{line}\nfrom dstbench import register\n@register\nclass Old: pass\n")
    room = line.split()[1].split(".")[0]
    advice = plugins.MOVED.format(room)
    assert advice.endswith("write `from dstbench import Method, Layer, register`")
    with pytest.raises(registry.Broken, match="imported as dstbench") as error:
        registry.method("old", [plugin])
    assert advice in str(error.value)
    done = call([site / "bin" / "dstbench", "list", "methods", "--plugin", plugin], tmp_path)
    assert done.returncode == 0 and advice in done.stdout, done.stdout + done.stderr


def test_public_names_are_what_they_say_and_import_no_torch() -> None:
    import dstbench

    assert dstbench.Method.__module__ == "dstbench.suite.method" and dstbench.__version__ == "0.1.0"
    assert {name for name in dstbench.__all__ if not getattr(dstbench, name)} == set()
    assert set(dstbench.__all__) <= set(dir(dstbench))
    with pytest.raises(AttributeError, match="no attribute 'Methods'; there are: Batch, Composer"):
        dstbench.Methods  # noqa: B018
    code = "import sys, dstbench, dstbench.cli; from dstbench import register; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
