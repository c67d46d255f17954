"""The check: healthy methods pass, and each kind of breach is caught by its own check."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from suite import registry
from suite.check import CHECKS, check

HEAD = """
import torch
from suite.method import Method
from suite.registry import register

def half(method):
    for layer in method.layers:
        mask = torch.zeros(layer.numel, dtype=torch.bool)
        mask[torch.randperm(layer.numel, generator=method.rng)[: round(layer.numel * (1 - method.sparsity))]] = True
        layer.activate(mask.view(layer.shape))

@register
class Broken(Method):
    def setup(self, gradients):
        half(self)
"""

BREACHES = {
    "declared masks hold": """
    def step(self, t):
        super().step(t)
        for layer in self.layers: layer.parameter.data.add_(1e-3)
""",
    "sparsity is on target": """
    def begin(self, t):
        if t == 90:
            for layer in self.layers: layer.activate(torch.ones(layer.shape, dtype=torch.bool))
""",
    "resuming is bit-exact": """
    count = 0
    def step(self, t):
        self.count += 1
        for group in self.optimizer.param_groups: group["lr"] *= 0.9 ** self.count
        super().step(t)
""",
    "storages agree": """
    def step(self, t):
        super().step(t)
        if self.layers[0].parameter.dim() == 2:
            for layer in self.layers: layer.parameter.data.mul_(1.1)
""",
    "hyper-parameters survive JSON": """
    odd: object = None
    def __post_init__(self):
        self.odd = (self.odd, 1)
""",
}


@pytest.mark.parametrize("method", ["dense", "rigl", "ml_linbreg"])
def test_healthy_methods_pass(method: str) -> None:
    verdicts = check(method)
    assert len(verdicts) == len(CHECKS)
    assert all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]


@pytest.mark.parametrize("breach", BREACHES)
def test_each_breach_is_caught_by_its_own_check(tmp_path: Path, breach: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(textwrap.dedent(HEAD) + BREACHES[breach])
    caught = [v.name for v in check(str(path)) if not v.ok]
    assert f"broken: {breach}" in caught, caught


def test_a_kernel_that_reads_unread_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.kernels.masked import Masked

    monkeypatch.setattr(Masked, "weight", lambda self, layer: layer.parameter)
    verdicts = {v.name: v for v in check("rigl")}
    assert "weights outside forward_mask" in verdicts["rigl: unread weights have no influence"].text


def test_a_method_that_raises_gets_a_verdict_and_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(textwrap.dedent(HEAD) + "        raise ArithmeticError('my fault')\n")
    verdicts = check(str(path))
    assert any("ArithmeticError: my fault" in v.text for v in verdicts if not v.ok)


def test_a_file_without_a_method_and_an_unknown_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(registry.RegistryError, match="registers nothing; put @register"):
        check(str(path))
    with pytest.raises(registry.RegistryError, match="unknown method 'rigll'; did you mean rigl"):
        check("rigll")
