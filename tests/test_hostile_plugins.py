"""One call of `run` with plugins that do what they like, and without a standard output: every run has its record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dstbench.suite import record

pytestmark = pytest.mark.slow  # one whole call of the command
ROOT = Path(__file__).parents[1]
PLUGIN = '''
import os, threading, time
from dataclasses import dataclass
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from dstbench import Method, Recipe, Task, register

class Own(Dataset):
    """A class of the plugin's own: its worker has to find it."""
    def __len__(self): return 64
    def __getitem__(self, i):
        x = torch.randn(8, generator=torch.Generator().manual_seed(i))
        return x, (x.sum() > 0).long()

@dataclass(frozen=True)
class Loaded(Task):
    def fingerprint(self): return "0" * 12
    def build(self, seed, width=1.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    def example(self): return torch.zeros(2, 8)
    def batches(self, split, seed, start=0):
        loader = DataLoader(Own(), 16, num_workers=1, persistent_workers=True)
        if split in ("valid", "test"): return iter(loader)
        return (batch for _ in iter(int, 1) for batch in loader)

register(Loaded(name="loaded", recipe=Recipe(steps=12, batch=16, lr={"sgd": 0.1, "adam": 1e-3})))

class Unprintable(Exception):
    def __str__(self): raise ValueError("no text")

@register
class StaysBehind(Method):
    sparse = False
    def begin(self, t):
        if t == 3: threading.Thread(target=time.sleep, args=(600,)).start()

@register
class Wanders(Method):
    sparse = False
    def begin(self, t): os.chdir("/")

@register
class Mute(Method):
    def begin(self, t): raise Unprintable

@register
class Shouts(Method):
    def begin(self, t): raise RuntimeError("\\x00\\ud800\\x1b[2J" + "z" * 10_000_000)

@register
class Threaded(Method):
    sparse = False
    def begin(self, t): torch.set_num_threads(2)
'''
LEAKING = """
import torch
from torch import nn
from dstbench import Method, register
torch.set_num_threads(2)
torch.set_default_dtype(torch.float64)
nn.Linear.reset_parameters = lambda self: nn.init.constant_(self.weight, float("nan"))
@register
class Unrelated(Method):
    pass
"""
NAMES = ("dense", "stays_behind", "wanders", "mute", "shouts", "threaded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A call with a relative results folder, in an environment without home and name, with a long temporary folder."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, text in (("plugin.py", PLUGIN), ("leaking.py", LEAKING)):
        (folder / name).write_text(text)
    temporary = folder / ("t" * 120)
    temporary.mkdir()
    command = [sys.executable, ROOT / "run_all.py", "run", "--plugin", "plugin.py", "--plugin", "leaking.py"]
    command += ["--methods", ",".join(NAMES), "--tasks", "loaded", "--seeds", "0", "--results", "relative"]
    words = " ".join(f"'{word}'" for word in map(str, command))
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")}
    done = subprocess.run(
        ["sh", "-c", f"exec {words} >&- 2>error"], cwd=folder, env={**kept, "TMPDIR": str(temporary)}, timeout=280
    )
    assert done.returncode == 1, (folder / "error").read_text()
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    records, set_aside = record.load(folder / "relative")
    assert not set_aside
    return {r["id"]["method"]: r for r in records}


def test_every_run_has_one_record_where_it_belongs(folder: Path, found: dict[str, Any]) -> None:
    expected = {name: "error" if name in ("mute", "shouts") else "ok" for name in NAMES}
    assert {name: r["status"]["name"] for name, r in found.items()} == expected
    assert all(record.attempts(folder / "relative", r["id"]["key"]) == [1] for r in found.values())
    assert "Traceback" not in (folder / "error").read_text()


def test_a_text_that_cannot_be_printed_is_the_reason_of_its_run_alone(folder: Path, found: dict[str, Any]) -> None:
    assert found["mute"]["status"]["reason"] == "Unprintable: (its text cannot be had: ValueError)"
    loud = found["shouts"]["status"]
    assert loud["reason"].startswith("RuntimeError: \\x00\\ud800\\x1b[2Jzzz") and len(loud["reason"]) < 2200
    assert len(loud["traceback"]) < 10_000
    log = folder / "relative" / "logs" / f"{found['shouts']['id']['key']}.log"
    assert log.stat().st_size < 100_000


def test_the_record_holds_what_was_really_set(found: dict[str, Any]) -> None:
    settings = {name: found[name]["params"]["settings"] for name in NAMES}
    assert settings["threaded"]["threads"] == 2
    assert all(settings[name]["threads"] == 1 for name in NAMES if name != "threaded")
    assert {s["dtype"] for s in settings.values()} == {"float32"}


def test_a_plugin_that_no_run_uses_is_not_executed(found: dict[str, Any]) -> None:
    """It would make every loss a NaN."""
    assert found["dense"]["curve"]["loss"][-1] < 0.7
