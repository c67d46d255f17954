"""What must not matter, to the end of the run; keys of real runs; the odd network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broken import breach, wrong
from dstbench.suite import registry, values
from dstbench.suite.checks.subject import Subject

LATE = """
    def setup(self, gradients):
        super().setup(gradients)
        self.layers[0].parameter.register_hook(lambda g: self.memory.update(size=float(g.abs().max())))
    def lr(self, t):
        return super().lr(t) / (1 + (self.memory.get("size", 0) if t > 70 else 0))
"""
STORED = """
    def step(self, t):
        super().step(t)
        if t > 70 and self.layers[0].parameter.dim() == 2:
            for layer in self.layers: layer.parameter.data.mul_(1.1)
"""


@pytest.mark.parametrize(
    ("title", "code"),
    [
        ("storages agree", STORED),
        ("loss scale does not matter", LATE),
        ("accumulation does not matter", LATE),
    ],
)
def test_what_goes_wrong_late_is_caught(tmp_path: Path, title: str, code: str) -> None:
    assert "losses differ by" in wrong(breach(tmp_path, code), title)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("    alpha: int = 0.5\n", "alpha is 0.5"),
        ("    alpha: object = '1'\n", "to spell out the default alpha = '1' changes the key of a run"),
        ("    alpha: list = field(default_factory=lambda: [random.random()])\n", "each time they are asked for"),
    ],
)
def test_defaults_that_cannot_be_spelt_out_are_caught(tmp_path: Path, code: str, text: str) -> None:
    assert text in wrong(breach(tmp_path, code), "identity is stable")


def test_keys_are_those_of_the_suite_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that put every field into the key, not only those that differ from defaults, would be told."""
    subject = Subject("rigl", "digits/mlp")
    assert wrong(subject, "identity is stable") == ""

    real = registry.nondefault

    def all_fields(entry: registry.Entry, given: Any) -> dict[str, Any]:
        return {**values.defaults(entry.load()), **given} if isinstance(entry.load(), type) else real(entry, given)

    def all_given(entry: registry.Entry, given: Any) -> dict[str, Any]:
        return dict(given) if isinstance(entry.load(), type) else real(entry, given)

    monkeypatch.setattr(registry, "nondefault", all_fields)
    assert "a new field with a default changes the key" in wrong(subject, "identity is stable")
    monkeypatch.setattr(registry, "nondefault", all_given)
    assert "to spell out the default" in wrong(subject, "identity is stable")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            """
    def setup(self, gradients):
        super().setup(gradients)
        for layer in self.layers:
            if len(layer.shape) == 4: layer.parameter.register_hook(lambda g: 1.5 * g)
""",
            "stem: gradient is",
        ),
        (
            """
    def begin(self, t):
        for layer in self.layers:
            if len(layer.shape) == 4 and t == 5: layer.activate(torch.ones(layer.shape, dtype=torch.bool))
""",
            "the target is 205",
        ),
    ],
)
def test_what_goes_wrong_on_convolutions_alone_is_caught_on_the_odd_network(
    tmp_path: Path, code: str, text: str
) -> None:
    assert text in wrong(breach(tmp_path, code), "odd networks train")


def test_unread_weights_are_looked_at_on_the_odd_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from dstbench.suite.kernels.masked import Masked

    masked = Masked.weight
    monkeypatch.setattr(Masked, "weight", lambda self, y: y.parameter if len(y.shape) == 4 else masked(self, y))
    assert "weights outside forward_mask" in wrong(Subject("static", "digits/mlp"), "odd networks train")
