"""A healthy method in a plugin file, to be broken by the code that is put behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dstbench.suite.checks import CHECKS
from dstbench.suite.checks.subject import Subject

HEAD = """
import random
from dataclasses import dataclass, field

import torch
from dstbench.suite.method import Method
from dstbench.suite.registry import register

def largest(method, score):
    for layer in method.layers:
        k = round(layer.numel * (1 - method.sparsity))
        mask = torch.zeros(layer.numel, dtype=torch.bool)
        mask[score(layer).flatten().topk(k).indices] = True
        yield layer, mask.view(layer.shape)

@register
class Broken(Method):
    def setup(self, gradients):
        for layer, mask in largest(self, lambda layer: torch.rand(layer.shape, generator=self.rng)):
            layer.activate(mask)
"""


def breach(tmp_path: Path, code: str, **options: Any) -> Subject:
    """The method with this code in its class, in a file of its own: a process loads a file once."""
    path = tmp_path / str(len(list(tmp_path.iterdir()))) / "broken.py"
    path.parent.mkdir()
    path.write_text(HEAD + code)
    return Subject("broken", "digits/mlp", "masked", [str(path)], **options)


def wrong(subject: Subject, title: str) -> str:
    """What a check says of the subject, errors included."""
    try:
        return CHECKS[title](subject)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        return str(error)
