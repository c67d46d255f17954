"""DenoisingTask: noise, pixels and both metrics against NumPy."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from dstbench.tasks import data as sets
from dstbench.tasks.denoising import DenoisingTask
from dstbench.tasks.models import mlp

CPU = torch.device("cpu")
TASK = DenoisingTask(
    name="test/denoising",
    recipe=Recipe(steps=3, batch=20, lr={"sgd": 0.1, "adam": 1e-3}),
    model=mlp,
    arguments={"inputs": 64, "hidden": (8,), "outputs": 64},
    noise=0.1,
)


def test_pixels_lie_between_0_and_1_as_they_were():
    from sklearn.datasets import load_digits

    clean = torch.cat([y for _, y in TASK.batches("test", 0)])
    index = sets.load("digits").splits["test"]
    np.testing.assert_allclose(clean[:, 0], load_digits().images[index] / 16, atol=1e-6)


def test_whole_numbers_are_parts_of_255(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 4, 4), generator=rng, dtype=torch.uint8)
    splits = dict(zip(("train", "valid", "test"), torch.arange(40).split([20, 10, 10]), strict=True))
    found = sets.Images(images, torch.zeros(40), splits, *sets.statistics(images, splits["train"]), "0" * 12)
    monkeypatch.setattr(sets, "load", lambda name, root, download: found)
    ((_, clean),) = TASK.batches("valid", 0)
    np.testing.assert_allclose(clean, images[20:30].numpy() / 255, rtol=1e-6)


def test_noise_is_gaussian_new_in_training_and_fixed_in_judging():
    found = list(islice(TASK.batches("train", 0), 60))
    noise = torch.cat([(x - y).flatten() for x, y in found])
    assert noise.std() == pytest.approx(0.1, rel=0.01) and abs(float(noise.mean())) < 1e-3
    assert torch.equal(next(TASK.batches("train", 0, start=7))[0], found[7][0])
    first, again = found[0], found[1000 // 20]  # the first batches of two epochs
    assert not torch.equal(first[0] - first[1], again[0] - again[1])
    for split in ("valid", "test"):
        one, other = next(TASK.batches(split, 0)), next(TASK.batches(split, 1))
        assert torch.equal(one[0], other[0])
    parts = list(replace(TASK, evaluation_batch=50).batches("valid", 0))
    assert torch.equal(next(replace(TASK, evaluation_batch=50).batches("valid", 0, start=2))[0], parts[2][0])
    whole = torch.cat([x for x, _ in TASK.batches("valid", 0)])
    assert torch.equal(torch.cat([x for x, _ in parts]), whole)  # however large the batches are


def test_metrics_are_numpys():
    net = TASK.build(0)
    pairs = list(TASK.batches("valid", 0))
    noisy, clean = (torch.cat(part).flatten(1) for part in zip(*pairs, strict=True))
    with torch.no_grad():
        error = ((net(noisy) - clean).numpy().astype(float) ** 2).mean()
    assert replace(TASK, metric="mse").evaluate(net, "valid", CPU) == pytest.approx(error, rel=1e-6)
    assert TASK.evaluate(net, "valid", CPU) == pytest.approx(10 * np.log10(1 / error), rel=1e-6)
    assert TASK.loss(net, (noisy, clean)).item() == pytest.approx(error, rel=1e-5)
    assert TASK.higher_is_better and not replace(TASK, metric="mse").higher_is_better


def test_doing_nothing_gives_the_noise():
    """PSNR of the noisy image: -20 log10 of the noise."""
    assert TASK.evaluate(nn.Identity(), "test", CPU) == pytest.approx(20, abs=0.05)


def test_a_run_trains():
    training = Training(TASK, Method(sparsity=0.0))
    training.run()
    assert training.evaluate("valid") > 0 and TASK.example().shape == (2, 1, 8, 8)


def test_bad_values_are_errors():
    with pytest.raises(ValueError, match="metric is 'ssim'; choose one of psnr, mse"):
        replace(TASK, metric="ssim")
    with pytest.raises(ValueError, match="noise is -1"):
        replace(TASK, noise=-1.0)
    with pytest.raises(ValueError, match="unknown split"):
        TASK.batches("dev", 0)
    with pytest.raises(ValueError, match="larger than the 1000 training samples"):
        next(replace(TASK, recipe=replace(TASK.recipe, batch=1001)).batches("train", 0))
