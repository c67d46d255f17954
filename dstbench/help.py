"""Manners of the command line: the default command, help, version, completion, and one line for what is wrong."""

from __future__ import annotations

import difflib
import shlex
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from dstbench.suite import arguments
from dstbench.suite.words import printable

NAME = "dstbench"
USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # typer brings its own click, or uses the installed one
COMPLETION = ("--install-completion", "--show-completion")
OWN = ("-h", "--help", "--version", *COMPLETION)
CODES = (
    "Exit code: 0; 1 where something failed; 2 for wrong input, of which each mistake is a line; 130 when interrupted."
)
EXAMPLES = """Examples:

{me}

{me} my_plan.yaml --jobs 4 --report site

{me} --methods dense,rigl --tasks digits/mlp --sparsity 0.9 --seeds 0,1,2

{me} run quick --plugin mine.py --methods dense,mine --set mine.alpha=0.1

{me} --retry error,stale

Without a command: `run`, then `report`. The options are those of `run`: {me} run --help
"""


class Commands(TyperGroup):
    """Commands, of which the hidden `all` is the default; wrong input ends in a message and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        default = first not in self.commands and first not in OWN
        if not ctx.resilient_parsing:  # which it is while a shell completes what is typed
            arguments.none_empty(args)
            if first in COMPLETION and ctx.info_name != NAME:
                ctx.fail(f"completion is for the installed command: {NAME} {first}")
            near = [] if first.startswith("-") else difflib.get_close_matches(first, self._shown(), 1)
            if default and near and not Path(first).exists():
                ctx.fail(f"no command and no plan is named {first!r}; did you mean {near[0]}?")
        if default and (args or not ctx.resilient_parsing):
            args = ["all", *args]
        return super().parse_args(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except USAGE as error:
            typer.echo(f"error: {plainly(error)}", err=True)
            code = 2
        except typer.Abort:
            code = 130
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            known = isinstance(error, arguments.expected())
            if not known and not isinstance(error, OSError):
                raise
            if not isinstance(error, BrokenPipeError):  # else nobody reads on
                text = disk(error) if isinstance(error, OSError) else str(error)
                typer.echo("\n".join(f"error: {line}" for line in text.splitlines()), err=True)
            raise typer.Exit(2 if known else 1) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.epilog = f"{EXAMPLES.format(me=ctx.info_name)}\n{CODES}"
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Commands, and the options of the default one."""
        default, found = self.commands["all"], super().shell_complete(ctx, incomplete)
        with default.make_context("all", [], parent=ctx, resilient_parsing=True) as inner:
            more = default.shell_complete(inner, incomplete) if incomplete.startswith("-") else []
        return list({item.value: item for item in [*more, *found]}.values())

    def helped(self, ctx: Any, command: str | None) -> None:
        """Print the help of a command, or of all."""
        if command is None:
            typer.echo(self.get_help(ctx))
        elif command not in self.commands:
            near = difflib.get_close_matches(command, self._shown(), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self._shown())}"
            ctx.fail(f"no command is named {command!r}; {hint}")
        else:
            self.commands[command].make_context(command, ["--help"], parent=ctx)

    def _shown(self) -> list[str]:
        return [name for name, command in self.commands.items() if not command.hidden]


def disk(error: OSError) -> str:
    """What could not be written or read, and why, on one line."""
    return ": ".join(printable(str(part)) for part in (error.filename, error.strerror) if part) or printable(str(error))


def plainly(error: Any) -> str:
    """An error of typer's on one line, beginning with the option or argument that it is about."""
    text = " ".join(str(error.message).split())
    if isinstance(error, typer.BadParameter):
        hint = error.param_hint or (error.param.metavar or error.param.opts[0] if error.param else "")
        if type(error).__name__ == "MissingParameter":
            text = "it is missing"
        return f"{hint}: {text[:1].lower()}{text[1:].rstrip('.')}{_where(error) if text == 'it is missing' else ''}"
    if option := getattr(error, "option_name", ""):
        near = difflib.get_close_matches(option, _options(error), 1)
        mend = f"did you mean {near[0]}?" if near else "there is none of that name"
        missing = type(error).__name__ == "NoSuchOption"
        if missing:
            return f"unknown option {option}; {mend}{_where(error)}"
        return f"{option}: {'it takes no value' if 'not take' in text else 'a value is expected'}"
    return f"{text[:1].lower()}{text[1:].rstrip('.')}" + ("" if "did you mean" in text else _where(error))


def _options(error: Any) -> list[str]:
    return [name for param in error.ctx.command.params for name in param.opts] if error.ctx else []


def _where(error: Any) -> str:
    if error.ctx is None:
        return ""
    path = error.ctx.command_path
    return f" (see {path.removesuffix(' all') + ' run' if path.endswith(' all') else path} --help)"


def program(argv: Sequence[str]) -> str:
    """The command as it was called: "dstbench", or "python run_all.py" with the path as given."""
    return f"python {shlex.quote(argv[0])}" if Path(argv[0]).name == "run_all.py" else NAME


def version() -> str:
    """The version of this code: of the checkout where it is one, else of the installed package."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    try:
        found = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if found["name"] == NAME:
            return found["version"]
    except (OSError, KeyError, ValueError):
        pass
    return metadata.version(NAME)
