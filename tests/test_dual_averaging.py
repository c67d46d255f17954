"""RMDA against NumPy step by step; which density it keeps; the optimum of a small lasso."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.dual_averaging import RMDA, DualAveraging
from dstbench.suite.model import SparseModel
from nets import active, begin, train
from pruning import POSITIONS, same_after_resume, spent
from updates import steps

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


@KERNELS
@pytest.mark.parametrize("control", ["quantile", "fixed"])
@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_every_step_of_a_run_equals_the_simulation(kernel: str, control: str, mu: float) -> None:
    method = RMDA(sparsity=0.8, control=control, mu=mu, lam=1e-3)
    model = begin(method, kernel, weight_decay={"sgd": 0.01, "adam": 0.0})
    start = [layer.weight.numpy().copy() for layer in model.layers]
    total = [np.zeros_like(w) for w in start]
    spent_lr = 0.0
    for t, before, _ in steps(method, model):
        root = math.sqrt(t + 1)
        spent_lr += method.lr(t) * root
        for layer, y, first, gathered in zip(model.layers, before, start, total, strict=True):
            gathered += method.lr(t) * root * (y.grad + 0.01 * y.weight)
            dual = first - gathered / root
            lam = 1e-3 * spent_lr / root if control == "fixed" else method.mirror.lam[layer]
            beyond = np.abs(dual) - lam
            proposed = np.where(beyond > 1e-12, np.sign(dual) * beyond, 0.0)  # the largest that goes is at lambda
            expected = np.where(proposed == 0, 0.0, (1 - mu) * y.weight + mu * proposed)
            np.testing.assert_allclose(layer.weight.numpy(), expected, rtol=1e-9, atol=1e-13)
            assert np.array_equal(layer.forward_mask.numpy(), layer.weight.numpy() != 0)
        if control == "quantile":
            assert active(model) == round(method.density(t + 1) * sum(y.numel for y in model.layers))


def test_it_solves_a_lasso() -> None:
    """min sum c (w - a)^2 / 2 + lam |w|: soft thresholding of a by lam / c."""
    a, c, lam = torch.tensor([1.0, -0.5, 0.05, 2.0]), torch.tensor([1.0, 2.0, 1.0, 0.5]), 0.2
    net = nn.Linear(4, 1, bias=False)
    model = SparseModel(net, torch.zeros(1, 4))
    layer = model.layers[0]
    optimizer = DualAveraging(model.groups(), model.layers, weight_decay=0.0, lr=0.1)
    optimizer.mu = 0.2
    model.attach(optimizer, {})
    gathered = 0.0
    for t in range(4000):
        layer.forward_mask = layer.grad_mask = None
        model.zero_grad()
        (c * (model(torch.eye(4)).flatten() - a) ** 2).sum().div(2).backward()
        optimizer.move()
        gathered += 0.1 * math.sqrt(t + 1)
        optimizer.lam = {layer: lam * gathered / math.sqrt(t + 1)}
        optimizer.read()
    expected = a.sign() * (a.abs() - lam / c).relu()
    torch.testing.assert_close(layer.weight.flatten(), expected, rtol=0, atol=0.02)
    assert layer.weight.flatten()[2] == 0, "exactly"


def test_flops_are_two_sparse_passes_and_a_dense_gradient(images) -> None:
    layers = SparseModel(images.build(0), images.example(), images.dense).layers
    dense = sum(2 * POSITIONS.get(y.name, 1) * y.numel for y in layers)
    total, forward = spent(images, RMDA(sparsity=0.8))
    assert total == pytest.approx(sum(2 * f + dense for f in forward), rel=5e-3)


@KERNELS
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    for control in ("quantile", "fixed"):
        same_after_resume(images, lambda c=control: RMDA(sparsity=0.8, control=c), 5, kernel)


@pytest.mark.parametrize(("field", "value"), [("mu", 0.0), ("control", "multiplicative")])
def test_bad_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"rmda: {field} is {value!r}"):
        RMDA(**{field: value})


def test_a_run_learns() -> None:
    losses = train(method := RMDA(sparsity=0.5, start_density=0.5), begin(method))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
