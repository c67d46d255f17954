"""ArrayTask: batches, losses and metrics against NumPy, for classes, sequences and numbers."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import SPLITS
from dstbench.suite.train import Training
from dstbench.tasks import data as data_index
from dstbench.tasks.arrays import ArrayTask
from dstbench.tasks.data.tabular import Table
from dstbench.tasks.models import mlp

CPU = torch.device("cpu")
RECIPE = Recipe(steps=4, batch=8, lr={"sgd": 0.1, "adam": 1e-3})
TASK = ArrayTask(
    name="test/array",
    recipe=RECIPE,
    model=mlp,
    arguments={"inputs": 5, "hidden": (6,), "outputs": 3},
    widths={"hidden": 2},
    data="made",
)


def made(targets, classes):
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(60, generator=rng)
    splits = dict(zip(("train", "valid", "test"), order.split([30, 13, 17]), strict=True))
    return Table(torch.randn(60, 5, generator=rng), targets, splits, "c0ffee" * 2, classes)


@pytest.fixture
def data(monkeypatch):
    """Sets the table that the task sees."""

    def use(table):
        monkeypatch.setattr(data_index, "load", lambda name, root, download: table)
        return table

    use(made(torch.arange(60) % 3, 3))
    return use


def test_batches_are_of_seed_and_step_and_epochs_are_permutations(data):
    for split in SPLITS[:2]:
        found = list(islice(TASK.batches(split, 3), 7))
        assert torch.equal(next(TASK.batches(split, 3, start=5))[0], found[5][0])
        epoch = torch.cat([x for x, _ in found[:3]])
        assert len(np.unique(epoch.numpy(), axis=0)) == 24
        assert not torch.equal(next(TASK.batches(split, 4))[0], found[0][0])
    assert not torch.equal(next(TASK.batches("train", 0))[0], next(TASK.batches("calibration", 0))[0])


@pytest.mark.parametrize("split, size", [("valid", 13), ("test", 17)])
def test_judging_splits_are_whole_and_in_order(data, split, size):
    table, task = data(made(torch.arange(60) % 3, 3)), replace(TASK, evaluation_batch=5)
    found = list(task.batches(split, 0))
    assert torch.equal(torch.cat([x for x, _ in found]), table.inputs[table.splits[split]]) and len(found[0][0]) == 5
    assert torch.equal(next(task.batches(split, 9, start=1))[0], found[1][0])
    assert sum(len(y) for _, y in found) == size


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_accuracy_and_loss_are_numpys(data, batch):
    table, task = data(made(torch.arange(60) % 3, 3)), replace(TASK, evaluation_batch=batch)
    net, index = task.build(0), table.splits["test"]
    with torch.no_grad():
        logits = net(table.inputs[index]).numpy()
    labels = table.targets[index].numpy()
    assert task.evaluate(net, "test", CPU) == pytest.approx((logits.argmax(1) == labels).mean())
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logs[np.arange(17), labels].mean()
    assert task.loss(net, (table.inputs[index], table.targets[index])).item() == pytest.approx(expected, rel=1e-5)


class Places(nn.Module):
    """(N, 5) -> (N, 4, 3): at each place a class by the signs of the inputs."""

    def forward(self, x):
        return torch.stack([x[:, i : i + 2] @ torch.tensor([[1.0, -1, 0], [0, 1, -1]]) for i in range(4)], 1)


def test_a_sequence_is_right_where_every_place_that_is_asked_for_is(data):
    targets = torch.randint(3, (60, 4), generator=torch.Generator().manual_seed(1))
    targets[:, :2] = -100
    table, net = data(made(targets, 3)), Places()
    index = table.splits["valid"]
    found = net(table.inputs[index]).argmax(-1).numpy()
    wanted = table.targets[index].numpy()
    right = [all(a == b for a, b in zip(f, w, strict=True) if b >= 0) for f, w in zip(found, wanted, strict=True)]
    assert TASK.evaluate(net, "valid", CPU) == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1
    logits = net(table.inputs[index])[:, 2:].reshape(-1, 3)
    expected = nn.functional.cross_entropy(logits, table.targets[index][:, 2:].flatten())
    assert torch.allclose(TASK.loss(net, (table.inputs[index], table.targets[index])), expected)


def test_squared_error_is_numpys_and_lower_is_better(data):
    table = data(made(torch.randn(60, 1), 0))
    task = replace(TASK, metric="mse", arguments={**TASK.arguments, "outputs": 1}, chance=1.0)
    net, index = task.build(0), table.splits["test"]
    with torch.no_grad():
        expected = ((net(table.inputs[index]) - table.targets[index]).numpy() ** 2).mean()
    assert task.evaluate(net, "test", CPU) == pytest.approx(expected, rel=1e-5)
    assert task.loss(net, (table.inputs[index], table.targets[index])).item() == pytest.approx(expected, rel=1e-5)
    assert not task.higher_is_better and TASK.higher_is_better and not task.judged()["higher_is_better"]


def test_networks_are_of_the_seed_and_scale_by_width(data):
    state = torch.get_rng_state()
    one, same, other, wide = TASK.build(0), TASK.build(0), TASK.build(1), TASK.build(0, width=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.fc1.weight, same.fc1.weight) and not torch.equal(one.fc1.weight, other.fc1.weight)
    assert wide.fc1.out_features == 12
    with pytest.raises(ValueError, match="test/array: the network has one width"):
        replace(TASK, widths={}).build(0, width=2.0)


def test_wrong_metric_split_and_batch_are_errors(data):
    with pytest.raises(ValueError, match="metric is 'f1'; choose one of accuracy, mse"):
        replace(TASK, metric="f1")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TASK.batches("dev", 0)
    with pytest.raises(ValueError, match=r"recipe\.batch 31 is larger than the 30 training samples"):
        next(replace(TASK, recipe=replace(RECIPE, batch=31)).batches("train", 0))


def test_description_names_data_and_model(data):
    said = TASK.describe()
    assert said["data"] == "made" and said["model"].endswith(":mlp") and said["synthetic"] is False
    assert TASK.fingerprint() == "c0ffee" * 2 and TASK.example().shape == (2, 5)


def test_a_run_trains(data):
    training = Training(TASK, Method(sparsity=0.0))
    training.run()
    assert 0 <= training.evaluate("valid") <= 1 and training.book.total > 0
