"""Sizes: what a task is made of, counted on `meta`, where a network holds no numbers and computes none."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from dstbench.suite.meters.copies import undisturbed
from dstbench.suite.meters.flopmeter import FlopMeter
from dstbench.suite.meters.flops import measure
from dstbench.suite.registry import Entry, RegistryError
from dstbench.suite.task import DataError, Task

FACTS = "dstbench.tasks.facts"  # knows the shape of an input without the data
COLUMNS = ("data", "model", "source", "parameters", "multiply_adds")


def row(entry: Entry) -> dict[str, Any]:
    """Data, model, the recipe's source, parameters and multiply-adds of a forward pass of one input, by name.

    What a task does not tell is "", and what cannot be counted is None: its data is not there, or it is broken.
    """
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    try:
        task = entry.load()
        said = task.describe()
        found |= {key: str(said.get(key) or getattr(task, key, "")) for key in COLUMNS[:3]}
        parameters, flops = counts(task)
    except (RegistryError, DataError):
        return found
    return found | {"parameters": parameters, "multiply_adds": flops // 2}


def counts(task: Task) -> tuple[int, int]:
    """The parameters of the task's network, and the FLOPs of a forward pass of one input in evaluation.

    Raises:
        DataError: If the data has to be read, and is missing.
    """
    one = importlib.import_module(FACTS).example(task)
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


def _forward(net: nn.Module, one: torch.Tensor) -> int:
    with undisturbed(), torch.no_grad(), FlopMeter(dict(net.named_parameters())) as meter:
        net.eval()(one)
    return meter.total
