import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from dstbench.suite import progress, record
from dstbench.suite.executors import Outcome
from dstbench.suite.plan import Run
from records import ended

RUNS = [Run("rigl", "digits/mlp", 0.9), Run("dense", "digits/mlp", None, 1)]


class Fake:
    """Runs nothing: the first run scores, the second fails."""

    closed = False

    def run(self, runs: Sequence[Run], results: Path) -> Iterator[Outcome]:
        try:
            for run, status in zip(runs, ("ok", "error"), strict=True):
                yield Outcome(run, "running", 0.0)
                found = ended(run, status, "" if status == "ok" else "ValueError: no\nluck", 0.95123)
                record.write(found, results)
                yield Outcome(run, status, 1.25)
        finally:
            self.closed = True


def test_one_plain_line_for_each_run_that_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake()
    assert progress.follow(fake, RUNS, tmp_path, bars=False) == {"ok": 1, "error": 1}
    first, second = capsys.readouterr().out.splitlines()
    for part in ("[1/2]", RUNS[0].key, "rigl", "digits/mlp", "0.9", "seed 0", "ok", "0.9512", "1.2 s", "left 0:0"):
        assert part in first
    for part in ("[2/2]", RUNS[1].key, "dense", "seed 1", "error", "ValueError: no luck", "left 0:00"):
        assert part in second
    assert fake.closed


def test_bars_show_what_runs_and_tell_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    bars = progress.Bars(2)
    bars.progress.live.console = Console(file=screen, force_terminal=True, width=160)
    monkeypatch.setattr(progress, "Bars", lambda total: bars)
    assert progress.follow(Fake(), RUNS, tmp_path, bars=True) == {"ok": 1, "error": 1}
    assert bars.running == {} and bars.progress.tasks[0].completed == 2
    assert f"error: {RUNS[1]}: ValueError: no luck" in screen.getvalue()


def test_a_closed_output_closes_the_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Lines, "show", fail)
    with pytest.raises(KeyboardInterrupt):
        progress.follow(fake, RUNS, tmp_path, bars=False)
    assert fake.closed


def test_numbers_line_up() -> None:
    outcome = Outcome(RUNS[0], "ok", 3.0)
    one, ten = (progress.line(n, 135, outcome, "0.9", 3700) for n in (1, 10))
    assert one.startswith("[  1/135]") and ten.startswith("[ 10/135]") and len(one) == len(ten)
    assert one.endswith("left 1:01:40")
