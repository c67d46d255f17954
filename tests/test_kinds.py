"""The curated tasks that are no images: sizes, chance, first batches, and one step of each."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from dstbench.tasks import data as sets
from dstbench.tasks import denoise, hard, tabular, text, theory
from dstbench.tasks.data.text import Text

TASKS = {
    task.name: task
    for module in (denoise, hard, tabular, text, theory)
    for task in vars(module).values()
    if hasattr(task, "recipe") and hasattr(task, "batches")
}
# Parameters and forward multiply-adds of one sample (of a text: of one window).
SIZES = {
    "denoise/digits": (6 * (64 * 64 + 64), 6 * 64 * 64),
    "denoise/mnist": (6 * (784 * 784 + 784), 6 * 784 * 784),
    "fashion_mnist/autoencoder": (6 * (784 * 784 + 784), 6 * 784 * 784),
    "hard/modular_addition": (194 * 256 + 256 + 256**2 + 256 + 256 * 97 + 97, 194 * 256 + 256**2 + 256 * 97),
    "hard/addition": (2 * (12 * 128**2 + 256) + 128 + (10 + 9) * 128, 9 * (24 * 128**2 + 10 * 128) + 2 * 2 * 81 * 128),
    "hard/listops": (2 * (12 * 64**2 + 128) + 64 + (16 + 32) * 64, 32 * (24 * 64**2 + 16 * 64) + 2 * 2 * 32**2 * 64),
    "hard/sparse_parity": (30 * 256 + 256 + 512 + 2, 30 * 256 + 512),
    "hard/mnist1d": (40 * 100 + 100 + 10_000 + 100 + 1000 + 10, 40 * 100 + 10_000 + 1000),
    "tabular/breast_cancer": (30 * 100 + 100 + 10_100 + 202, 3000 + 10_000 + 200),
    "tabular/wine": (13 * 100 + 100 + 10_100 + 303, 1300 + 10_000 + 300),
    "tabular/iris": (4 * 100 + 100 + 10_100 + 303, 400 + 10_000 + 300),
    "tabular/diabetes": (10 * 100 + 100 + 10_100 + 101, 1000 + 10_000 + 100),
    "text/gpt_tiny": (4 * (12 * 128**2 + 256) + 128 + 129 * 128, 64 * (48 * 128**2 + 65 * 128) + 4 * 2 * 64**2 * 128),
    "text/gpt_small": (
        6 * (12 * 384**2 + 768) + 384 + (65 + 256) * 384,
        256 * (72 * 384**2 + 65 * 384) + 6 * 2 * 256**2 * 384,
    ),
    "text/gpt_embedded": (
        4 * (12 * 128**2 + 256) + 128 + (256 + 64) * 128,
        64 * (48 * 128**2 + 256 * 128) + 4 * 2 * 64**2 * 128,
    ),
    "theory/least_squares": (100, 100),
    "theory/least_squares_noisy": (100, 100),
    "theory/logistic": (50, 50),
    "theory/logistic_minibatch": (50, 50),
}


LARGE = ("text/gpt_small", "denoise/mnist", "fashion_mnist/autoencoder")


@pytest.fixture
def tasks(monkeypatch):
    """name -> task; what lies in no package is made up: 300 random images of 28x28, a text of 65 characters."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 28, 28), generator=rng, dtype=torch.uint8)
    splits = dict(zip(("train", "valid", "test"), torch.arange(300).split([200, 40, 60]), strict=True))
    found = sets.Images(images, torch.zeros(300), splits, *sets.statistics(images, splits["train"]), "0" * 12)
    real = sets.load
    letters = "".join(map(chr, range(33, 98)))
    texts = Text((letters * 200).encode(), "made up")
    made = {"mnist": found, "fashion_mnist": found, "tinyshakespeare": texts}
    monkeypatch.setattr(sets, "load", lambda name, *a: made.get(name) or real(name, *a))
    return TASKS


def test_every_task_is_listed():
    assert TASKS.keys() == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(tasks, name):
    task, (parameters, macs) = tasks[name], SIZES[name]
    net = task.build(0)
    assert sum(p.numel() for p in net.parameters()) == parameters
    passes = SparseModel(net, task.example(), task.dense).dense_passes
    assert passes.ahead == 2 * macs
    assert set(task.recipe.lr) == set(task.recipe.weight_decay) == {"sgd", "adam"}


@pytest.mark.parametrize("name", SIZES)
def test_one_step_and_one_evaluation(tasks, name):
    task = tasks[name]
    batch = 2 if name in LARGE else task.recipe.batch
    task = replace(task, recipe=replace(task.recipe, steps=1, batch=batch))
    task.prepare()
    training = Training(task, Method(sparsity=0.0))
    training.run()
    assert math.isfinite(training.evaluate("valid")) and task.describe()["name"] == name
    judged = task.judged()
    better = judged["target"] > judged["chance"]
    assert better == judged["higher_is_better"]


def test_chance_of_tables_is_the_commonest_class():
    for name in ("breast_cancer", "wine", "iris"):
        table = sets.load(name)
        share = table.targets.bincount().max() / len(table.targets)
        assert TASKS[f"tabular/{name}"].chance == pytest.approx(float(share), abs=0.01)
    table = sets.load("diabetes")
    assert float(table.targets[table.splits["test"]].square().mean()) == pytest.approx(1.0, abs=0.35)


def test_chance_of_denoising_is_the_mean_image():
    task = denoise.DIGITS
    clean = torch.cat([y for _, y in task.batches("test", 0)])
    index = sets.load("digits").splits["train"]
    error = (clean - task._pixels(index).mean(0)).square().mean()
    assert task.chance == pytest.approx(-10 * math.log10(error), abs=0.1)


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("theory/")])
def test_chance_of_theory_is_zero_weight_and_its_step_is_below_theorys(name):
    task = TASKS[name]
    zero = np.zeros((1, task.problem.inputs))
    assert task.chance == pytest.approx(math.log10(task.problem.gaps(zero).mean()), abs=0.05)
    assert task.recipe.lr["sgd"] < 1 / task.problem.smoothness
    assert not any(task.recipe.weight_decay.values()) and task.recipe.momentum == 0


def test_gpt_recipes_are_nanogpts():
    tiny, small = text.GPT_TINY, text.GPT_SMALL
    assert (tiny.recipe.steps, tiny.recipe.batch, tiny.block, tiny.recipe.warmup * 2000) == (2000, 12, 64, 100)
    assert (small.recipe.steps, small.recipe.batch, small.block, small.recipe.warmup * 5000) == (5000, 64, 256, 100)
    for task in (tiny, small):
        recipe: Recipe = task.recipe
        assert (recipe.lr["adam"], recipe.weight_decay["adam"], recipe.clip, recipe.optimizer) == (1e-3, 0.1, 1, "adam")
