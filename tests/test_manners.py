"""Manners of the command line: every wrong value is one line and exit code 2; help, version, completion, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dstbench import cli, help

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: object, me: str = "dstbench") -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name=me)


SHARE = "a share of zero weights from 0 up to 1 is expected, without 1 itself"
WRONG = {
    "--device gpu": "--device: unknown device 'gpu'; choose auto, cpu, mps, cuda or cuda:N",
    "--device cuda:": "--device: unknown device 'cuda:'; choose auto, cpu, mps, cuda or cuda:N",
    "--device cuda:99999999999": "--device: unknown device 'cuda:99999999999'; choose",
    "--sparsity 90": f"--sparsity is '90': {SHARE}; did you mean 0.9?",
    "--sparsity 0.5,95%": f"--sparsity is '95%': {SHARE}; did you mean 0.95?",
    "--sparsity nan": f"--sparsity is 'nan': {SHARE}",
    "--sparsity -1": f"--sparsity is '-1': {SHARE}",
    "--sparsity 0.9,": f"--sparsity is '': {SHARE}",
    "--seeds 20261129": "--seeds is '20261129': is it one seed? then write [20261129] in a plan",
    "--seeds 3-1": "--seeds: '3-1' is no seed and no range; seeds are a count",
    "--seeds -1": "--seeds is '-1': seeds are a count (3: the seeds 0, 1 and 2), a list (0,4), a range (0-3)",
    "--seeds 1e3": "--seeds: '1e3' is no whole number",
    "--seeds 0-99999": "--seeds: '0-99999': a seed is at most 4294967295, and a range has at most 1000",
    "--budget nan": "--budget is 'nan': a finite number is expected",
    "--budget 0": "--budget is '0': a number from 1e-12 up is expected",
    "--budget 1e300": "--budget is '1e300': a number up to 1e+06 is expected",
    "--budget much": "--budget is 'much': a number is expected",
    "--threads 0": "--threads is '0': a number from 1 up is expected",
    "--threads 1.5": "--threads is '1.5': a whole number is expected",
    "--threads 1000000": "--threads is '1000000': a number up to 1024 is expected",
    "--watts-per-core -3": "--watts-per-core is '-3': a number above 0 is expected",
    "--watts-per-core inf": "--watts-per-core is 'inf': a finite number is expected",
    "--timeout -5": "--timeout is '-5': a time such as 90s, 15m, 2h or 1h30m is expected",
    "--timeout 1e9d": "--timeout is '1e9d': a time such as",
    "--timeout 99999d": "--timeout is '99999d': a time above 0 and up to 1000d is expected",
    "--precision fp8": "--precision is 'fp8': 'fp32', 'bf16' or 'fp16' is expected",
    "--allocator mine": "--allocator is 'mine': 'system' or 'tuned' is expected",
    "--kernel sparce": "--kernel: unknown kernel 'sparce'; did you mean sparse or sparseprop?",
    "--jobs 0": "--jobs: '0': a whole number from 1 up to 1024 is expected",
    "--jobs many": "--jobs: 'many': a whole number from 1 up to 1024 is expected",
    "--jobs": "--jobs: a value is expected",
    "--retry stael": "--retry: unknown status 'stael'; did you mean stale?",
    "--retry ,": "--retry: ',' lacks a name before or after a comma",
    "--methods dense,": "--methods: 'dense,' lacks a name before or after a comma",
    "--methods=": "--methods: it is empty; give a value, or leave it out",
    "--methods RigL": "--methods: unknown method 'RigL'; did you mean rigl?",
    "--methods ML-LinBreg": "--methods: unknown method 'ML-LinBreg'; did you mean",
    "--tasks Digits/MLP": "--tasks: unknown task 'Digits/MLP'; did you mean digits/mlp?",
    "--budget 1e308": "--budget is '1e308': a number up to 1e+06 is expected",
    "--seeds 99999999999999999999999,": "--seeds is '99999999999999999999999,': '99999999999999999999999' is no",
    "--set digits/mlp.steps=99999999999999999999": "--set: digits/mlp.steps is '99999999999999999999': a whole",
    "--set digits/mlp.batch=9999999999999": "--set: digits/mlp: recipe.batch is 9999999999999; at least 1",
    "--set digits/mlp.lr.sgd=1e400": "--set: digits/mlp.lr.sgd is '1e400': a finite number is expected",
    "--methods rigel": "--methods: unknown method 'rigel'; did you mean rigl",
    "--tasks digits/mpl": "--tasks: unknown task 'digits/mpl'; did you mean digits/mlp",
    "--set rigl=3": "--set: 'rigl' is '3': write rigl.FIELD=VALUE, or in a plan rigl: {FIELD: VALUE}",
    "--set rigl.alpha=x": "--set: rigl.alpha is 'x': a number is expected",
    "--set rigl.alpha=nan": "--set: rigl.alpha is 'nan': a finite number is expected",
    "--set =3": "--set: '' names no METHOD_OR_TASK.FIELD; there are: dense,",
    "--set digits/mlp.steps=1.5": "--set: digits/mlp.steps is '1.5': a whole number is expected",
    "--plugin nowhere.py": "--plugin: nowhere.py: no such file",
    "--plugin .": "--plugin: .: it is a folder, a file is expected",
    "--data-root nowhere": "--data-root: nowhere: no such folder",
    "--results file": "--results: file: it is a file, a folder is expected",
    "--report file --methods dense --tasks digits/mlp": "--report: file cannot be written",
    "--dry-run=3": "--dry-run: it takes no value",
    "--methodes rigl": "unknown option --methodes; did you mean --methods? (see dstbench run --help)",
    "quick more": "got unexpected extra argument(s) (more) (see dstbench run --help)",
    "nowhere.yaml": "plan 'nowhere.yaml': no such file, and the embedded plans are bregman2022, granet",
    "statsu": "no command and no plan is named 'statsu'; did you mean status?",
    "help statsu": "no command is named 'statsu'; did you mean status?",
    "help 7": "no command is named '7'; there are: run, list,",
    "list": "methods|tasks|kernels|plans: it is missing (see dstbench list --help)",
    "list method": "nothing to list as 'method'; did you mean methods?",
    "list plans --markdown": "--markdown: it goes with `list methods` and `list tasks` alone",
    "validate": "PLAN: it is missing (see dstbench validate --help)",
    "validate nowhere": "plan 'nowhere': no such file",
    "validate .": "plan '.': it is a folder",
    "status --results nowhere": "--results: nowhere: no such folder",
    "status quikc": "plan 'quikc': no such file",
    "report --results nowhere": "--results: nowhere: no such folder",
    "report --results file": "--results: file: it is a file, a folder is expected",
    "report --results empty": "--results: no record to report in empty; nothing is written",
    "report --results empty --methods dense": "--methods: no record is of 'dense'; there are: none",
    "check": "NAME|FILE: give NAME or FILE, or --all",
    "check rigel": "unknown method 'rigel'; did you mean rigl",
    "check rigl --jobs -1": "--jobs: '-1': a whole number from 1 up to 1024 is expected",
    "check rigl --kernel fast": "--kernel: unknown kernel 'fast'; there are: masked,",
    "check rigl --task digits/mpl": "unknown task 'digits/mpl'; did you mean digits/mlp",
    "check nowhere.py": "NAME|FILE: nowhere.py: no such file",
    "explain rigel": "unknown method 'rigel'; did you mean rigl",
    "explain --sparsity 90": f"--sparsity: '90': {SHARE}; did you mean 0.9?",
    "explain --device gpu": "--device: 'gpu': unknown device 'gpu'; choose auto, cpu, mps, cuda or cuda:N",
    "explain --threads 0": "--threads: '0': a whole number from 1 up to 1024 is expected",
    "explain --precision fp8": "--precision: 'fp8': fp32, bf16 or fp16 is expected",
    "explain --kernel sparce": "--kernel: unknown kernel 'sparce'; did you mean sparse or sparseprop?",
    "explain --task digits/mpl": "unknown task 'digits/mpl'; did you mean digits/mlp",
    "new methods mine": "nothing to make as 'methods'; did you mean method?",
    "new method": "NAME: it is missing (see dstbench new --help)",
    "new method rigl": "'rigl' is the name of a method already",
    "new method mine --folder file": "file cannot be written",
    "doctor --results file": "--results: file: it is a file, a folder is expected",
    "doctor --data-root nowhere": "--data-root: nowhere: no such folder",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_line_and_exit_code_two(line: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "records").mkdir(parents=True)
    result = call(*line.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {WRONG[line]}") and result.stderr.count("\n") == 1 and not result.stdout
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())
    for noise in ("Traceback", "Usage", "nput should", "pydantic", "^", "│"):
        assert noise not in result.output


def test_an_empty_argument_names_its_option() -> None:
    for arguments in (["--results", ""], ["status", "--results", ""], ["--results="]):
        assert call(*arguments).stderr == "error: --results: it is empty; give a value, or leave it out\n"


@pytest.mark.parametrize(
    "line",
    ["--help", "list kernels", "list plans", "--device gpu", "--kernel fast", "explain --device gpu", "--version"],
)
def test_what_needs_no_torch_loads_none(line: str) -> None:
    code = (
        "import sys\nfrom dstbench import cli\nfrom typer.testing import CliRunner\n"
        f"CliRunner().invoke(cli.app, {line.split()})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


# ---- help, version, completion ---------------------------------------------------------------------------------------


def test_version_is_that_of_the_project() -> None:
    assert call("--version").stdout == f"dstbench {help.version()}\n"
    assert f'version = "{help.version()}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("me", ["dstbench", "python run_all.py"])
def test_help_says_the_command_that_was_called(me: str) -> None:
    text = call("--help", me=me).stdout
    assert f" {me} --retry error,stale" in text and f"{me} run --help" in text and f"Usage: {me} " in text
    assert ("run_all.py" in text) == ("run_all.py" in me)
    advice = call("new", "method", f"mine{len(me)}", me=me).stdout
    assert f" {me} check mine{len(me)}.py" in advice and ("dstbench run" in advice) == (me == "dstbench")


def test_the_program_is_named_as_it_was_called() -> None:
    assert help.program(["/usr/bin/dstbench"]) == help.program(["/x/dstbench/__main__.py"]) == "dstbench"
    assert help.program(["../a b/run_all.py"]) == "python '../a b/run_all.py'"


def test_help_has_many_doors() -> None:
    whole = call("--help").stdout
    assert whole and call("-h").stdout == call("help").stdout == whole
    run = call("run", "--help").stdout
    assert run and call("run", "-h").stdout == call("help", "run").stdout == run
    for panel in ("What to run", "How to run it", "Results"):
        assert f"─ {panel} ─" in run
    assert "--keep" not in run and "Exit code: 0; 1 where something failed" in run
    for command in ("list", "validate", "status", "report", "check", "explain", "new", "doctor"):
        assert command in whole and call(command, "-h").exit_code == 0


def complete(words: str, asked: str = "complete_bash") -> list[str]:
    place = str(len(words.split(" ")) - 1)
    environment = {**os.environ, "_DSTBENCH_COMPLETE": asked, "COMP_WORDS": words, "COMP_CWORD": place}
    code = "from dstbench.cli import app; app(prog_name='dstbench')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_names() -> None:
    assert complete("dstbench exp") == ["explain"]
    assert complete("dstbench --meth") == ["--methods"], "of the default command"
    assert complete("dstbench explain rigl:i") == ["rigl:itop"]
    assert complete("", "source_bash")[-3:] == ["-F", "_dstbench_completion", "dstbench"], "what bash is told"


def test_completion_is_for_the_installed_command() -> None:
    result = call("--install-completion", me="python run_all.py")
    assert result.exit_code == 2 and "completion is for the installed command: dstbench --install-completion" in (
        result.stderr
    )
