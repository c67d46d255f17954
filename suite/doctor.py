"""Doctor: what this machine offers, what it lacks, and what is broken."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dstbench.suite import registry
from dstbench.suite.registry import Entry

NEEDED = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pydantic", "ruamel.yaml", "typer", "rich")
WINDOWS = (
    "Windows: no forkserver (each run starts anew, seconds instead of a tenth), no peak resident memory, no RAPL, "
    "folders are not fsynced"
)
ROOM = 2 * 2**30


class Finding(NamedTuple):
    """One line of the diagnosis; `mark` is "ok", "note" (something is lacking, all works) or "BAD"."""

    mark: str
    name: str
    text: str


def diagnose(
    results: Path = Path("results"), data_root: str | None = None, plugins: Sequence[str] = ()
) -> Iterator[Finding]:
    """All findings, one by one: the first ones are there before torch is loaded."""
    good = sys.version_info >= (3, 11)
    yield Finding("ok" if good else "BAD", "python", platform.python_version() + ("" if good else "; 3.11 is needed"))
    yield from packages(NEEDED)
    yield Finding("ok", "cores", f"{cores()} usable of {os.cpu_count()}; runs at a time by default: {cores()}")
    pins = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
    yield Finding("ok", "threads", f"1 a run by default; set outside: {pins or 'nothing'} (runs set their own)")
    yield forkserver(multiprocessing.get_all_start_methods())
    if os.name == "nt":
        yield Finding("note", "platform", WINDOWS)
    yield disk(results)
    yield from entries({**registry.methods(plugins), **registry.tasks(plugins)})
    yield from _devices()
    yield from data(registry.tasks(plugins), data_root)


def packages(names: Iterable[str]) -> Iterator[Finding]:
    """Whether each package is installed, and its version."""
    for name in names:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("BAD", name, f"not installed; run: pip install {name}")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forkserver(methods: Sequence[str]) -> Finding:
    """How processes of runs start."""
    if "forkserver" in methods:
        return Finding("ok", "forkserver", "there: a new process has torch loaded")
    return Finding(
        "note", "forkserver", f"none on {platform.system()}: each run loads torch anew, some seconds more a run"
    )


def disk(results: Path) -> Finding:
    """Whether results can be written, and the room for them."""
    folder = next(p for p in (results.absolute(), *results.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    text = f"{results}: {free / 2**30:.1f} GiB free"
    if not os.access(folder, os.W_OK):
        return Finding("BAD", "results", f"{folder} cannot be written; give another folder by --results")
    return Finding("ok" if free > ROOM else "note", "results", text)


def entries(found: Mapping[str, Entry]) -> Iterator[Finding]:
    """Every method and task that cannot be loaded; one line if there is none. Imports them all."""
    from dstbench.suite.task import DataError

    bad = False
    for entry in found.values():
        try:
            entry.load()
        except DataError:  # which `data` says
            continue
        except registry.Broken as error:
            bad = True
            yield Finding("BAD", "plugin", str(error))
    if not bad:
        yield Finding("ok", "plugins", f"all {len(found)} methods and tasks load")


def data(tasks: Mapping[str, Entry], root: str | None) -> Iterator[Finding]:
    """Whether the data of each task is there."""
    from dstbench.suite.plan import own_data
    from dstbench.suite.task import DataError

    for name, entry in tasks.items():
        try:
            own_data(entry.load(), root, False).prepare()
            yield Finding("ok", name, "data is there")
        except DataError as error:
            yield Finding("note", name, str(error))
        except registry.Broken:
            continue
        except registry.RegistryError as error:  # what does not go together
            yield Finding("BAD", name, str(error))


def _devices() -> Iterator[Finding]:
    import torch

    from dstbench.suite.meters import energy

    if torch.cuda.is_available():
        yield Finding("ok", "gpu", torch.cuda.get_device_name(0))
    else:
        yield Finding("note", "gpu", "torch finds no CUDA device; runs use the CPU")
    for text in energy.unavailable():
        yield Finding("note", "energy", text)
