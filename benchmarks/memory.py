"""What sparse training holds in memory, against dense SGD with momentum: python -m benchmarks.memory

The network, recipe and masks of cifar10/resnet18 at one sparsity, on random images: each method and kernel trains a few
steps in a process of its own, the third with whatever is dense in it (RigL's update of the topology, ML LinBreg's fine
step). Prints the run's `training_state` (parameters, gradients, optimiser state, masks, index plans) and the peak of
resident memory beyond what was resident before training (activations and temporaries included), and the share of each
in dense training's. glibc keeps much of what was freed for later; with --mapped, in every process alike, it gives back
every block of 256 KiB and more at once, so that what is resident is what is alive.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dstbench.suite import machine, registry
from dstbench.suite.task import Batch
from dstbench.suite.train import Training
from dstbench.tasks.cifar10 import RESNET18
from dstbench.tasks.vision import VisionTask

METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {},
    "set": {"period": 2, "stop": 1.0},
    "rigl": {"period": 2, "stop": 1.0},
    "ml_linbreg": {"m": 2, "control": "quantile"},
}
MEASURES = ("training_state", "peak_over_start")
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18)}


@dataclass(frozen=True)
class Random(VisionTask):
    """A vision task on random images of 3 x 32 x 32 and 10 classes."""

    def prepare(self) -> None:
        """There is no data."""

    def fingerprint(self) -> str:
        """There is no data to change."""
        return "0" * 12

    def example(self) -> Tensor:
        """Two images."""
        return torch.zeros(2, 3, 32, 32)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of (seed, step) alone."""
        t = start
        while True:
            rng = torch.Generator().manual_seed(seed * 10**6 + t)
            images = torch.randn(self.recipe.batch, 3, 32, 32, generator=rng)
            yield images, torch.randint(10, (len(images),), generator=rng)
            t += 1


def task(steps: int, batch: int) -> Random:
    """The stand-in for cifar10/resnet18."""
    values = {field.name: getattr(RESNET18, field.name) for field in fields(RESNET18)}
    return Random(**values | {"recipe": replace(RESNET18.recipe, steps=steps, batch=batch)})


def measure(name: str, kernel: str, sparsity: float, steps: int, batch: int, threads: int) -> dict[str, int]:
    """Bytes of a run of `steps` steps, in this process."""
    torch.set_num_threads(threads)
    training = Training(task(steps, batch), registry.method(name, sparsity=sparsity, **METHODS[name]), kernel=kernel)
    training.evaluate = lambda split: 0.0  # type: ignore[method-assign]
    training.setup()
    training.run()
    return {key: value for key, value in training.memory.block().items() if key in MEASURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kernels", default="masked,sparse")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=RESNET18.recipe.batch)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mapped", action="store_true", help="let glibc give back what is freed (see above)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ.update(MAPPED if options.mapped else {})
    wanted = [(name, kernel) for name in options.methods.split(",") for kernel in options.kernels.split(",")]
    runs = [("dense", "masked"), *(one for one in wanted if one[0] != "dense")]
    rows: list[dict[str, Any]] = []
    for name, kernel in runs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            work = name, kernel, options.sparsity, options.steps, options.batch, options.threads
            found = pool.apply(measure, work)
        dense = rows[0] if rows else found
        shares = {f"{key}_share": found[key] / dense[key] for key in MEASURES}
        rows.append({"method": name, "kernel": kernel, **found, **shares})
        if not options.json:
            text = (f"{key} {found[key] / 2**20:7.1f} MiB {shares[f'{key}_share']:7.1%}" for key in MEASURES)
            print(f"{name:11s} {kernel:7s} {'   '.join(text)}", flush=True)
    facts = {"machine": machine.facts(), "versions": machine.versions(), "mapped": options.mapped, "rows": rows}
    print(json.dumps(facts) if options.json else f"{facts['machine']['cpu']}, torch {facts['versions']['torch']}")


if __name__ == "__main__":
    main()
