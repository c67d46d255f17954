"""DessiLBI against NumPy: the split, the dual, and the cut by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dstbench.methods.split import DessiLBI
from nets import STEPS, begin
from pruning import same_after_resume, spent
from updates import largest, steps

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


@KERNELS
@pytest.mark.parametrize(("nu", "kappa"), [(100.0, 1.0), (0.05, 0.7)])
def test_every_step_up_to_the_cut_equals_the_simulation(kernel: str, nu: float, kappa: float) -> None:
    method = DessiLBI(sparsity=0.8, nu=nu, kappa=kappa, finetune="continue")
    model = begin(method, kernel, momentum=0.9, weight_decay={"sgd": 0.0, "adam": 0.0})
    if nu < 1:  # a path that has begun
        for layer in model.layers:
            method.memory[f"z.{layer.name}"].normal_(std=1.5, generator=torch.Generator().manual_seed(0))
    z = [method.memory[f"z.{layer.name}"].numpy().copy() for layer in model.layers]
    first = [np.zeros(layer.shape) for layer in model.layers]
    opened = False
    for t, before, _ in steps(method, model):
        lr = method.recipe.lr["sgd"] * method.recipe.factor(t)
        if t >= method.cut:
            sizes = [x.size for x in z]
            if t == method.cut:
                score = [np.where(largest(np.abs(x), 1), np.inf, np.abs(x)).ravel() for x in z]
                chosen = largest(np.concatenate(score), round(0.2 * sum(sizes)))
                for y, mask in zip(before, np.split(chosen, np.cumsum(sizes)[:-1]), strict=True):
                    assert np.array_equal(y.mask, mask.reshape(y.mask.shape))
            continue
        for layer, y, dual, momentum in zip(model.layers, before, z, first, strict=True):
            sparse = kappa * np.sign(dual) * np.maximum(np.abs(dual) - 1, 0)
            opened |= bool(sparse.any())
            apart = y.weight - sparse
            momentum *= 0.9
            momentum += y.grad
            dual += lr / nu * apart
            expected = y.weight - kappa * lr * (momentum + apart / nu)
            np.testing.assert_allclose(layer.weight.numpy(), expected, rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(method.memory[f"z.{layer.name}"].numpy(), dual, rtol=1e-9, atol=1e-15)
        assert method.lr(t) == pytest.approx(kappa * lr)
    assert method.lr(STEPS - 1) == method.recipe.lr["sgd"] * method.recipe.factor(STEPS - 1)
    assert method.cut == round(0.75 * STEPS) and opened == (nu < 1)
    assert sum(y.nnz() for y in model.layers) == round(0.2 * sum(y.numel for y in model.layers))


def test_flops_are_dense_up_to_the_cut_and_sparse_after_it(images) -> None:
    method = DessiLBI(sparsity=0.8)
    total, forward = spent(images, method)
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3)
    assert len(set(forward[: method.cut])) == 1 and max(forward[method.cut :]) < 0.5 * forward[0]


@KERNELS
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    for stop in (3, 10):
        same_after_resume(images, lambda: DessiLBI(sparsity=0.8), stop, kernel)


@pytest.mark.parametrize("field", ["nu", "kappa"])
def test_bad_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"dessilbi: {field} is -1"):
        DessiLBI(**{field: -1.0})
