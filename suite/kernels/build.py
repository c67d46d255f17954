"""Compile the C++ kernels on first use and load them by ctypes; kept under a hash of source, flags and processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch  # noqa: F401 - before the kernels, so that its OpenMP runtime serves both

SOURCES = Path(__file__).parent / "native"
NATIVE = {"aarch64": "-mcpu=native", "arm64": "-mcpu=native"}  # not every compiler for Arm takes -march=native
PROCESSOR = NATIVE.get(platform.machine(), "-march=native")
FLAGS = ("-std=c++17", "-O3", PROCESSOR, "-ffp-contract=fast", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC")
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "d": ctypes.c_double}


class NotBuilt(RuntimeError):
    """The kernels cannot be built or loaded here; the text says why and what to do."""


def compiler() -> list[str]:
    """The command of the C++ compiler: the environment variable CXX, or g++ or c++; [] if there is none."""
    names = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["g++"], ["c++"]]
    return next(([found, *name[1:]] for name in names if (found := shutil.which(name[0]))), [])


def cache() -> Path:
    """Where built libraries are kept: DSTBENCH_CACHE, or `dstbench` in the user's cache folder; NotBuilt for none."""
    if own := os.environ.get("DSTBENCH_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dstbench"
    except RuntimeError:  # in a container
        raise NotBuilt("this user has no home folder: set DSTBENCH_CACHE to a folder of yours") from None


def library(name: str) -> ctypes.CDLL:
    """The library of native/NAME*.cpp, compiled if need be; NotBuilt where that fails."""
    found = _outcome(name)
    if isinstance(found, str):
        raise NotBuilt(found)
    return found


def missing(name: str) -> str | None:
    """Why the library cannot be had here, announced once a process, or None."""
    found = _outcome(name)
    if not isinstance(found, str):
        return None
    _announce(found)
    return found


def declare(name: str, functions: Mapping[str, str]) -> ctypes.CDLL:
    """The library with the arguments of its functions: p(ointer), l(ong), i(nt), d(ouble); they return an int."""
    found = library(name)
    for function, letters in functions.items():
        getattr(found, function).argtypes = [TYPES[letter] for letter in letters]
    return found


@functools.cache
def _announce(why: str) -> None:
    warnings.warn(f"kernel sparse: {why}; until then its layers run under `masked`", RuntimeWarning, stacklevel=3)


@functools.cache
def _outcome(name: str) -> ctypes.CDLL | str:
    try:
        return _load(name)
    except NotBuilt as why:
        return str(why)


def _load(name: str) -> ctypes.CDLL:
    command = compiler()
    if not command:
        raise NotBuilt(f"no C++ compiler ({os.environ.get('CXX') or 'g++ or c++'}) was found: install g++, or set CXX")
    command += [*FLAGS, *shlex.split(os.environ.get("DSTBENCH_CXXFLAGS", ""))]
    sources = sorted(SOURCES.glob(f"{name}*.cpp"))
    target = cache() / f"{name}-{_key(command, [*sources, *sorted(SOURCES.glob('*.h'))])}.so"
    try:
        if target.exists():
            try:
                return ctypes.CDLL(str(target))
            except OSError:  # broken, or of another machine under a shared folder
                target.unlink(missing_ok=True)
        _build(command, sources, target)
        return ctypes.CDLL(str(target))
    except OSError as why:
        raise NotBuilt(
            f"{target} cannot be written or loaded ({why}): set DSTBENCH_CACHE to a folder of yours"
        ) from why


def _key(command: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
    digest.update(repr((command, version, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: a library built for another one would crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _build(command: Sequence[str], sources: Sequence[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".part", dir=target.parent)
    os.close(handle)
    whole = [*command, *map(str, sources), "-o", temporary]
    done = subprocess.run(whole, capture_output=True, text=True)
    if done.returncode:
        os.unlink(temporary)
        log = target.with_suffix(".log")
        log.write_text(f"{shlex.join(whole)}\n{done.stdout}{done.stderr}")
        raise NotBuilt(f"{command[0]} could not build {target.stem}: see {log}; the command was {shlex.join(whole)}")
    os.replace(temporary, target)  # whole or not at all, also when two processes build at once
