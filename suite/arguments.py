"""Arguments of the command line: read, checked, and refused with the option's name."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import typer

from dstbench.suite.values import near
from dstbench.suite.words import listed, shown

T = TypeVar("T")
ERRORS = (
    ("dstbench.suite.registry", "RegistryError"),
    ("dstbench.suite.planfile", "PlanError"),
    ("dstbench.suite.task", "DataError"),
    ("dstbench.suite.lock", "Busy"),
    ("dstbench.suite.scaffold", "Refused"),
)


def expected() -> tuple[type[Exception], ...]:
    """Errors of the input; modules that were never imported cannot have raised theirs."""
    return tuple(getattr(sys.modules[module], name) for module, name in ERRORS if module in sys.modules)


def none_empty(given: Sequence[str]) -> None:
    """BadParameter for an empty argument, as a variable that is not set leaves it."""
    for before, text in zip(["", *given], given, strict=False):
        bare = re.fullmatch(r"(--[a-z-]+)=", text)
        if bare or not text.strip():
            option = bare[1] if bare else before if before.startswith("--") else "an argument"
            raise typer.BadParameter("it is empty; give a value, or leave it out", param_hint=option)


def names(text: str | None, option: str) -> list[str] | None:
    """Names separated by commas; BadParameter where one is empty."""
    found = None if text is None else [part.strip() for part in text.split(",")]
    if found and not all(found):
        raise typer.BadParameter(f"{text!r} lacks a name before or after a comma", param_hint=option)
    return found


def pairs(given: list[str] | None) -> dict[str, str] | None:
    """METHOD_OR_TASK.FIELD=VALUE, … as a mapping."""
    for text in given or ():
        if "=" not in text:
            raise typer.BadParameter(f"{text!r}: METHOD_OR_TASK.FIELD=VALUE is expected", param_hint="--set")
    return {k.strip(): v.strip() for k, _, v in (text.partition("=") for text in given)} if given else None


def whole(text: str | None, option: str, largest: int = 1024) -> int | None:
    """A whole number from 1 up to `largest`."""
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, flags=re.ASCII) or not 1 <= int(text) <= largest:
        raise typer.BadParameter(f"{shown(text)}: a whole number from 1 up to {largest} is expected", param_hint=option)
    return int(text)


def read(by: Callable[[Any], T], text: str, option: str) -> T:
    """What `by` makes of the text; its ValueError as BadParameter."""
    try:
        return by(text)
    except ValueError as error:
        raise typer.BadParameter(f"{shown(text)}: {error}", param_hint=option) from None


def choice(text: str | None, choices: Sequence[str], option: str) -> str | None:
    """One of the choices."""
    if text is not None and text not in choices:
        raise typer.BadParameter(f"{shown(text)}: {listed(choices)} is expected", param_hint=option)
    return text


def kernel(name: str) -> None:
    """BadParameter for a name that no kernel has; loads none."""
    from dstbench.suite import kernels

    try:
        kernels.known(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--kernel") from None


def statuses(retry: str | None) -> set[str]:
    """Statuses of records, and "stale", separated by commas."""
    from dstbench.suite.record import STATUSES

    found = set(names(retry, "--retry") or ())
    for name in sorted(found - {*STATUSES, "stale"}):
        raise typer.BadParameter(f"unknown status {name!r}; {near(name, [*STATUSES, 'stale'])}", param_hint="--retry")
    return found


def files(plugins: Iterable[Path] | None, option: str = "--plugin") -> list[str]:
    """Plugin files as absolute paths: a worker process may have another working directory."""
    for path in plugins or ():
        if not path.is_file():
            wrong = "it is a folder, a file is expected" if path.is_dir() else "no such file"
            hint = "--task-file" if path.suffix in (".yaml", ".yml") and option == "--plugin" else option
            raise typer.BadParameter(f"{path}: {wrong}", param_hint=hint)
    return list(dict.fromkeys(str(p.resolve()) for p in plugins or ()))


def folder(path: Path | str | None, option: str, made: bool = False) -> None:
    """BadParameter for a folder that is not there; `made`: it may be made later."""
    if path is None or Path(path).is_dir() or (made and not Path(path).exists()):
        return
    wrong = "it is a file, a folder is expected" if Path(path).exists() else "no such folder"
    raise typer.BadParameter(f"{path}: {wrong}", param_hint=option)


def writable(folder: Path, option: str) -> None:
    """Make the folder; BadParameter where nothing can be written into it, OSError where a disk is full or read-only."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise OSError(error.errno, error.strerror, f"{option}: {folder} cannot be written") from None
        raise typer.BadParameter(f"{folder} cannot be written: {error.strerror}", param_hint=option) from None


def chosen(records: Iterable[Mapping[str, Any]], kind: str, wanted: Sequence[str] | None) -> set[str]:
    """The keys of the records of these methods or tasks; BadParameter for a name that no record has."""
    found = [record["id"] for record in records]
    there = sorted({who[kind] for who in found})
    for name in wanted or ():
        if name not in there:
            raise typer.BadParameter(f"no record is of {name!r}; {near(name, there)}", param_hint=f"--{kind}s")
    return {who["key"] for who in found if wanted is None or who[kind] in wanted}
