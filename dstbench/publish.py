"""Publish: from the records of a folder to the report, its leaderboard on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import typer

from dstbench.suite import arguments


def write(results: Path, out: Path, files: Sequence[str], keys: Collection[str] | None = None, asked: str = "") -> None:
    """Write the report of the records of these keys; BadParameter where there is none: an older report stays.

    `asked` names the options by which the keys were chosen, for the message.
    """
    from dstbench.suite import record, registry, sources

    records, set_aside = record.load(results)
    if asked and records and not keys:
        raise typer.BadParameter(f"no record in {results} is of both; nothing is written", param_hint=asked)
    if not any(keys is None or r["id"]["key"] in keys for r in records):
        aside = f", {len(set_aside)} files are set aside" if set_aside else ""
        raise typer.BadParameter(f"no record to report in {results}{aside}; nothing is written", param_hint="--results")
    arguments.writable(out, "--report")
    from dstbench.reports import page

    stale = record.stale(records, sources.hashes(records, files))
    names = {n: {"family": e.family, "citation": e.citation} for n, e in registry.methods(files).items()}
    summary = page.write(results, out, stale, names, keys)
    typer.echo(f"\n{summary.leaderboard}\n")
    for path, reason in summary.set_aside:
        typer.echo(f"set aside: {path}: {reason}", err=True)
    typer.echo(f"report: {summary.index}")
