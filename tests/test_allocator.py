"""The tuned allocator: fewer page faults, once a process, and in the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dstbench.suite import planfile, record
from dstbench.suite.kernels import allocator
from dstbench.suite.plan import Run
from dstbench.suite.run import execute

glibc = pytest.mark.skipif(allocator.unavailable() is not None, reason=str(allocator.unavailable()))
FAULTS = """
import resource, torch
from dstbench.suite.kernels import allocator
{first}
for step in range(22):
    if step == 16:  # the heap, which grows by 256 MiB, has gone once through all of them
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(12 << 20).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
@pytest.mark.slow
def test_large_tensors_fault_their_pages_in_once() -> None:
    found = {}
    for first in ("pass", "assert allocator.tune() and allocator.tune()"):
        code = FAULTS.format(first=first)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[first] = int(done.stdout)
    system, tuned = found.values()
    assert tuned * 20 < system, "48 MiB are 12,288 pages of 4 KiB, faulted in at each of six steps"


@pytest.fixture
def elsewhere(monkeypatch):
    """A system without glibc."""
    monkeypatch.setattr(allocator.os, "confstr", lambda name: None)
    allocator._tuned.cache_clear()
    yield
    allocator._tuned.cache_clear()


def test_elsewhere_nothing_is_set_and_the_reason_is_told(elsewhere, monkeypatch, tmp_path: Path) -> None:
    assert allocator.tune() is False and "glibc" in str(allocator.unavailable())
    with pytest.raises(planfile.PlanError, match="--allocator: the allocator can be tuned where glibc"):
        planfile.read("quick", {"allocator": "tuned"})
    run = Run("dense", "digits/mlp", budget=0.1, allocator="tuned")
    assert execute(run.to_json(), str(tmp_path)) == "error"
    assert "glibc" in record.load(tmp_path)[0][0]["status"]["reason"]


def test_another_malloc_is_named(monkeypatch) -> None:
    monkeypatch.setattr(allocator.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so")
    assert "LD_PRELOAD is '/usr/lib/libjemalloc.so'" in str(allocator.unavailable())


def test_the_settings_are_applied_once_before_the_network_is_built(monkeypatch, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    class Libc:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr(allocator.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(allocator, "_libc", lambda: Libc)
    allocator._tuned.cache_clear()
    run = Run("dense", "digits/mlp", budget=0.1, allocator="tuned")
    assert execute(run.to_json(), str(tmp_path)) == "ok" and allocator.tune()
    assert calls == list(allocator.SETTINGS.items())
    allocator._tuned.cache_clear()
    (found,), _ = record.load(tmp_path)
    assert found["id"]["allocator"] == "tuned" and found["id"]["key"] == run.key
    assert calls[0] == (-4, 0), "M_MMAP_MAX of malloc.h"
