"""What `grown` says of where weights start is held against where they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from broken import breach, wrong

TITLE = "grown weights start as declared"
MOVES = """
    def begin(self, t):
        if t % 8 == 7:
            for layer in self.layers:
                layer.activate(layer.forward_mask.flatten().roll(1).view(layer.shape), grown={start})
"""


@pytest.mark.parametrize(
    ("said", "start", "text"),
    [
        ("", 0.1, "weight not zero (use Layer.activate, or say in `grown` where they start)"),
        (
            "wherever it likes",
            0.1,
            "`grown` is 'wherever it likes': begin it with one of 'at zero', 'at its own",
        ),
        ("at zero, more or less", 0.1, "the value is not zero, as `grown` says"),
        ("at its own value", 0.1, "the value is not what the optimiser's step left there, as `grown` says"),
        ("one step off zero", 0.5, "the value is 0.5 from zero, while other weights moved by"),
        ("one step off zero", 0.0, "but all start at zero, value and state: leave it out"),
        ("", 0.0, ""),
    ],
)
def test_what_is_said_is_what_is_checked(tmp_path: Path, said: str, start: float, text: str) -> None:
    found = wrong(breach(tmp_path, f"    grown = {said!r}\n" + MOVES.format(start=start)), TITLE)
    assert text in found and bool(text) == bool(found)


def test_a_value_that_was_there_before_is_no_step_off_zero(tmp_path: Path) -> None:
    code = """
    grown = "one step off zero"
    keeps = {"weight": "all of it"}
    def begin(self, t):
        if t % 8 == 7:
            for layer in self.layers:
                layer.forward_mask = layer.grad_mask = layer.forward_mask.flatten().roll(1).view(layer.shape)
"""
    assert "the value was not zero before" in wrong(breach(tmp_path, code), TITLE)
    assert wrong(breach(tmp_path, code.replace("one step off zero", "at its own value")), TITLE) == ""
