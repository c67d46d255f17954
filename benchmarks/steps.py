"""Whole training steps, sparse over dense: python -m benchmarks.steps

Forward pass, backward pass, SGD with momentum, projection: each candidate is a run of the suite itself on one batch of
noise, and all take turns. Dense fp32 in each layout, dense bf16 (autocast), with `--compile` dense through
torch.compile; the method `static` with uniform random masks under the kernel `masked` at the first sparsity, and under
`sparse` at each, as every other one of `--methods`, which `--set` changes: `--methods depgraph --set depgraph.at=0`
measures the network that DepGraph leaves. Prints medians (benchmarks.timing says of what), the ratio of the
best dense fp32 layout to each, how many Layers took the sparse route, the bytes of weights, gradients, state, masks and
plans, and the ceiling: the ratio if all that is done with the Layers' weights took no time (benchmarks.amdahl).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import amdahl, timing
from dstbench.suite import registry, values
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import Batch
from dstbench.suite.train import Training
from dstbench.tasks import models
from dstbench.tasks.cifar10 import RESNET18, VIT_TINY
from dstbench.tasks.vision import VisionTask

# So many steps that no evaluation and no curve falls into a sample; so small a rate that gradients stay normal numbers.
RECIPE = Recipe(steps=10**7, batch=128, lr={"sgd": 1e-3, "adam": 1e-3})
UNIFORM = {"allocation": "uniform"}  # the same density in every Layer, where the method has a choice


@dataclass(frozen=True)
class Noise(VisionTask):
    """The same random batch at every step; `layouts` are those in which a dense network may be fastest."""

    shape: tuple[int, ...] = (3, 32, 32)
    layouts: tuple[str, ...] = ("NCHW", "NHWC")
    last: bool = False  # images come in the layout NHWC

    def example(self) -> Tensor:
        return torch.zeros(2, *self.shape)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return repeat(noise(self.recipe.batch, self.shape, self.last))


@cache
def noise(size: int, shape: tuple[int, ...], last: bool) -> Batch:
    """Random images and labels of ten classes."""
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, *shape, generator=rng), torch.randint(10, (size,), generator=rng)
    return images.to(memory_format=torch.channels_last) if last else images, labels


def vgg16() -> nn.Module:
    """timm's VGG-16 with batch norm for 32x32 images: its convolutions, then one Linear, as is usual on CIFAR-10.

    timm's own head would stretch the last map, one pixel, to 7x7 for 120 million weights more; here it is made with one
    hidden unit, and dropped.
    """
    import timm

    net: Any = timm.create_model("vgg16_bn", num_classes=10, mlp_ratio=1 / 4096)
    net.pre_logits, net.head.fc = nn.Identity(), nn.Linear(512, 10)
    return net


def like(task: VisionTask, **more: Any) -> Noise:
    """The network of a task of the suite, and the layers that its rules keep dense."""
    return Noise(
        task.name.partition("/")[2], RECIPE, model=task.model, arguments=task.arguments, dense=task.dense, **more
    )


MLP = {"inputs": 784, "hidden": (1000, 1000), "outputs": 10}
MODELS = {
    "mlp": Noise("mlp", RECIPE, model=models.mlp, arguments=MLP, shape=(1, 28, 28), layouts=("",)),
    "vit_tiny": like(VIT_TINY, layouts=("",)),
    "resnet18": like(RESNET18),
    "vgg16": Noise("vgg16", RECIPE, model=vgg16),
}


def trainings(task: Noise, options: argparse.Namespace) -> dict[tuple[str, float | None], Training]:
    """The candidates, by kernel and sparsity, set up."""
    dense: dict[str, Callable[[Noise], Noise]] = {
        "dense": lambda task: task,
        "dense bf16": partial(using, precision="bf16"),
    }
    if options.compile:
        dense["dense compiled"] = partial(using, compile=True)
    found: dict[tuple[str, float | None], Training] = {}
    for name, changed in dense.items():
        for layout in task.layouts:
            one = Training(replace(changed(task), last=layout == "NHWC"), registry.method("dense"))
            if layout == "NHWC":
                one.model.net.to(memory_format=torch.channels_last)
            found[f"{name} {layout}".strip(), None] = one
    wanted = [("masked", "static", options.sparsity[0])]
    wanted += [("sparse", name, sparsity) for name in options.methods for sparsity in options.sparsity]
    for kernel, name, sparsity in wanted:
        uniform = {} if "allocation" not in values.defaults(registry.find("method", name).load()) else UNIFORM
        method = registry.method(name, **{"sparsity": sparsity, **uniform, **options.set.get(name, {})})
        if reason := method.skip(task):
            print(f"left out: {reason}", file=sys.stderr)
            continue
        label = kernel if name == "static" else f"{kernel} {name}"
        found[label, sparsity] = Training(task, method, kernel=kernel)
    for training in found.values():
        training.setup()
    return found


def using(task: Noise, **recipe: Any) -> Noise:
    """The task with another recipe."""
    return replace(task, recipe=replace(task.recipe, **recipe))


def measure(task: Noise, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a candidate."""
    runs = trainings(using(task, batch=options.batch), options)
    found = timing.medians({key: partial(step, training) for key, training in runs.items()}, options.rounds)
    seconds = {key: found[key][0] for key in runs}
    best = min(
        (key for key in runs if key[0] in {f"dense {layout}".strip() for layout in task.layouts}), key=seconds.get
    )
    share = amdahl.share(runs[best])
    for (kernel, sparsity), training in runs.items():
        took, clean = found[kernel, sparsity]
        yield {
            "model": task.name,
            "kernel": kernel,
            "sparsity": sparsity,
            "seconds": took,
            "speedup": seconds[best] / took,
            "clean_samples": clean,
            "routes": dict(Counter(layer.kernel.route(layer) for layer in training.model.layers)),
            "training_state": training.memory.peaks["training_state"],
            "layers_share": share,
            "ceiling": amdahl.ceiling(share),
        }


def step(training: Training) -> None:
    """One training step as in a run."""
    training.run(until=training.t + 1)


def settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hyper-parameters by method; ValueError for what is no METHOD.FIELD=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        method, dot, field = text.partition("=")[0].rpartition(".")
        if not dot or "=" not in text:
            raise ValueError(f"--set {text!r} is no METHOD.FIELD=VALUE, as in depgraph.at=0")
        found.setdefault(method, {})[field] = text.partition("=")[2]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    made = timing.parser(__doc__, list(MODELS), [0.9, 0.95, 0.99], batch=128, rounds=7)
    made.add_argument("--compile", action="store_true", help="torch.compile of the dense network too: slow to start")
    made.add_argument("--methods", default="static", help="names, comma-separated, measured under `sparse`")
    made.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD.FIELD=VALUE",
        help="of `--methods`: depgraph.at=0",
    )
    options = timing.begin(made, arguments)
    try:
        options.set = settings(options.set)
        options.methods = [registry.find("method", name.strip()).name for name in options.methods.split(",")]
        for name, fields in options.set.items():
            registry.method(name, **fields)
            if name not in {"static", *options.methods}:
                raise ValueError(f"--set: {name} is not measured; name it in --methods")
            if "sparsity" in fields:
                raise ValueError(f"--set: {name}.sparsity; give --sparsity instead")
    except ValueError as why:
        made.error(str(why))
    report = timing.Report(options)
    for name in options.chosen:
        for row in measure(MODELS[name], options):
            remark = f"{row['clean_samples']}/{options.rounds} clean  {row['training_state'] / 2**20:7.1f} MiB"
            if row["kernel"].startswith("sparse"):
                routes = row["routes"]
                remark += f"  {sum(routes.values()) - routes.get('dense', 0)} of {sum(routes.values())} layers sparse"
            report.add(row, remark)
        top = "no limit seen" if row["ceiling"] is None else f"{row['ceiling']:.2f} x"
        report.say(f"{name:22s} ceiling {top}: its Layers take {row['layers_share']:.1%} of a dense step")
    report.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
