import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dstbench import cli
from dstbench.suite import executors, record
from records import ended

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a call writes by default lands outside the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(Path(__file__).with_name("failing.py").read_text())
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def said(result: Result) -> str:
    """All output, without the frames and line breaks of help."""
    return " ".join((result.output + (result.stderr or "")).replace("│", " ").split())


# ---- one message, exit code 2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rigel"], "--methods: unknown method 'rigel'; did you mean rigl"),
        (["--tasks", "digits/mpl"], "--tasks: unknown task 'digits/mpl'; did you mean digits/mlp"),
        (["--methodes", "rigl"], "error: unknown option --methodes; did you mean --methods?"),
        (["--set", "rigl.alfa=1"], "--set: rigl has no field 'alfa'"),
        (["--set", "digits/mlp.lr.sdg=1"], "did you mean sgd?"),
        (["--set", "rigl"], "METHOD_OR_TASK.FIELD=VALUE is expected"),
        (
            ["--sparsity", "1"],
            "--sparsity is '1': a share of zero weights from 0 up to 1 is expected",
        ),
        (["--seeds", "a"], "--seeds: 'a' is no whole number; seeds are a count"),
        (["--timeout", "soon"], "--timeout is 'soon': a time such as"),
        (["--kernel", "fast"], "unknown kernel 'fast'"),
        (["--allocator", "mine"], "--allocator is 'mine': 'system' or 'tuned' is expected"),
        (["--retry", "stael"], "unknown status 'stael'; did you mean stale?"),
        (["--plugin", "nowhere.py"], "nowhere.py"),
        (["--jobs", "0"], "--jobs"),
        (["--device", "cuda:77"], "device 'cuda:77': torch finds"),
        (["nowhere.yaml"], "plan 'nowhere.yaml': no such file"),
        (["statsu"], "no command and no plan is named 'statsu'; did you mean status?"),
        (["list", "method"], "did you mean methods"),
    ],
)
def test_wrong_input_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    where = [] if arguments[0] in ("list", "statsu") else ["--results", str(tmp_path / "r")]
    result = call(*arguments, *where)
    assert result.exit_code == 2 and message in said(result), result.output
    assert "Traceback" not in result.output and not (tmp_path / "r").exists()


def test_wrong_keys_of_a_plan_name_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("methods: [rigl]\ntaks: [digits/mlp]\ntasks: [digits/mlp]\nsparsity: [1.5]\n")
    for arguments in (["validate", path], ["run", path], [path]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert f"error: {path}:2: unknown key 'taks'; did you mean tasks?" in result.output + result.stderr
        assert f"error: {path}:4: sparsity is 1.5: a share of zero weights" in result.output + result.stderr


def test_missing_data_is_one_message(plugin: Path, tmp_path: Path) -> None:
    result = call(
        "--plugin", plugin, "--tasks", "blobs", "--data-root", "/empty", "--download", "--results", tmp_path / "r"
    )
    assert result.exit_code == 2 and "error: blobs: no folder /empty" in said(result)
    assert not (tmp_path / "r").exists()


def test_unwritable_results_are_one_message(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call(
        "--plugin", plugin, "--methods", "dense", "--tasks", "blobs", "--results", tmp_path / "file" / "results"
    )
    assert result.exit_code == 2 and "cannot be written" in said(result)


def test_results_in_use_are_one_message(plugin: Path, tmp_path: Path) -> None:
    from dstbench.suite.lock import lock

    with lock(tmp_path):
        result = call("run", "--plugin", plugin, "--methods", "dense", "--tasks", "blobs", "--results", tmp_path)
    assert result.exit_code == 2 and f"is in use by process {os.getpid()}" in said(result)


# ---- what runs again -------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[executors.Outcome]:
    """Runs that end at once: error for `static`, ok for all others."""
    seen: list[executors.Outcome] = []

    class Fake:
        def __init__(self, *_: object) -> None: ...

        def run(self, runs: Any, results: Path) -> Any:
            for run in runs:
                outcome = executors.Outcome(run, "error" if run.method == "static" else "ok", 0.1)
                record.write(ended(run, outcome.status), results)
                seen.append(outcome)
                yield outcome

    monkeypatch.setattr(executors, "Local", Fake)
    return seen


def test_retry_repeats_the_statuses_it_names(plugin: Path, tmp_path: Path, fake: list[executors.Outcome]) -> None:
    options = ["run", "--plugin", plugin, "--methods", "dense,static", "--tasks", "blobs", "--sparsity", "0.5"]
    options += ["--seeds", "0,1", "--results", tmp_path]
    assert call(*options).exit_code == 1 and len(fake) == 4
    assert call(*options).exit_code == 1 and len(fake) == 4, "the plan's errors are still there"
    failed = call(*options, "--retry", "error,timeout")
    assert failed.exit_code == 1 and call(*options, "--exit-zero").exit_code == 0
    assert {o.run.method for o in fake[4:]} == {"static"} and len(fake) == 6
    more = ["--seeds", "0,1,2", "--methods", "dense"]
    assert call(*options, *more).exit_code == 0 and {o.run.seed for o in fake[6:]} == {2}


def test_retry_stale_repeats_what_another_source_made(
    plugin: Path, tmp_path: Path, fake: list[executors.Outcome]
) -> None:
    options = [
        "run",
        "--plugin",
        plugin,
        "--methods",
        "dense",
        "--tasks",
        "blobs",
        "--seeds",
        "0,1",
        "--results",
        tmp_path,
    ]
    call(*options)
    path = sorted((tmp_path / "records").glob("*.json"))[0]
    old = {**record.read(path), "code": {"versions": {}, "method_source": "0" * 12}}
    path.unlink()
    record.write(old, tmp_path)
    call(*options)
    assert len(fake) == 2, "a record of another source counts"
    call(*options, "--retry", "stale")
    assert [o.run.key for o in fake[2:]] == [path.name[:12]]


def test_options_reach_the_runs(plugin: Path, tmp_path: Path, fake: list[executors.Outcome]) -> None:
    options = ["--seeds", "4,", "--budget", "0.5", "--threads", "2", "--kernel", "compact", "--precision", "bf16"]
    options += ["--timeout", "2m", "--data-root", "/d", "--download", "--save-models", "--set", "slow.alpha=0.5"]
    options += ["--set", "blobs.lr.sgd=0.2", "--device", "cpu", "--allocator", "tuned"]
    call("run", "--plugin", plugin, "--methods", "slow", "--tasks", "blobs", "--results", tmp_path, *options)
    run = fake[0].run
    assert (run.seed, run.budget, run.threads, run.kernel, run.precision) == (4, 0.5, 2, "compact", "bf16")
    assert (run.timeout, run.data_root, run.download, run.save_models) == (120, "/d", True, True)
    assert (run.hyperparameters, run.recipe, run.device) == ({"alpha": 0.5}, {"lr.sgd": 0.2}, "cpu")
    assert run.plugins == (str(plugin),) and run.allocator == "tuned"


def test_a_dry_run_tells_the_cost_of_tasks_whose_data_is_missing(tmp_path: Path) -> None:
    options = ["run", "--methods", "dense,rigl", "--tasks", "mnist/lenet300", "--seeds", "1", "--data-root", tmp_path]
    result = call(*options, "--results", tmp_path / "r", "--dry-run")
    assert result.exit_code == 0
    assert "the data of mnist/lenet300 is missing" in result.output and "3 runs, 3 left" in result.output
    # 5.5 million images, 3 times 2 * 266,200 FLOPs dense, a tenth and a twentieth of it sparse
    low, high = (float(x) for x in re.search(r"FLOPs\): (\S+) to (\S+) FLOPs", result.output).groups())
    assert 5.5e6 * 6 * 266_200 < low < high < 5.5e6 * (1 + 2 * 0.75) * 6 * 266_200
    result = call(*options, "--results", tmp_path / "r")
    assert result.exit_code == 2 and "no such file" in said(result)


def test_dry_run_runs_nothing(plugin: Path, tmp_path: Path, fake: list[executors.Outcome]) -> None:
    options = ["--plugin", plugin, "--methods", "dense,static", "--tasks", "blobs", "--sparsity", "0.5", "--seeds", "0"]
    result = call(*options, "--results", tmp_path / "r", "--dry-run")
    assert result.exit_code == 0 and not fake and not (tmp_path / "r").exists()
    assert "2 runs, 2 left" in result.output and "estimated by a closed form" in result.output


# ---- the other commands ----------------------------------------------------------------------------------------------


def test_list_as_table_and_as_json(plugin: Path) -> None:
    assert "rigl" in call("list", "methods").output and "digits/mlp" in call("list", "tasks").output
    rows = json.loads(call("list", "methods", "--json", "--plugin", plugin).output)
    assert [r["origin"] for r in rows if r["name"] == "slow"] == [f"plugin {plugin}"]


def test_validate_status_and_doctor(plugin: Path, tmp_path: Path) -> None:
    assert "quick is valid: 8 methods, 3 tasks, 2 sparsities, 3 seeds" in call("validate", "quick").output
    assert "no records in" in call("status", "--results", tmp_path).output
    assert "left of the plan: 135 of 135" in call("status", "quick", "--results", tmp_path).output
    result = call("doctor", "--results", tmp_path, "--plugin", plugin)
    assert result.exit_code == 0 and "ok    blobs: data is there" in result.output
    plugin.write_text("1 / 0\n")
    (tmp_path / "b.py").write_text("1 / 0\n")
    assert call("doctor", "--results", tmp_path, "--plugin", tmp_path / "b.py").exit_code == 1


def test_check_prints_verdicts_and_a_summary(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    from dstbench.suite import conformance, doctor
    from dstbench.suite.check import TASKS, Verdict

    asked = []

    def results(*arguments: object) -> Any:
        asked.append(arguments)
        yield "a", [Verdict("a: first", True, "fine"), Verdict("a: second", len(asked) > 1, "not so")], 1.25
        yield "b", [Verdict("b: first", True, "fine")], 0.04

    monkeypatch.setattr(conformance, "results", results)
    Path("mine.py").touch()
    result = call("check", "mine.py", "--task", "digits/vit, digits/mlp", "--kernel", "compact", "--plugin", plugin)
    lines = ["ok   a: first: fine", "BAD  a: second: not so", "a: 1 of 2 ok, 1.2 s", "ok   b: first: fine"]
    assert result.exit_code == 1 and result.output.splitlines() == [*lines, "b: 1 of 1 ok, 0.0 s"]
    assert call("check", "--all", "--jobs", "3", "--data-root", ".").exit_code == 0
    assert asked[0] == ("mine.py", ["digits/vit", "digits/mlp"], "compact", doctor.cores(), [str(plugin)], None)
    assert asked[1] == ("", TASKS, "masked", 3, [], ".")


@pytest.mark.parametrize("arguments", [[], ["rigl", "--all"]])
def test_check_wants_a_name_or_all(arguments: list[str]) -> None:
    result = call("check", *arguments)
    assert result.exit_code == 2 and "give NAME or FILE, or --all" in said(result)


def test_check_of_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    for arguments, message in (
        (["rigel"], "did you mean rigl"),
        (["nowhere.py"], "NAME|FILE: nowhere.py: no such file"),
        (["rigl", "--task", "digits/mpl"], "unknown task 'digits/mpl'; did you mean digits/mlp"),
        (["rigl", "--kernel", "maskd"], "unknown kernel 'maskd'; did you mean masked?"),
        (["rigl", "--task", "cifar10/resnet18", "--data-root", str(tmp_path)], str(tmp_path)),
    ):
        result = call("check", *arguments)
        assert result.exit_code == 2 and message in said(result) and "Traceback" not in result.output


def test_the_catalogue_is_printed(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    from dstbench.suite import catalogue

    monkeypatch.setattr(catalogue, "markdown", lambda plugins: f"# Methods of {plugins}")
    assert call("list", "methods", "--markdown", "--plugin", plugin).output == f"# Methods of {[str(plugin)]}\n"
    for wrong in (["list", "plans", "--markdown"], ["list", "methods", "--markdown", "--json"]):
        result = call(*wrong)
        assert result.exit_code == 2 and "it goes with `list methods` and `list tasks` alone" in said(result)


def test_new_writes_a_plugin_that_is_listed(tmp_path: Path) -> None:
    result = call("new", "method", "mine", "--folder", "plugins")
    assert result.exit_code == 0 and " check plugins/mine.py" in result.output
    assert "mine" in call("list", "methods", "--plugin", "plugins/mine.py").output
    for wrong, message in (("rigl", "is the name of a method already"), ("a-b", "such as a_b")):
        result = call("new", "method", wrong)
        assert result.exit_code == 2 and message in said(result) and not list(tmp_path.glob("*.py"))


def test_two_files_of_one_method_are_one_message(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.py").write_text(plugin.read_text())
    result = call("run", "--plugin", plugin, "--plugin", "copy.py", "--methods", "slow", "--tasks", "blobs")
    assert result.exit_code == 2 and f"plugin {plugin} and plugin {tmp_path / 'copy.py'} both name a" in said(result)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom dstbench import cli\nfrom typer.testing import CliRunner\n"
        "text = CliRunner().invoke(cli.app, ['--help']).output\n"
        "assert 'Examples' in text and 'doctor' in text and '--retry' in text, text\n"
        "heavy = {'torch', 'numpy', 'pandas', 'ruamel.yaml', 'psutil'}\n"
        "heavy |= {'dstbench.methods', 'dstbench.tasks', 'dstbench.reports'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_every_option_of_the_issue_is_there() -> None:
    text = said(call("run", "--help"))
    options = (
        "--methods --tasks --sparsity --seeds --kernel --device --precision --jobs --threads --budget --data-root "
        "--download --results --report --plugin --set --timeout --dry-run --retry --save-models"
    )
    for option in options.split():
        assert option in text, option


def test_a_word_that_is_no_command_is_a_plan(tmp_path: Path, fake: list[executors.Outcome]) -> None:
    path = tmp_path / "lists.yaml"
    path.write_text("methods: [dense]\ntasks: [digits/mlp]\n")
    assert call("run", path, "--results", tmp_path / "r").exit_code == 0
    assert [o.run.task for o in fake] == ["digits/mlp"]
