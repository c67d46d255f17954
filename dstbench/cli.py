"""dstbench: train dynamic sparse training methods head to head and compare them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dstbench import help as manners
from dstbench import publish, streams, surroundings
from dstbench.options import DataRoot, Jobs, Plugins, Results, how, kept, named, option, what
from dstbench.suite import arguments, fields

SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=manners.Commands, context_settings=SETTINGS, pretty_exceptions_enable=False, help=__doc__)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dstbench {manners.version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it, exit.")] = False,
) -> None:
    """What belongs to no command."""


@app.command("run", epilog=manners.CODES)
@app.command("all", hidden=True, epilog=manners.CODES)
def run(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Plan file, or one of `list plans`.")] = "quick",
    methods: Annotated[str | None, what("--methods", metavar="A,B", help="Methods, instead of the plan's.")] = None,
    tasks: Annotated[str | None, what("--tasks", metavar="X,Y", help="Tasks.")] = None,
    sparsity: Annotated[str | None, what("--sparsity", metavar="0.9,0.95", help="Shares of zero weights.")] = None,
    seeds: Annotated[
        str | None,
        what(
            "--seeds",
            metavar="0,1,2",
            help="Seeds: a list (0,4), a range (0-3), both (0-2,7), or a count, as in a plan (3: the seeds 0, 1, 2; "
            "0: the seed 0). The one seed 3 is `3,`.",
        ),
    ] = None,
    budget: Annotated[str | None, what("--budget", metavar="X", help="Factor on the steps of every task.")] = None,
    set_: Annotated[
        list[str] | None, what("--set", metavar="METHOD_OR_TASK.FIELD=VALUE", help="Set a field; repeatable.")
    ] = None,
    plugin: Plugins = None,
    kernel: Annotated[str | None, how("--kernel", metavar="NAME", help="Kernel, one of `list kernels`.")] = None,
    device: Annotated[str | None, how("--device", metavar="NAME", help="auto, cpu, mps, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, how("--precision", metavar="NAME", help="fp32, bf16 or fp16.")] = None,
    allocator: Annotated[str | None, how("--allocator", metavar="NAME", help="system or tuned.")] = None,
    jobs: Annotated[str | None, how("--jobs", metavar="N", help="Runs at a time; default cores / threads.")] = None,
    threads: Annotated[str | None, how("--threads", metavar="N", help="Threads of a run; default 1.")] = None,
    timeout: Annotated[str | None, how("--timeout", metavar="2h", help="Limit on each run; default 24h.")] = None,
    watts_per_core: Annotated[str | None, how("--watts-per-core", metavar="X", help="For estimated energy.")] = None,
    data_root: DataRoot = None,
    download: Annotated[bool, how("--download", help="Get missing data from the network.")] = False,
    dry_run: Annotated[bool, how("--dry-run", help="Print the runs and their cost; run nothing.")] = False,
    results: Results = Path("results"),
    report: Annotated[
        Path | None, kept("--report", metavar="DIR", help="Write the report there; without a command: to report/.")
    ] = None,
    all_records: Annotated[bool, kept("--all-records", help="Report every record, not this plan's alone.")] = False,
    retry: Annotated[str | None, kept("--retry", metavar="STATUS,…", help="Repeat such runs; also: stale.")] = None,
    save_models: Annotated[bool, kept("--save-models", help="Keep weights and masks of each run.")] = False,
    exit_zero: Annotated[bool, kept("--exit-zero", help="Exit with 0 even if runs ended in error.")] = False,
) -> None:
    """Train what the plan says; what has a record already is not repeated.

    Every run is tried, whatever becomes of others. If a run of the plan ended in error, now or before, the last lines
    name it and its log, and the exit code is 1.
    """
    from dstbench.suite import estimate, listing, session, sources

    options: dict[str, Any] = {"kernel": kernel, "device": device, "precision": precision, "threads": threads}
    options |= {"allocator": allocator, "budget": budget, "timeout": timeout, "watts_per_core": watts_per_core}
    options |= {"set": arguments.pairs(set_), "sparsity": sparsity, "seeds": seeds}
    options |= {"methods": arguments.names(methods, "--methods"), "tasks": arguments.names(tasks, "--tasks")}
    files, number, again = arguments.files(plugin), arguments.whole(jobs, "--jobs"), arguments.statuses(retry)
    arguments.folder(results, "--results", made=True)
    arguments.folder(data_root, "--data-root", made=download)
    for text in sources.broken(files):
        typer.echo(f"warning: {text}", err=True)
    ready = {"data_root": data_root, "download": download, "save_models": save_models, "absent": dry_run}
    asked = session.prepare(plan, options, files, results, again, number, **ready)
    for text in listing.aside(asked.set_aside):
        typer.echo(text, err=True)
    if dry_run:
        typer.echo(estimate.describe(asked.runs, asked.left, asked.records, asked.jobs))
        return
    page = Path("report") if report is None and ctx.info_name == "all" else report
    for folder, given in ((results, "--results"), (page, "--report")):
        if folder is not None:
            arguments.writable(folder, given)
    done = len(asked.runs) - len(asked.left)
    typer.echo(f"{len(asked.runs)} runs, {done} done, {len(asked.left)} left, {asked.jobs} at a time, in {results}")
    counts, lost = session.train(asked)
    if counts:
        typer.echo(counts)
    if page is not None:
        publish.write(results, page, files, None if all_records else {run.key for run in asked.runs})
    failed = [*lost, *session.failed(asked)]
    for line in failed:
        typer.echo(line, err=True)
    raise typer.Exit(1 if failed and not exit_zero else 0)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="methods|tasks|kernels|plans")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON; tasks with --counts (half a minute).")] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Tasks with data, model and their sizes.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Methods or tasks, for the docs.")] = False,
    plugin: Plugins = None,
) -> None:
    """List methods, tasks, kernels or embedded plans by name."""
    if markdown:
        from dstbench.suite import catalogue

        if kind not in ("methods", "tasks") or json_:
            raise typer.BadParameter("it goes with `list methods` and `list tasks` alone", param_hint="--markdown")
        write = catalogue.markdown if kind == "methods" else catalogue.tasks
        typer.echo(write(arguments.files(plugin)))
        return
    from dstbench.suite import listing

    rows = listing.rows(kind, arguments.files(plugin), counts or json_)
    typer.echo(json.dumps(rows, indent=1) if json_ else listing.table(rows))


@app.command()
def validate(plan: Annotated[str, typer.Argument(metavar="PLAN")], plugin: Plugins = None) -> None:
    """Check a plan file; every mistake is named with its line."""
    from dstbench.suite import planfile

    found = planfile.read(plan, plugins=arguments.files(plugin))
    counts = f"{len(found.chosen())} methods, {len(found.tasks)} tasks, {len(found.sparsity)} sparsities"
    typer.echo(f"{plan} is valid: {counts}, {len(found.seeds)} seeds")


@app.command()
def status(
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="Count what is left of this plan.")] = None,
    results: Results = Path("results"),
    plugin: Plugins = None,
    data_root: DataRoot = None,
) -> None:
    """Count finished, running and remaining runs."""
    from dstbench.suite import listing, planfile
    from dstbench.suite import plan as plans

    arguments.folder(results, "--results", made=results == Path("results"))
    arguments.folder(data_root, "--data-root")
    runs = None
    if plan is not None:
        runs = plans.expand(planfile.read(plan, plugins=arguments.files(plugin)), arguments.files(plugin), data_root)
    typer.echo(listing.status(results, None if runs is None else [r.key for r in runs]))


@app.command("report")
def report_(
    methods: Annotated[str | None, option("--methods", metavar="A,B", help="Of these methods alone.")] = None,
    tasks: Annotated[str | None, option("--tasks", metavar="X,Y", help="Of these tasks alone.")] = None,
    results: Results = Path("results"),
    report: Annotated[Path, kept("--report", metavar="DIR", help="Folder of the report.")] = Path("report"),
    plugin: Plugins = None,
) -> None:
    """Write the report of the records and print the leaderboard. Retention and costs are relative to `dense`."""
    from dstbench.suite import record

    files, wanted = arguments.files(plugin), (arguments.names(methods, "--methods"), arguments.names(tasks, "--tasks"))
    arguments.folder(results, "--results")
    keys = None
    if any(wanted):
        records = record.load(results)[0]
        keys = arguments.chosen(records, "method", wanted[0]) & arguments.chosen(records, "task", wanted[1])
    publish.write(results, report, files, keys, "--methods and --tasks" if all(wanted) else "")


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(metavar="NAME|FILE", help="A method, a task, or a plugin file.", autocompletion=named("")),
    ] = "",
    task: Annotated[
        str | None,
        option(
            "--task",
            metavar="X,Y",
            help="Task to check methods on: the first each does not skip; default digits/mlp, digits/vit.",
        ),
    ] = None,
    kernel: Annotated[str, option("--kernel", metavar="NAME", help="Kernel to check methods on.")] = "masked",
    all_: Annotated[bool, typer.Option("--all", help="Check every method.")] = False,
    jobs: Jobs = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
) -> None:
    """Check that a method or a task keeps its contract."""
    if all_ == bool(target):
        raise typer.BadParameter("give NAME or FILE, or --all", param_hint="NAME|FILE")
    if target.endswith((".py", ".yaml", ".yml")):
        arguments.files([Path(target)], "NAME|FILE")
    files, number, beds = arguments.files(plugin), arguments.whole(jobs, "--jobs"), arguments.names(task, "--task")
    arguments.folder(data_root, "--data-root")
    arguments.kernel(kernel)
    from dstbench.suite import check as checking
    from dstbench.suite import conformance
    from dstbench.suite import doctor as diagnosis

    bad, number = 0, number or diagnosis.cores()
    for name, verdicts, seconds in conformance.results(
        target, beds or checking.TASKS, kernel, number, files, data_root
    ):
        for verdict in verdicts:
            typer.echo(f"{'ok ' if verdict.ok else 'BAD'}  {verdict.name}: {verdict.text}")
        good = sum(verdict.ok for verdict in verdicts)
        bad += len(verdicts) - good
        typer.echo(f"{name}: {good} of {len(verdicts)} ok, {seconds:.1f} s")
    raise typer.Exit(1 if bad else 0)


@app.command()
def explain(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="Its first masks are taken.", autocompletion=named("method"))
    ] = "rigl",
    task: Annotated[str, option("--task", metavar="NAME", help="Task.")] = "digits/mlp",
    sparsity: Annotated[str, option("--sparsity", metavar="X", help="Share of zero weights.")] = "0.9",
    kernel: Annotated[str, option("--kernel", metavar="NAME", help="Kernel.")] = "sparse",
    threads: Annotated[str, option("--threads", metavar="N", help="Threads of the run.")] = "1",
    device: Annotated[str, option("--device", metavar="NAME", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    precision: Annotated[str | None, option("--precision", metavar="NAME", help="fp32, bf16 or fp16.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_root: DataRoot = None,
    plugin: Plugins = None,
) -> None:
    """Say by which kernel and route each layer of a run is computed, and why."""
    files, level = arguments.files(plugin), arguments.read(fields.sparsity, sparsity, "--sparsity")
    number, where = arguments.whole(threads, "--threads"), arguments.read(fields.device, device, "--device")
    arguments.choice(precision, ("fp32", "bf16", "fp16"), "--precision")
    arguments.folder(data_root, "--data-root")
    arguments.kernel(kernel)
    from dstbench.suite import explain as explanation

    found = explanation.explain(method, task, level, kernel, number or 1, where, precision, data_root, files)
    typer.echo(json.dumps(found, indent=1) if json_ else explanation.text(found))


@app.command()
def new(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="method|task")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, _; with --from-folder also /.")],
    folder: Annotated[Path, option("--folder", metavar="DIR", help="Where the files go.")] = Path("."),
    from_folder: Annotated[
        Path | None,
        option("--from-folder", metavar="DIR", help="Of a task: your images, as <class>/<image>; writes NAME.yaml."),
    ] = None,
    model: Annotated[str, option("--model", metavar="NAME", help="With --from-folder.")] = "timm:resnet18",
) -> None:
    """Write a plugin file and its test to start from, or the definition of a task on a folder of images."""
    from dstbench.suite import scaffold

    me = ctx.find_root().info_name or manners.NAME
    if from_folder is not None:
        if kind != "task":
            raise typer.BadParameter("it goes with `new task` alone", param_hint="--from-folder")
        arguments.folder(from_folder, "--from-folder")
        typer.echo(scaffold.defined(name, from_folder, model, folder, me))
        return
    typer.echo(scaffold.advice(kind, name, scaffold.write(kind, name, folder, me), me))


@app.command()
def doctor(results: Results = Path("results"), data_root: DataRoot = None, plugin: Plugins = None) -> None:
    """Say what this machine offers and lacks, and what is broken."""
    from dstbench.suite import doctor as diagnosis

    files = arguments.files(plugin)
    arguments.folder(results, "--results", made=True)
    arguments.folder(data_root, "--data-root")
    bad = False
    for finding in diagnosis.diagnose(results, data_root, files):
        bad |= finding.mark == "BAD"
        typer.echo(f"{finding.mark:<4}  {finding.name}: {finding.text}")
    raise typer.Exit(1 if bad else 0)


@app.command("help")
def help_(ctx: typer.Context, command: Annotated[str | None, typer.Argument(metavar="COMMAND")] = None) -> None:
    """Say how a command is used, or all of them."""
    above: Any = ctx.parent
    above.command.helped(above, command)


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    surroundings.name_user()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with streams.usable():
            app(prog_name=manners.program(sys.argv))
    except SystemExit as done:
        surroundings.leave(done.code if isinstance(done.code, int) else int(done.code is not None))
