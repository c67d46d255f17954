"""dstbench: train dynamic sparse training methods head to head and compare them. The command line."""

from __future__ import annotations

import difflib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dstbench.suite import arguments

if TYPE_CHECKING:
    from dstbench.suite.plan import Run

EXAMPLES = """Examples:

python run_all.py

python run_all.py my_plan.yaml --jobs 4 --report site

python run_all.py --methods dense,rigl --tasks digits/mlp --sparsity 0.9 --seeds 0,1,2

python run_all.py run quick --plugin mine.py --methods dense,mine --set mine.alpha=0.1

python run_all.py --retry error,stale

Without a command: `run`, then `report`. The options are those of `run`: python run_all.py run --help
"""


class Commands(TyperGroup):
    """Commands, of which the hidden `all` is the default; wrong input ends in a message and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            names = [n for n, command in self.commands.items() if not command.hidden]
            near = difflib.get_close_matches(args[0], names, 1) if args else []
            if near and not Path(args[0]).exists():
                ctx.fail(f"no command and no plan is named {args[0]!r}; did you mean {near[0]}?")
            args = ["all", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if not isinstance(error, arguments.expected()):
                raise
            typer.echo("\n".join(f"error: {text}" for text in str(error).splitlines()), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(cls=Commands, epilog=EXAMPLES, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", exists=True, dir_okay=False, help="File with methods.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of records.")]
Report = Annotated[Path, typer.Option("--report", help="Folder of the report.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", metavar="DIR", help="Folder of data sets.")]


def _option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar)


@app.command("run")
@app.command("all", hidden=True)
def run(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="[PLAN]", help="Plan file, or an embedded plan.")] = "quick",
    methods: Annotated[str | None, _option("--methods", metavar="A,B", help="Methods, instead of the plan's.")] = None,
    tasks: Annotated[str | None, _option("--tasks", metavar="X,Y", help="Tasks.")] = None,
    sparsity: Annotated[str | None, _option("--sparsity", metavar="0.9,0.95", help="Shares of zero weights.")] = None,
    seeds: Annotated[str | None, _option("--seeds", metavar="0,1,2", help="Seeds.")] = None,
    kernel: Annotated[str | None, _option("--kernel", help="Kernel; `list kernels` shows them.")] = None,
    device: Annotated[str | None, _option("--device", help="auto, cpu, mps, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, _option("--precision", help="fp32, bf16 or fp16, not the recipe's.")] = None,
    allocator: Annotated[str | None, _option("--allocator", help="system or tuned: docs/kernels.md.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Runs at a time; default cores / threads.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of a run; default 1.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Factor on the steps of every task.")] = None,
    data_root: DataRoot = None,
    download: Annotated[bool, typer.Option("--download", help="Get missing data from the network.")] = False,
    results: Results = Path("results"),
    report: Report = Path("report"),
    plugin: Plugins = None,
    set_: Annotated[
        list[str] | None, _option("--set", metavar="METHOD_OR_TASK.FIELD=VALUE", help="Set a field; repeatable.")
    ] = None,
    timeout: Annotated[str | None, _option("--timeout", metavar="2h", help="Limit on each run; default 24h.")] = None,
    watts_per_core: Annotated[float | None, _option("--watts-per-core", help="For the estimate of energy.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their cost; run nothing.")] = False,
    retry: Annotated[str | None, _option("--retry", metavar="STATUS,…", help="Repeat such runs; also: stale.")] = None,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep weights and masks of each run.")] = False,
) -> None:
    """Train what the plan says; what has a record already is not repeated."""
    from dstbench.suite import doctor, estimate, planfile, record, sources
    from dstbench.suite import plan as plans

    options: dict[str, Any] = {"kernel": kernel, "device": device, "precision": precision, "threads": threads}
    options |= {"allocator": allocator, "budget": budget, "timeout": timeout, "watts_per_core": watts_per_core}
    options["set"] = arguments.pairs(set_)
    for name, text in (("methods", methods), ("tasks", tasks), ("sparsity", sparsity), ("seeds", seeds)):
        options[name] = None if text is None else [part.strip() for part in text.split(",")]
    files = arguments.files(plugin)
    statuses = arguments.statuses(retry)
    for text in sources.broken(files):
        typer.echo(f"warning: {text}", err=True)
    found = planfile.read(plan, options, files)
    runs = plans.expand(found, files, data_root, download, save_models)
    records = record.load(results)[0]
    finished = record.done(results)
    again = {key for key, status in finished.items() if status in statuses}
    if "stale" in statuses:
        again |= record.stale(records, sources.hashes(records, files))
    left = [r for r in runs if r.key not in finished or r.key in again]
    jobs = jobs or (1 if runs[0].device.startswith("cuda") else max(1, doctor.cores() // found.threads))
    if dry_run:
        typer.echo(estimate.describe(runs, left, records, jobs))
        return
    arguments.writable(results, "--results")
    if ctx.info_name == "all":
        arguments.writable(report, "--report")
    code = _train(runs, left, results, jobs, found.threads)
    if ctx.info_name == "all":
        _write_report(results, report, files)
    raise typer.Exit(code)


def _train(runs: Sequence[Run], left: list[Run], results: Path, jobs: int, threads: int) -> int:
    """Run what is left; the exit code: 1 if nothing could run."""
    from dstbench.suite import progress, sources
    from dstbench.suite.executors import Local
    from dstbench.suite.lock import lock

    typer.echo(f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} left, {jobs} at a time, in {results}")
    if not left:
        return 0
    with lock(results):
        modules = sources.modules(name for run in left for name in (run.method, run.task))
        counts = progress.follow(Local(jobs, threads, ("sklearn.datasets", *modules)), left, results)
    typer.echo(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 1 if set(counts) == {"error"} else 0


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="methods|tasks|kernels")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Methods with all they say of themselves.")] = False,
    plugin: Plugins = None,
) -> None:
    """List methods, tasks or kernels by name."""
    if markdown:
        from dstbench.suite import catalogue

        if what != "methods" or json_:
            raise typer.BadParameter("it goes with `list methods` alone", param_hint="--markdown")
        typer.echo(catalogue.markdown(arguments.files(plugin)))
        return
    from dstbench.suite import listing

    rows = listing.rows(what, arguments.files(plugin))
    typer.echo(json.dumps(rows, indent=1) if json_ else listing.table(rows))


@app.command()
def validate(plan: str, plugin: Plugins = None) -> None:
    """Check a plan file; every mistake is named with its line."""
    from dstbench.suite import planfile

    found = planfile.read(plan, plugins=arguments.files(plugin))
    counts = f"{len(found.chosen())} methods, {len(found.tasks)} tasks, {len(found.sparsity)} sparsities"
    typer.echo(f"{plan} is valid: {counts}, {len(found.seeds)} seeds")


@app.command()
def status(
    plan: Annotated[str | None, typer.Argument(metavar="[PLAN]", help="Count what is left of this plan.")] = None,
    results: Results = Path("results"),
    plugin: Plugins = None,
    data_root: DataRoot = None,
) -> None:
    """Count finished, running and remaining runs."""
    from dstbench.suite import listing, planfile
    from dstbench.suite import plan as plans

    runs = None
    if plan is not None:
        runs = plans.expand(planfile.read(plan, plugins=arguments.files(plugin)), arguments.files(plugin), data_root)
    typer.echo(listing.status(results, None if runs is None else [r.key for r in runs]))


@app.command("report")
def report_(results: Results = Path("results"), report: Report = Path("report"), plugin: Plugins = None) -> None:
    """Write the report of all records and print the leaderboard."""
    arguments.writable(report, "--report")
    _write_report(results, report, arguments.files(plugin))


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A method, a task, or a plugin file.")] = "",
    task: Annotated[
        str | None,
        _option(
            "--task",
            metavar="X,Y",
            help="Task to check methods on: the first each does not skip; default digits/mlp, digits/vit.",
        ),
    ] = None,
    kernel: Annotated[str, typer.Option("--kernel", help="Kernel to check methods on.")] = "masked",
    all_: Annotated[bool, typer.Option("--all", help="Check every method.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Methods at a time; default: cores.")] = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
) -> None:
    """Check that a method or a task keeps its contract."""
    from dstbench.suite import check as checking
    from dstbench.suite import conformance
    from dstbench.suite import doctor as diagnosis

    if all_ == bool(target):
        raise typer.BadParameter("give NAME or FILE, or --all", param_hint="NAME|FILE")
    files, bad = arguments.files(plugin), 0
    beds = [part.strip() for part in task.split(",")] if task else checking.TASKS
    jobs = jobs or diagnosis.cores()
    for name, verdicts, seconds in conformance.results(target, beds, kernel, jobs, files, data_root):
        for verdict in verdicts:
            typer.echo(f"{'ok ' if verdict.ok else 'BAD'}  {verdict.name}: {verdict.text}")
        good = sum(verdict.ok for verdict in verdicts)
        bad += len(verdicts) - good
        typer.echo(f"{name}: {good} of {len(verdicts)} ok, {seconds:.1f} s")
    raise typer.Exit(1 if bad else 0)


@app.command()
def explain(
    task: Annotated[str, typer.Option("--task", help="Task.")] = "digits/mlp",
    method: Annotated[str, typer.Option("--method", help="Method, whose first masks are taken.")] = "rigl",
    sparsity: Annotated[float, typer.Option("--sparsity", help="Share of zero weights.")] = 0.9,
    kernel: Annotated[str, typer.Option("--kernel", help="Kernel.")] = "sparse",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the run.")] = 1,
    device: Annotated[str, _option("--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    precision: Annotated[str | None, _option("--precision", help="fp32, bf16 or fp16.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_root: DataRoot = None,
    plugin: Plugins = None,
) -> None:
    """Say by which kernel and route each layer of a run is computed, and why."""
    from dstbench.suite import explain as explanation

    how = threads, device, precision, data_root, arguments.files(plugin)
    found = explanation.explain(method, task, sparsity, kernel, *how)
    typer.echo(json.dumps(found, indent=1) if json_ else explanation.text(found))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="method|task")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and underscores.")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where the files go.")] = Path("."),
) -> None:
    """Write a plugin file and its test to start from."""
    from dstbench.suite import scaffold

    typer.echo(scaffold.advice(kind, name, scaffold.write(kind, name, folder)))


@app.command()
def doctor(results: Results = Path("results"), data_root: DataRoot = None, plugin: Plugins = None) -> None:
    """Say what this machine offers and lacks, and what is broken."""
    from dstbench.suite import doctor as diagnosis

    bad = False
    for finding in diagnosis.diagnose(results, data_root, arguments.files(plugin)):
        bad |= finding.mark == "BAD"
        typer.echo(f"{finding.mark:<4}  {finding.name}: {finding.text}")
    raise typer.Exit(1 if bad else 0)


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="python run_all.py" if Path(sys.argv[0]).name == "run_all.py" else "dstbench")


def _write_report(results: Path, out: Path, files: Sequence[str]) -> None:
    from dstbench.reports import page
    from dstbench.suite import record, registry, sources

    records = record.load(results)[0]
    stale = record.stale(records, sources.hashes(records, files))
    names = {n: {"family": e.family, "citation": e.citation} for n, e in registry.methods(files).items()}
    summary = page.write(results, out, stale, names)
    typer.echo(f"\n{summary.leaderboard}\n")
    for path, reason in summary.set_aside:
        typer.echo(f"set aside: {path}: {reason}", err=True)
    typer.echo(f"report: {summary.index}")
