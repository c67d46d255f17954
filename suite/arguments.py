"""Arguments of the command line: read, checked, and refused with the option's name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import typer

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


def pairs(given: list[str] | None) -> dict[str, str] | None:
    """METHOD_OR_TASK.FIELD=VALUE, … as a mapping."""
    for text in given or ():
        if "=" not in text:
            raise typer.BadParameter(f"{text!r}: METHOD_OR_TASK.FIELD=VALUE is expected", param_hint="--set")
    return {k.strip(): v.strip() for k, _, v in (text.partition("=") for text in given)} if given else None


def statuses(retry: str | None) -> set[str]:
    """Statuses of records, and "stale", separated by commas."""
    from dstbench.suite.record import STATUSES
    from dstbench.suite.values import near

    found = {part.strip() for part in retry.split(",")} if retry else set()
    for name in found - {*STATUSES, "stale"}:
        raise typer.BadParameter(f"unknown status {name!r}; {near(name, [*STATUSES, 'stale'])}", param_hint="--retry")
    return found


def files(plugins: Iterable[Path] | None) -> list[str]:
    """Plugin files as absolute paths: a worker process may have another working directory."""
    return [str(p.resolve()) for p in plugins or ()]


def writable(folder: Path, option: str) -> None:
    """Make the folder; BadParameter where nothing can be written into it."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be written: {error.strerror}", param_hint=option) from None
