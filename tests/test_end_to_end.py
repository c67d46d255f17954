import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dstbench.suite import record

ROOT = Path(__file__).parents[1]
BROKEN = "from dstbench.suite.registry import register\n@register\nclass Torn(Method):\n    pass\n"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(Path(__file__).with_name("failing.py").read_text())
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_all.py"), *map(str, arguments)]


def shell(*arguments: object, cwd: Path, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=seconds)


@pytest.mark.slow
def test_two_runs_a_report_and_nothing_twice(plugin: Path, tmp_path: Path) -> None:
    options = ["--plugin", plugin, "--methods", "dense,static", "--tasks", "blobs", "--sparsity", "0.5", "--seeds", "0"]
    first = shell(*options, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("2 runs, 0 done, 2 left") and lines[1].startswith("[1/2]") and "2 ok" in lines
    assert (tmp_path / "report" / "index.html").is_file()
    assert "dense" in first.stdout.split("2 ok")[1], "the leaderboard"
    records, set_aside = record.load(tmp_path / "results")
    assert not set_aside and {r["id"]["method"]: r["status"]["name"] for r in records} == {
        "dense": "ok",
        "static": "ok",
    }
    assert all(r["memory"]["start_method"] == "forkserver" for r in records)
    before = sorted((tmp_path / "results" / "records").iterdir())
    second = shell("run", *options, cwd=tmp_path)
    assert second.returncode == 0 and "2 runs, 2 done, 0 left" in second.stdout
    assert sorted((tmp_path / "results" / "records").iterdir()) == before


def test_every_way_to_fail_and_all_others_complete(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.py").write_text(BROKEN)
    wanted = {
        "raises_in_setup": ("error", "RuntimeError: setup went wrong"),
        "raises_in_step": ("error", "step went wrong"),
        "nan": ("diverged", "nan"),
        "hangs": ("timeout", "stopped after 6 s"),
        "kills": ("error", "process killed by signal 9"),
        "leaves": ("error", "process ended with exit code 0"),
        "skips": ("skipped", "not made for blobs"),
        "dense": ("ok", ""),
    }
    options = ["--plugin", plugin, "--plugin", tmp_path / "torn.py", "--tasks", "blobs", "--sparsity", "0.5"]
    done = shell("run", "--methods", ",".join(wanted), *options, "--seeds", "0", "--timeout", "6s", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "torn.py is broken: NameError" in done.stderr and "Traceback" not in done.stderr
    records = {r["id"]["method"]: r["status"] for r in record.load(tmp_path / "results")[0]}
    assert {name: r["name"] for name, r in records.items()} == {name: status for name, (status, _) in wanted.items()}
    for name, (_, reason) in wanted.items():
        assert reason in records[name]["reason"], name
    assert "raise RuntimeError" in records["raises_in_setup"]["traceback"]
    assert f"[{len(wanted)}/{len(wanted)}]" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no process groups")
def test_ctrl_c_ends_cleanly_and_the_next_call_goes_on(plugin: Path, tmp_path: Path) -> None:
    options = ["run", "--plugin", plugin, "--methods", "slow", "--tasks", "blobs", "--seeds", "0"]
    running = subprocess.Popen(
        command(*options),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that puts pytest into the background makes it, and so its children, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = tmp_path / "results" / "work"
    end = time.monotonic() + 120
    while not list(checkpoint.glob("*/checkpoint.pt")) and time.monotonic() < end and running.poll() is None:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, (out, err)
    assert err == "interrupted; the same command goes on from here\n"
    assert record.load(tmp_path / "results") == ([], []) and not (tmp_path / "results" / ".lock").exists()
    assert shell(*options, cwd=tmp_path).returncode == 0
    (found,) = record.load(tmp_path / "results")[0]
    assert found["status"]["name"] == "ok" and found["stamps"]["resumed"] == 1 and found["score"]["step"] == 20


def newest(results: Path) -> int:
    """When the last checkpoint or record was written, in ns; 0 where there is none."""
    found = [*results.glob("work/*/checkpoint.pt"), *results.glob("records/*.json")]
    return max((path.stat().st_mtime_ns for path in found if path.exists()), default=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_process_group_killed_ten_times_ends_bit_identical(tmp_path: Path) -> None:
    plan = ["--methods", "dense,rigl,ml_linbreg", "--tasks", "digits/resnet,digits/vit", "--seeds", "0,1"]
    assert shell("run", *plan, "--results", tmp_path / "whole", cwd=tmp_path, seconds=1500).returncode == 0
    moments = random.Random(0)
    for _ in range(10):
        before = newest(tmp_path / "killed")
        with subprocess.Popen(command("run", *plan, "--results", tmp_path / "killed"), start_new_session=True) as child:
            while child.poll() is None and newest(tmp_path / "killed") == before:
                time.sleep(0.05)  # a kill before anything was written would show nothing
            time.sleep(3 * moments.random())
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    assert shell("run", *plan, "--results", tmp_path / "killed", cwd=tmp_path, seconds=1500).returncode == 0
    whole, killed = ({r["id"]["key"]: r for r in record.load(tmp_path / name)[0]} for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and len(whole) == 20
    for key, undisturbed in whole.items():
        for block in ("hashes", "curve", "flops", "score", "sparsity"):
            assert undisturbed[block] == killed[key][block], f"{killed[key]['id']}: {block}"
    assert any(r["stamps"]["resumed"] for r in killed.values())
