"""What the timing commands share: options and their errors, samples and medians, the JSON form."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import torch

from benchmarks import timing


def test_a_sample_is_the_time_of_one_call_of_several() -> None:
    seconds, _ = timing.sample(partial(time.sleep, 0.02), 3)
    assert 0.02 <= seconds < 0.2


@pytest.mark.parametrize(
    ("foreign", "alone"),
    [(0.0, True), (0.015, True), (0.5, False)],  # seconds, of a call of 0.1 s: 0.012 and a tick
)
def test_a_sample_is_clean_unless_others_used_more_than_their_share(monkeypatch, foreign: float, alone: bool) -> None:
    clocks = {"perf_counter": iter([0.0, 0.1]), "process_time": iter([0.0, 0.1])}
    for name, values in clocks.items():
        monkeypatch.setattr(timing.time, name, partial(next, values))
    busy = iter([5.0, 5.1 + foreign])
    monkeypatch.setattr(timing, "_busy", partial(next, busy))
    assert timing.sample(lambda: None) == (0.1, alone)


def test_the_median_is_of_clean_samples_or_else_of_the_fastest_third() -> None:
    assert timing.median([(3.0, True), (1.0, False), (5.0, True), (4.0, True), (9.0, False)]) == 4.0
    assert timing.median([(6.0, False), (2.0, False), (9.0, True), (3.0, False), (8.0, False), (7.0, False)]) == 2.5
    assert timing.median([(2.0, False)]) == 2.0


def test_candidates_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE", 0.0)
    called: list[str] = []
    found = timing.medians({name: partial(called.append, name) for name in "ab"}, 3)
    assert "".join(called) == "aabb" + "ab" * 3
    assert set(found) == {"a", "b"} and all(seconds > 0 and clean <= 3 for seconds, clean in found.values())


def begin(*arguments: str) -> object:
    made = timing.parser("doc", ["mlp", "resnet18", "vgg16"], [0.9], batch=128, rounds=11)
    return timing.begin(made, [*arguments, "--allocator", "system"])


def test_options_choose_and_set() -> None:
    options = begin("--only", "net, mlp", "--sparsity", "0.8", "0.95", "--threads", "1", "--batch", "3")
    assert options.chosen == ["mlp", "resnet18"] and options.sparsity == [0.8, 0.95]
    assert (options.batch, options.rounds, options.json) == (3, 11, False)
    assert torch.get_num_threads() == 1
    assert begin("--threads", "1").chosen == ["mlp", "resnet18", "vgg16"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--threads", "4096"), r"--threads 4096: there are \d+ cores here; give at most that many"),
        (("--threads", "0"), "'0': give a whole number from 1 on"),
        (("--only", "vit"), "no name has 'vit' in it; choose from mlp, resnet18, vgg16"),
        (("--sparsity", "95"), "'95': give a share of zero weights between 0 and 1, such as 0.9"),
        (("--sparsity", "high"), "'high': give a share"),
        (("--batch", "-1"), "'-1': give a whole number"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(capsys, arguments: tuple[str, ...], text: str) -> None:
    import re

    with pytest.raises(SystemExit):
        begin(*arguments)
    assert re.search(text, capsys.readouterr().err)


def test_where_the_allocator_cannot_be_tuned_the_report_says_system(monkeypatch) -> None:
    monkeypatch.setattr(timing.allocator, "tune", lambda: False)
    options = timing.begin(timing.parser("doc"), ["--threads", "1"])
    assert options.allocator == "system (this C library has no setting)"
    monkeypatch.setattr(timing.allocator, "tune", lambda: True)
    assert timing.begin(timing.parser("doc"), ["--threads", "1"]).allocator == "tuned"


ROW = {"layer": "one", "kernel": "sparse", "sparsity": 0.95, "seconds": 0.002, "speedup": 3.0}


def test_json_goes_to_standard_output_and_the_table_to_standard_error(capsys) -> None:
    report = timing.Report(begin("--json", "--threads", "1", "--rounds", "2"))
    report.add(dict(ROW), "2/2 clean")
    report.close(roofs={"l1": 1.0})
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["rows"] == [ROW] and found["roofs"] == {"l1": 1.0}
    assert found["machine"]["cores"] and found["versions"]["torch"]
    assert [found[k] for k in ("threads", "batch", "rounds", "allocator")] == [1, 128, 2, "system"]
    line = err.splitlines()[0]
    assert "one" in line and "0.95" in line and "2.000 ms" in line and "3.00 x" in line and line.endswith("2/2 clean")


def test_without_json_the_table_is_on_standard_output(capsys) -> None:
    report = timing.Report(begin("--threads", "1"))
    report.add(ROW | {"sparsity": None, "method": "rigl"})
    report.close()
    out, err = capsys.readouterr()
    first, last = out.splitlines()
    assert first.startswith("rigl") and "threads 1, batch 128, rounds 11, allocator system" in last and not err
