"""Building the kernels: once for each source, flag and processor; what is broken or missing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from dstbench.suite.kernels import build
from dstbench.suite.model import SparseModel
from test_kernels_conv import run_with

SOURCE = 'extern "C" int answer(long x) { return x + 1; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch) -> Path:
    """A folder of one small kernel, an empty cache, and a process that has loaded nothing yet."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setenv("DSTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield folder
    forget()


def forget() -> None:
    build._outcome.cache_clear()
    build._announce.cache_clear()


def answer() -> int:
    return build.declare("small", {"answer": "l"}).answer(41)


def built(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache").glob("*"))


def test_a_library_is_built_once_and_found_again(sources: Path) -> None:
    assert answer() == 42
    (library,) = built(sources)
    before = library.stat().st_mtime_ns
    forget()
    assert answer() == 42 and built(sources) == [library] and library.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["source", "header", "flags", "processor"])
def test_what_was_built_from_something_else_is_not_used(sources: Path, monkeypatch, change: str) -> None:
    assert answer() == 42
    if change == "source":
        (sources / "small.cpp").write_text(SOURCE.replace("+ 1", "+ 2"))
    elif change == "header":
        (sources / "new.h").write_text("")
    elif change == "flags":
        monkeypatch.setenv("DSTBENCH_CXXFLAGS", "-DSOME")
    else:
        monkeypatch.setattr(build, "_processor", lambda: "another")
    forget()
    assert answer() == (43 if change == "source" else 42)
    assert len(built(sources)) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF of another machine"])
def test_a_broken_or_foreign_library_is_built_again(sources: Path, content: bytes) -> None:
    """The file is made by another process: one that has loaded a library knows it by its path."""
    code = "from pathlib import Path; from dstbench.suite.kernels import build\n"
    code += "build.SOURCES = Path(%r); build.library('small')"
    subprocess.run([sys.executable, "-c", code % str(sources)], check=True, cwd=Path(__file__).parents[1])
    (library,) = built(sources)
    library.write_bytes(content)
    assert answer() == 42 and built(sources) == [library]


def test_a_compile_error_shows_compiler_command_and_log(sources: Path) -> None:
    (sources / "small.cpp").write_text("int answer( {\n")
    with pytest.raises(
        build.NotBuilt, match=r"g\+\+ could not build small-.*see .*\.log; the command was .*small\.cpp"
    ):
        build.library("small")
    (log,) = built(sources)
    assert log.suffix == ".log" and "error" in log.read_text() and "small.cpp" in log.read_text().splitlines()[0]


def test_a_cache_that_cannot_be_written_is_named(sources: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSTBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.NotBuilt, match=r"cannot be written or loaded.*set DSTBENCH_CACHE"):
        build.library("small")


def test_without_a_compiler_layers_are_masked_and_that_is_announced_once(sources: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler \\(no-such-compiler\\) was found: install g") as seen:
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        model = SparseModel(net, torch.zeros(1, 3), kernel="sparse")
    assert len(seen) == 1
    assert [y.kernel.name for y in model.layers] == ["masked", "masked"]
    assert all("no C++ compiler" in (y.fallback or "") for y in model.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseModel(nn.Linear(3, 4), torch.zeros(1, 3), kernel="sparse")


def test_the_compiler_may_come_with_arguments(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "env g++ -pipe")
    found = build.compiler()
    assert os.path.isabs(found[0]) and found[1:] == ["g++", "-pipe"]


def test_where_libraries_are_kept(monkeypatch) -> None:
    monkeypatch.setenv("DSTBENCH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert build.cache() == Path("/a")
    monkeypatch.delenv("DSTBENCH_CACHE")
    assert build.cache() == Path("/b/dstbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache() == Path.home() / ".cache" / "dstbench"


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("name", ["kernels_linear", "kernels_conv", "norm"])
def test_compilers_have_no_warning_and_the_kernels_are_right(compiler: str, name: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    run_with(f"import test_{name} as t; [t.check(*a) for a in t.grid()]", "-Wall -Wextra -Werror", CXX=compiler)


ARM = [("aarch64-linux-gnu-g++", flag, "qemu-aarch64-static") for flag in ("-march=armv8-a", "-mcpu=neoverse-v1")]


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flag", "emulator"), [("g++", build.PROCESSOR, ""), *ARM])
def test_the_kernels_without_python(tmp_path: Path, compiler: str, flag: str, emulator: str) -> None:
    """tests/native/check.cpp: the kernels against plain loops, also on an emulated Arm, without and with SVE."""
    if missing := [tool for tool in (compiler, emulator) if tool and not shutil.which(tool)]:
        pytest.skip(f"no {missing[0]}")
    sources = [Path(__file__).parent / "native" / "check.cpp", *sorted(build.SOURCES.glob("*.cpp"))]
    flags = [f for f in build.FLAGS if f not in ("-shared", "-fPIC", build.PROCESSOR)]
    command = [
        compiler,
        *flags,
        flag,
        "-static",
        f"-I{build.SOURCES}",
        *map(str, sources),
        "-o",
        str(tmp_path / "check"),
    ]
    subprocess.run(command, check=True, timeout=250)
    run = subprocess.run([*emulator.split(), str(tmp_path / "check")], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0 and run.stdout.startswith("0 of "), run.stdout + run.stderr
