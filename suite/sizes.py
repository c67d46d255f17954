"""Sizes: what a task is made of, counted on `meta`, where a network holds no numbers and computes none."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn

from dstbench.suite.meters.copies import norms_of_one, undisturbed
from dstbench.suite.meters.flopmeter import FlopMeter
from dstbench.suite.meters.flops import measure
from dstbench.suite.plugins import FAILURES
from dstbench.suite.registry import Entry, RegistryError
from dstbench.suite.task import DataError, Task

FACTS = "dstbench.tasks.facts"  # knows the shape of an input without the data
COUNTS = ("parameters", "multiply_adds")
COLUMNS = ("data", "model", "recipe", "source", *COUNTS, *(f"published_{name}" for name in COUNTS))


def row(entry: Entry) -> dict[str, Any]:
    """Data, model, recipe and its source, parameters and multiply-adds of a forward pass of one input, by name.

    Beside the counts stand those that others have published of the same network, in their words, with their source.
    What a task does not tell and nobody has published is "", and what cannot be counted is None: its data is not there,
    or it is broken.
    """
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    known = _facts().published()
    for name in COUNTS:
        count = known.get((entry.name, name))
        found[f"published_{name}"] = f"{count.text} ({count.source})" if count else ""
    try:
        task = entry.load()
        said = task.describe()
        found |= {key: str(said.get(key) or getattr(task, key, "")) for key in ("data", "model", "source")}
        found["recipe"] = recipe(task)
        parameters, flops = counts(task)
    except (*FAILURES, RegistryError, DataError):
        return found
    return found | {"parameters": parameters, "multiply_adds": flops // 2}


def counts(task: Task) -> tuple[int, int]:
    """The parameters of the task's network, and the FLOPs of a forward pass of one input in evaluation.

    Raises:
        DataError: If the data has to be read, and is missing.
    """
    one = _facts().example(task)
    try:
        with torch.device("meta"):
            net = task.build(0)
        flops = _forward(net, one.to("meta"))
    except (RegistryError, DataError):
        raise
    except Exception:  # code of a user's, which may look at numbers
        net = task.build(0)
        flops = measure(net, one).inference.ahead
    return sum(parameter.numel() for parameter in net.parameters()), flops


def recipe(task: Task) -> str:
    """How a task trains, in words: epochs where it is known how many images there are, steps and batch, rule, rate."""
    rules, name = task.recipe, getattr(task, "data", None)
    known = getattr(task, "facts", None) or (_facts().FACTS.get(name) if isinstance(name, str) else None)
    length = f"{rules.steps:,} steps of {rules.batch}"
    if known and known.train and not getattr(task, "images", 0):
        epochs = rules.steps / (known.train // rules.batch)
        length = f"{epochs:.4g} epochs ({length})"
    parts = [length, f"{rules.optimizer} {rules.lr.get(rules.optimizer, math.nan):g}", rules.schedule]
    parts += [f"warm-up {rules.warmup:.2g} of it"] * bool(rules.warmup)
    parts += [f"smoothing {rules.label_smoothing:g}"] * bool(rules.label_smoothing)
    return ", ".join(parts)


def pair(task: Task) -> torch.Tensor:
    """Two inputs of the right shape, for a task whose data is missing; DataError where nothing else tells it."""
    one: torch.Tensor = _facts().example(task)
    return torch.cat([one, one])


def _facts() -> Any:
    return importlib.import_module(FACTS)


def _forward(net: nn.Module, one: torch.Tensor) -> int:
    with undisturbed(), norms_of_one(net), torch.no_grad(), FlopMeter(dict(net.named_parameters())) as meter:
        net.eval()(one)
    return meter.total
