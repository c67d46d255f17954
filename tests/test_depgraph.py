"""DepGraph: which channels go together, how many go, what is cut where, and that the network is really smaller."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.depgraph import DepGraph, coupled, unfit
from dstbench.suite import registry
from dstbench.suite.train import Training
from dstbench.tasks.digits import MLP, RESNET, VIT
from pruning import same_after_resume, with_recipe

SHORT = {"steps": 12}


def task(which):
    return with_recipe(which, **SHORT)


def trained(which, until: int | None = None, kernel: str = "masked", **fields) -> Training:
    training = Training(task(which), DepGraph(sparsity=0.9, **fields), kernel=kernel)
    training.setup()
    training.run(until=until)
    return training


def test_groups_of_a_chain_and_of_a_residual_block() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    (group,) = coupled(chain, torch.zeros(1, 1, 4, 4))
    assert group.channels == 4
    assert sorted(group.sides) == [("0", 0, 1), ("1", 0, 1), ("4", 1, 4)], "four pixels of each channel"
    groups = coupled(RESNET.build(0), RESNET.example())
    ends = {side.name for group in groups for side in group.sides if side.dim == 1}
    weights = {name.removesuffix(".weight") for name, p in RESNET.build(0).named_parameters() if p.dim() > 1}
    assert ends == weights - {"conv1"}, "every layer but the first reads channels of a group"
    assert all(group.channels in (8, 16, 32, 64) for group in groups)


def test_the_cut_of_the_mlp_by_hand() -> None:
    """Two hidden widths of 100 keep the same share; neurons are ranked by all weights that make and read them."""
    before = trained(MLP, until=6)
    w1, w2, w3 = (layer.weight.numpy().copy() for layer in before.model.layers)
    biases = [before.model.net.fc1.bias.detach().clone(), before.model.net.fc2.bias.detach().clone()]
    before.method.begin(6)
    h = min(range(1, 101), key=lambda h: abs(64 * h + h * h + 10 * h - 0.1 * (6400 + 10000 + 1000)))
    assert [tuple(layer.shape) for layer in before.model.layers] == [(h, 64), (h, h), (10, h)]
    first = np.sort(np.argsort(-((w1**2).sum(1) + (w2**2).sum(0)))[:h])
    second = np.sort(np.argsort(-((w2**2).sum(1) + (w3**2).sum(0)))[:h])
    found = [layer.weight.numpy() for layer in before.model.layers]
    for a, b in zip(found, (w1[first], w2[np.ix_(second, first)], w3[:, second]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert torch.equal(before.model.net.fc1.bias, biases[0][first]) and torch.equal(
        before.model.net.fc2.bias, biases[1][second]
    )


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("which", [MLP, RESNET])
def test_the_network_is_smaller_and_trains_on(which, kernel: str) -> None:
    training = trained(which, kernel=kernel)
    target, numel = 0.1 * training.model.maskable, sum(layer.numel for layer in training.model.layers)
    assert abs(numel - target) <= training.method.grain and training.model.density == numel / training.model.maskable
    full = sum(p.numel() for p in which.build(0).parameters())
    assert sum(p.numel() for p in training.model.net.parameters() if p.dim() > 0) < 0.3 * full
    x = which.example()
    plain = training.model.net(x)
    assert plain.shape == (len(x), 10) and plain.isfinite().all()
    assert all(layer.forward_mask is None for layer in training.model.layers)
    for name, module in training.model.net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            sizes = {len(t) for t in (module.weight, module.bias, module.running_mean, module.running_var)}
            assert sizes == {module.num_features}, name


def test_flops_fall_with_the_shapes() -> None:
    training = Training(task(MLP), DepGraph(sparsity=0.9))
    training.setup()
    before = training.model.cost().papers
    training.run()
    layers = training.model.layers
    assert training.model.cost().papers == pytest.approx(3 * 2 * sum(math.prod(y.shape) for y in layers), rel=1e-6)
    assert training.model.cost().papers < 0.12 * before
    spent = training.book.papers / training.recipe.batch
    assert spent == pytest.approx(6 * before + 6 * training.model.cost().papers, rel=1e-6)


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("which", [MLP, RESNET])
def test_resuming_is_bit_exact(which, kernel: str) -> None:
    for stop in (3, 6, 9):
        same_after_resume(task(which), lambda: DepGraph(sparsity=0.9), stop, kernel)


def test_what_it_cannot_prune_is_skipped_with_a_reason(images) -> None:
    assert "attention" in registry.method("depgraph").skip(VIT)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    assert unfit(grouped) == "depgraph: '0' is a convolution in groups, which it does not remove channels of"
    one = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    other.weight = one.weight
    assert "share a weight" in unfit(nn.Sequential(one, other))
    assert DepGraph().skip(RESNET) is None


def test_what_the_task_keeps_dense_keeps_its_outputs() -> None:
    """Inputs go with the layer before; a residual stream that a dense layer writes to stays as wide as it was."""
    given = replace(task(MLP), dense=("fc2",))
    training = Training(given, DepGraph(sparsity=0.5))
    training.setup()
    training.run()
    width = min(range(1, 101), key=lambda h: abs(64 * h + 1000 - 0.5 * 7400))
    shapes = [tuple(p.shape) for p in training.model.net.parameters() if p.dim() > 1]
    assert shapes == [(width, 64), (100, width), (10, 100)]
    training = Training(replace(task(RESNET), dense=("layer3.0.conv2",)), DepGraph(sparsity=0.5))
    training.setup()
    training.run()
    net = training.model.net
    assert net.layer3[0].conv2.out_channels == net.layer3[0].downsample[0].out_channels == 32
    assert net.layer4[0].conv1.in_channels == 32 > net.layer3[0].conv2.in_channels


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(RuntimeError, match=r"pip install 'dstbench\[structured\]'"):
        coupled(MLP.build(0), MLP.example())
