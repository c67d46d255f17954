"""The roofs: the loops compile, count what they do, and refuse to run without a compiler."""

from __future__ import annotations

import json

import pytest

from benchmarks import roofs
from dstbench.suite.kernels import build


@pytest.fixture
def short(monkeypatch) -> None:
    """Samples too short to measure anything."""
    monkeypatch.setattr(roofs, "SECONDS", 1e-4)
    monkeypatch.setattr(roofs, "SAMPLES", 1)
    monkeypatch.setattr(roofs, "MEMORY", 1 << 20)


def test_gflops_are_multiply_adds_over_seconds(monkeypatch) -> None:
    class Fake:
        @staticmethod
        def seconds(floats: int, rounds: int, threads: int) -> float:
            return rounds * (floats or 100) * 1e-6  # a multiply-add of each thread takes a microsecond

        @staticmethod
        def chained() -> int:
            return 100

    monkeypatch.setattr(roofs, "library", Fake)
    assert roofs.gflops(4096, 1) == pytest.approx(2e-3)
    assert roofs.gflops(0, 2) == pytest.approx(4e-3)


def test_the_command_prints_every_roof(short, capsys) -> None:
    assert roofs.main(["--threads", "1", "--allocator", "system", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["machine"]["cpu"] and found["threads"] == 1
    assert list(found["roofs"]) == ["registers", "l1", "l2", "memory"] and all(v > 0 for v in found["roofs"].values())
    assert "GB/s" in err and err.count("roof") == 4


def test_sizes_of_caches_have_a_default(monkeypatch) -> None:
    monkeypatch.setattr(roofs.os, "sysconf", lambda name: 0)
    assert roofs.cache_bytes("LEVEL2_CACHE", 77) == 77
    assert roofs.cache_bytes("NO_SUCH", 78) == 78


def test_no_compiler_and_a_compile_error_are_named(monkeypatch) -> None:
    roofs.library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NotBuilt, match="install g"):
        roofs.library()
    monkeypatch.setenv("CXX", "g++ -no-such-flag")
    with pytest.raises(build.NotBuilt, match=r"roofs\.cpp.* failed:(.|\n)*no-such-flag"):
        roofs.library()
