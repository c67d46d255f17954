"""What a plugin's file sets for the whole process is set back; what it cannot be asked to do without stays here."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dstbench.suite import plan as plans
from dstbench.suite import plugins, registry, settings, sources
from dstbench.suite.plan import Run
from dstbench.suite.planfile import Plan
from dstbench.suite.registry import Entry

HEAD = "import gc, os, random, signal, sys\nimport numpy as np\nimport torch\nfrom dstbench import Method, register\n"
TAIL = "\n@register\nclass Unrelated(Method):\n    pass\n"
SETS = {
    "threads": ("torch.set_num_threads(3)", torch.get_num_threads),
    "type": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "device": ("torch.set_default_device('meta')", torch.get_default_device),
    "gradients": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "deterministic": ("torch.use_deterministic_algorithms(True)", torch.are_deterministic_algorithms_enabled),
    "precision": ("torch.set_float32_matmul_precision('medium')", torch.get_float32_matmul_precision),
    "denormal": ("torch.set_flush_denormal(True)", lambda: float(torch.tensor([1e-39]) * 1.0)),
    "chance": ("torch.manual_seed(5); torch.rand(3)", lambda: torch.get_rng_state().sum().item()),
    "python": ("random.seed(5)", lambda: hash(random.getstate())),
    "numpy": ("np.random.seed(5)", lambda: int(np.random.get_state()[1].sum())),  # type: ignore[union-attr]
    "signal": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", lambda: signal.getsignal(signal.SIGTERM)),
    "only warned": (
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        torch.is_deterministic_algorithms_warn_only_enabled,
    ),
    "autocast": ("torch.set_autocast_enabled('cpu', True)", lambda: torch.is_autocast_enabled("cpu")),
    "autocast's type": ("torch.set_autocast_dtype('cpu', torch.float16)", lambda: torch.get_autocast_dtype("cpu")),
    "attention": ("torch.backends.cuda.enable_math_sdp(False)", torch.backends.cuda.math_sdp_enabled),
    "numpy's errors": ("np.seterr(all='raise')", np.geterr),
    "garbage": ("gc.disable()", gc.isenabled),
    "mask": ("os.umask(0o777)", lambda: (mask := os.umask(0), os.umask(mask))[0]),
    "folder": ("os.chdir('/')", os.getcwd),
    "recursion": ("sys.setrecursionlimit(4321)", sys.getrecursionlimit),
    "stream": ("sys.stderr = None", lambda: sys.stderr is None),
}


@pytest.mark.parametrize("what", SETS)
def test_what_a_file_sets_is_set_back(what: str, tmp_path: Path) -> None:
    code, read = SETS[what]
    path = tmp_path / "sets.py"
    path.write_text(HEAD + code + TAIL)
    before = read()
    assert registry.method("unrelated", [path]) and read() == before


@pytest.mark.slow
def test_what_is_set_before_torch_is_loaded_is_set_back(tmp_path: Path) -> None:
    """In a process that has not loaded it yet."""
    (tmp_path / "sets.py").write_text("import torch\n" + "\n".join(code for code, _ in list(SETS.values())[:8]))
    code = "import sys\nfrom dstbench.suite import plugins, settings\nassert 'torch' not in sys.modules\n"
    code += "import contextlib\nwith settings.kept(): exec(open('sets.py').read())\n"
    code += "import torch\nprint(settings.now(), torch.initial_seed(), torch.rand(1).dtype)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(f"{settings.now()} ") and done.stdout.endswith("torch.float32\n"), done.stderr


def test_a_file_that_fails_sets_nothing_either(tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text(HEAD + "torch.set_default_dtype(torch.float64)\nos.chdir('/')\n1 / 0\n")
    before = os.getcwd()
    with pytest.raises(ZeroDivisionError):
        plugins.load(path)
    assert torch.get_default_dtype() == torch.float32 and os.getcwd() == before


def test_path_and_environment_stay_here_and_go_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("KEPT", "mine")
    monkeypatch.delenv("ADDED", raising=False)
    path = tmp_path / "adds.py"
    path.write_text(HEAD + "sys.path.insert(0, '/of/a/plugin')\nos.environ.update(KEPT='its', ADDED='1')\n" + TAIL)
    plugins.load(path)
    assert sys.path[0] == "/of/a/plugin" and os.environ["KEPT"] == "its" and os.environ["ADDED"] == "1"
    with settings.untouched():
        assert "/of/a/plugin" not in sys.path and os.environ["KEPT"] == "mine" and "ADDED" not in os.environ
    assert sys.path[0] == "/of/a/plugin" and os.environ["KEPT"] == "its" and os.environ["ADDED"] == "1"
    settings._variables.clear()


def test_the_record_says_what_torch_computes_with() -> None:
    found = settings.now()
    assert found == {"threads": 1, "dtype": "float32", "matmul_precision": "highest", "deterministic": False}


# ---- who is executed -------------------------------------------------------------------------------------------------


def test_a_run_takes_the_files_of_its_method_and_its_task_alone(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.py") for name in ("one", "two", "three")]
    for name, file in zip(("one", "two"), files, strict=False):
        Path(file).write_text(f"from dstbench import Method, register\n@register\nclass {name.title()}(Method): ...\n")
    Path(files[2]).write_text(
        "from dstbench import register\nfrom dstbench.tasks.vision import VisionTask\n"
        "from dstbench.suite.registry import task\nfrom dataclasses import replace\n"
        "register(replace(task('digits/mlp'), name='mine/mlp'))\n"
    )
    plan = Plan(methods=["dense", "one", "two"], tasks=["digits/mlp", "mine/mlp"], device="cpu")
    used = {(run.method, run.task): run.plugins for run in plans.expand(plan, files)}
    assert used == {
        ("dense", "digits/mlp"): (),
        ("one", "digits/mlp"): (files[0],),
        ("two", "digits/mlp"): (files[1],),
        ("dense", "mine/mlp"): (files[2],),
        ("one", "mine/mlp"): (files[0], files[2]),
        ("two", "mine/mlp"): (files[1], files[2]),
    }
    assert Run("one", "t", plugins=(files[0],)).key == Run("one", "t").key, "no part of the identity"


class Point:
    """An entry point that counts how often it is loaded."""

    dist = None

    def __init__(self, name: str) -> None:
        self.name, self.value, self.loaded = name, f"{name}:X", 0

    def load(self) -> Any:
        self.loaded += 1
        return type(registry.method("dense"))


@pytest.mark.parametrize("find", [registry.find, lambda kind, name: sources.source_hash(registry.find(kind, name))])
def test_an_installed_method_is_loaded_for_its_own_name_alone(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: Point(name) for name in ("theirs", "others")}
    monkeypatch.setattr(
        registry.importlib.metadata,
        "entry_points",
        lambda group: list(points.values()) if group == "dstbench.methods" else [],
    )
    find("method", "dense"), find("method", "sign_in"), find("task", "digits/mlp")
    assert [point.loaded for point in points.values()] == [0, 0]
    registry.find("method", "theirs")
    assert [point.loaded for point in points.values()] == [1, 0]
    assert {"theirs", "others", "dense"} <= registry.methods().keys()


def test_the_server_of_all_processes_imports_nothing_that_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"a": Entry("a", "json:loads"), "b": Entry("b", "csv:reader", origin="theirs 1.0")}
    monkeypatch.setattr(registry, "methods", lambda: known)
    assert sources.modules(["a", "b"]) == ("json",)
