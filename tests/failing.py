"""A plugin for tests: a task on random numbers, and methods that fail in every way there is."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.registry import register
from dstbench.suite.task import DataError, Task


@dataclass(frozen=True)
class Blobs(Task):
    def prepare(self):
        if self.root == Path("/empty"):
            raise DataError("blobs: no folder /empty; give another by --data-root DIR")

    def fingerprint(self):
        return "b" * 12

    def build(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def example(self):
        return torch.zeros(2, 8)

    def batches(self, split, seed, start=0):
        centres = 2 * torch.randn(4, 8, generator=torch.Generator().manual_seed(7))
        t = start
        while split in ("train", "calibration") or t < 4:
            rng = torch.Generator().manual_seed(1000 * len(split) + 100 * seed + t)
            labels = torch.randint(4, (self.recipe.batch,), generator=rng)
            yield centres[labels] + torch.randn(len(labels), 8, generator=rng), labels
            t += 1


register(Blobs(name="blobs", recipe=Recipe(steps=20, batch=16, lr={"sgd": 0.05, "adam": 1e-3}), chance=0.25))


@register
class RaisesInSetup(Method):
    def setup(self, gradients):
        raise RuntimeError("setup went wrong")


@register
class RaisesInStep(Method):
    def step(self, t):
        raise KeyError("step went wrong")


@register
class Nan(Method):
    def descend(self, batch):
        return super().descend(batch) * float("nan")


@register
class Hangs(Method):
    def begin(self, t):
        time.sleep(600)


@register
class Kills(Method):
    def begin(self, t):
        os.kill(os.getpid(), signal.SIGKILL)


@register
class Leaves(Method):
    def begin(self, t):
        os._exit(0)


@register
class Skips(Method):
    def skip(self, task):
        return "not made for " + task.name


@register
class Slow(Method):
    sparse = False
    alpha: float = 0.1

    def begin(self, t):
        time.sleep(0.25)
