"""Options of the command line that commands share, and the panels of the help that options stand in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(*names: str, help: str, metavar: str | None = None, panel: str | None = None, **others: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **others)


def what(*names: str, **others: Any) -> Any:
    return option(*names, panel="What to run", **others)


def how(*names: str, **others: Any) -> Any:
    return option(*names, panel="How to run it", **others)


def kept(*names: str, **others: Any) -> Any:
    return option(*names, panel="Results", **others)


def named(kind: str) -> Any:
    """What a shell completes: names of methods, tasks or both."""

    def complete(incomplete: str) -> list[str]:
        from dstbench.suite import registry

        found = [*registry.methods()] if kind == "method" else [*registry.methods(), *registry.tasks()]
        return [name for name in found if name.startswith(incomplete)]

    return complete


Plugins = Annotated[
    list[Path] | None,
    option("--plugin", "--task-file", metavar="FILE", help="File with methods or tasks; YAML that defines tasks."),
]
Results = Annotated[Path, option("--results", metavar="DIR", help="Folder of records.", panel="Results")]
DataRoot = Annotated[str | None, option("--data-root", metavar="DIR", help="Folder of data sets.")]
Jobs = Annotated[str | None, option("--jobs", metavar="N", help="Methods at a time; default: cores.")]
