"""HAM against NumPy: the hyperbolic step after that of SGD or AdamW, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from dstbench.methods.ham import HAM
from dstbench.suite import registry
from nets import begin
from pruning import same_after_resume, spent, trained
from updates import steps


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("alpha", "beta"), [(20.0, 1e-3), (0.0, 2.0), (1e4, 0.0)])
def test_every_step_of_a_run_equals_the_simulation(kernel: str, optimizer: str, alpha: float, beta: float) -> None:
    method = HAM(on="static", sparsity=0.7, alpha=alpha, beta=beta)
    model = begin(method, kernel, optimizer=optimizer)
    seen: list[list[np.ndarray]] = []
    bend = method.bend

    def watched(*arguments) -> None:
        seen.append([layer.weight.numpy().copy() for layer in model.layers])
        bend(*arguments)

    method.optimizer._optimizer_step_post_hooks.clear()
    method.optimizer.register_step_post_hook(watched)
    for t, before, _ in steps(method, model, 12):
        for layer, stepped, y in zip(model.layers, seen[-1], before, strict=True):
            exponent = -method.lr(t) * (alpha * np.sign(stepped) * y.grad + beta)
            expected = stepped * np.exp(np.clip(exponent, -5, 5))
            np.testing.assert_allclose(layer.weight.numpy(), expected, rtol=1e-12)
            assert layer.nnz() == int(y.mask.sum())
    assert len(seen) == 12


def test_without_strength_it_is_the_method_itself(images) -> None:
    one = trained(images, registry.method("rigl", sparsity=0.8))
    other = trained(images, HAM(on="rigl", sparsity=0.8, alpha=0.0, beta=0.0))
    assert one.curve == other.curve and one.book == other.book


def test_an_update_in_place_of_a_step_multiplies_nothing() -> None:
    method = HAM(on="rigl", sparsity=0.7, beta=1.0)
    model = begin(method)
    for t, before, after in steps(method, model, 9):
        for layer, y in zip(model.layers, before, strict=True):
            stay = y.mask & layer.forward_mask.numpy()
            unmoved = np.array_equal(layer.weight.numpy()[stay], y.weight[stay])
            assert unmoved == (not after), t


def test_flops_are_those_of_what_is_wrapped(images) -> None:
    total, forward = spent(images, HAM(on="static", sparsity=0.8))
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    same_after_resume(images, lambda: HAM(on="rigl", sparsity=0.8), 5, kernel)


@pytest.mark.parametrize("field", ["alpha", "beta"])
def test_bad_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"ham: {field} is -1"):
        HAM(**{field: -1.0})
