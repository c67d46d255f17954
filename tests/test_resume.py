"""State that lives where no checkpoint finds it, or that none can hold; defaults that are others elsewhere."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from broken import breach
from dstbench.suite.check import ELSEWHERE, RESUME, Given, examine, resume
from dstbench.suite.checks.resume import resumes_after_any_step, write_states
from dstbench.suite.checks.subject import Subject

BUILT_ON_THE_WAY = """
    def lr(self, t):
        return super().lr(t) * (1 + 0.01 * len(GATHERED))
    def step(self, t):
        GATHERED.add(t)
        super().step(t)
GATHERED = set()
"""
FINISH = """
    def step(self, t):
        super().step(t)
        self.last = t
    def finish(self):
        for layer in self.layers: layer.assign(layer.weight * (1 + self.last))
"""


def elsewhere(work, subject: Subject, file: Path) -> str:
    """What `work` says in a process that has run nothing."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(work, (subject, file))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (BUILT_ON_THE_WAY, "after step 95 model"),
        ("    total = []\n" + BUILT_ON_THE_WAY.replace("GATHERED.add(t)", "self.total.append(t)").replace(
            "len(GATHERED)", "len(self.total)"), "after step 95 model"),
        (FINISH, "AttributeError"),
    ],
)  # fmt: skip
def test_what_a_class_or_module_gathers_is_not_there_after_a_resume(tmp_path: Path, code: str, text: str) -> None:
    subject = breach(tmp_path, code)
    assert write_states(subject, tmp_path / "states") == ""
    try:
        found = elsewhere(resumes_after_any_step, subject, tmp_path / "states")
    except AttributeError as error:
        found = f"AttributeError: {error}"
    assert text in found


@pytest.mark.slow
@pytest.mark.parametrize("held", ["object()", "lambda: 0", "largest"])
def test_state_that_cannot_be_saved_is_a_verdict_that_says_why(tmp_path: Path, held: str) -> None:
    subject = breach(tmp_path, f"    def begin(self, t):\n        self.memory['odd'] = {held}\n")
    given = Given("broken", ("digits/mlp",), plugins=tuple(subject.plugins), file=str(tmp_path / "states"))
    bad = {verdict.name: verdict.text for verdict in examine(given) if not verdict.ok}
    assert "after step 1 the state cannot be saved (keep tensors, numbers and text" in bad[f"broken: {RESUME}"]
    assert not Path(given.file).exists()


@pytest.mark.slow
def test_defaults_of_chance_are_caught_by_another_process(tmp_path: Path) -> None:
    subject = breach(tmp_path, "    alpha: float = random.random()\n")
    given = Given("broken", ("digits/mlp",), plugins=tuple(subject.plugins), file=str(tmp_path / "states"))
    assert all(verdict.ok for verdict in examine(given))
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        verdicts = {verdict.name: verdict for verdict in pool.apply(resume, (given,))}
    wrong = verdicts[f"broken: {ELSEWHERE}"]
    assert not wrong.ok and wrong.text.startswith("defaults differ from process to process (alpha = 0.")
    assert verdicts[f"broken: {RESUME}"].ok
