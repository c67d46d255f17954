"""Low rank by LinBreg: the proximal map by NumPy's decomposition, ranks that grow, a problem of known solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.low_rank import Nuclear, NuclearLinBreg, rank
from dstbench.methods.mirror import MirrorDescent
from dstbench.suite.model import SparseModel
from nets import begin, train
from pruning import same_after_resume
from updates import steps

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


def shrunk(matrix: np.ndarray, lam: float) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix.reshape(len(matrix), -1), full_matrices=False)
    return ((u * np.maximum(s - lam, 0)) @ vh).reshape(matrix.shape)


@KERNELS
@pytest.mark.parametrize("lam", [0.05, 0.4])
def test_every_step_of_a_run_equals_the_simulation(kernel: str, lam: float) -> None:
    method = NuclearLinBreg(lam=lam)
    model = begin(method, kernel, weight_decay={"sgd": 0.01, "adam": 0.0})
    duals = []
    for layer in model.layers:
        u, s, vh = np.linalg.svd(layer.weight.numpy().reshape(len(layer.weight), -1), full_matrices=False)
        kept = max(1, round(0.05 * len(s)))
        assert s[kept - 1] > 1e-3 > 1e-9 > s[kept:].max()
        duals.append(layer.weight.numpy() + lam * (u[:, :kept] @ vh[:kept]).reshape(layer.shape))
    for t, before, _ in steps(method, model, 12):
        for layer, y, dual in zip(model.layers, before, duals, strict=True):
            dual -= method.lr(t) * (y.grad + 0.01 * y.weight)
            np.testing.assert_allclose(layer.weight.numpy(), shrunk(dual, lam), rtol=1e-7, atol=1e-11)
            assert layer.forward_mask is None and layer.grad_mask is None


@KERNELS
def test_the_proximal_map_of_a_diagonal_is_soft_thresholding(kernel: str) -> None:
    layer = SparseModel(nn.Linear(3, 3).double(), torch.zeros(1, 3).double(), kernel=kernel).layers[0]
    values = torch.diag(torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64))
    found = Nuclear().prox(layer, values, 0.5)
    torch.testing.assert_close(found, torch.diag(torch.tensor([2.5, -0.5, 0.0], dtype=torch.float64)))
    assert rank(layer, found) == 2
    sub = Nuclear().subgradient(layer, values)
    torch.testing.assert_close(sub, torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)))


def test_ranks_grow_one_singular_value_after_the_other() -> None:
    """From zero, with the quadratic |w - a|^2 / 2: singular value k enters when t tau s_k passes lambda."""
    a = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    net = nn.Linear(3, 3, bias=False).double()
    nn.init.zeros_(net.weight)
    model = SparseModel(net, torch.zeros(1, 3, dtype=torch.float64))
    layer, tau, lam = model.layers[0], 0.01, 1.0
    optimizer = MirrorDescent(model.groups(), model.layers, regularizer=Nuclear(), lam=lam, lr=tau)
    model.attach(optimizer, {})
    ranks = []
    for _ in range(400):
        model.zero_grad()
        ((model(torch.eye(3, dtype=torch.float64)).T - a) ** 2).sum().div(2).backward()
        optimizer.step()
        ranks.append(rank(layer, layer.weight) if layer.weight.any() else 0)
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2, 3}
    for k, s in enumerate((4.0, 2.0, 1.0)):
        assert abs(ranks.index(k + 1) - lam / (tau * s)) <= 1
    torch.testing.assert_close(layer.weight, a, atol=0.2, rtol=0)


def test_a_larger_lambda_leaves_smaller_ranks() -> None:
    found = []
    for lam in (0.0, 0.05, 1.0):
        method = NuclearLinBreg(lam=lam)
        model = begin(method)
        assert set(method.ranks().values()) == {1}, "the start"
        train(method, model)
        found.append(sum(method.ranks().values()))
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_decompositions_are_charged() -> None:
    model = begin(method := NuclearLinBreg())
    train(method, model, 0, 3)
    shapes = [sorted((y.shape[0], y.numel // y.shape[0])) for y in model.layers]
    assert method.charged == 3 * sum(6 * n * m * m + 20 * m**3 + 2 * n * m * m for m, n in shapes)


@KERNELS
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    same_after_resume(images, NuclearLinBreg, 5, kernel)


def test_what_makes_no_sense_is_no_hyper_parameter() -> None:
    assert {"control", "regularizer", "ramp", "init"}.isdisjoint(NuclearLinBreg().hyperparameters())
    with pytest.raises(ValueError, match="nuclear_linbreg: lam is -1"):
        NuclearLinBreg(lam=-1.0)
