"""SAM against NumPy and a closed form: where the gradient is taken, what is put back, what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.sam import SAM
from dstbench.suite import registry
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from pruning import same_after_resume, trained

CURVATURE = torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64)


def quadratic(method: SAM, kernel: str = "masked") -> SparseModel:
    """Half the sum of c w^2 over one Linear of four weights, two of them active."""
    net = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(net.weight)
    model = SparseModel(net, torch.zeros(1, 4, dtype=torch.float64), kernel=kernel)
    recipe = Recipe(steps=10, batch=1, lr={"sgd": 0.01, "adam": 0.01}, momentum=0.0, weight_decay={"sgd": 0, "adam": 0})
    method.attach(model, recipe, seed=0)
    method.setup(lambda batches=1: [])
    layer = model.layers[0]
    layer.activate(torch.tensor([[True, False, True, False]]))
    layer.assign(torch.tensor([[3.0, 0.0, 4.0, 0.0]]).double())

    def backward(batch: object) -> torch.Tensor:
        model.zero_grad()
        eye = torch.eye(4, dtype=torch.float64)
        loss = (CURVATURE * model(eye).flatten() ** 2).sum() / 2
        loss.backward()
        return loss.detach()

    method.backward = backward  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_the_gradient_is_that_up_the_slope(kernel: str) -> None:
    method = SAM(on="static", rho=0.5, sparsity=0.5)
    model = quadratic(method, kernel)
    loss = method.descend(None)
    w, c = np.array([3.0, 4.0]), np.array([1.0, 9.0])
    slope = c * w
    up = w + 0.5 * slope / np.sqrt((slope**2).sum())
    assert float(loss) == pytest.approx((c * w**2).sum() / 2)
    grad = model.layers[0].grad.flatten().numpy()
    np.testing.assert_allclose(grad[[0, 2]], c * up, rtol=1e-9)
    assert grad[1] == grad[3] == 0
    assert model.layers[0].weight.flatten().tolist() == [3.0, 0.0, 4.0, 0.0], "put back"


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_a_single_pass_climbs_along_the_last_gradient(kernel: str) -> None:
    method = SAM(on="static", rho=0.5, sparsity=0.5, single=True)
    model = quadratic(method, kernel)
    w, c = np.array([3.0, 4.0]), np.array([1.0, 9.0])
    method.descend(None)
    first = c * w
    np.testing.assert_allclose(model.layers[0].grad.flatten().numpy()[[0, 2]], first, rtol=1e-9)
    method.descend(None)
    up = w + 0.5 * first / np.sqrt((first**2).sum())
    np.testing.assert_allclose(model.layers[0].grad.flatten().numpy()[[0, 2]], c * up, rtol=1e-9)


@pytest.mark.parametrize("on", ["rigl", "rigl:itop", "dense"])
def test_without_radius_it_is_the_method_itself_at_twice_the_price(images, on: str) -> None:
    one = trained(images, registry.method(on, sparsity=0.8))
    other = trained(images, SAM(on=on, sparsity=0.8, rho=0.0))
    for a, b in zip(one.model.layers, other.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight)
    assert other.book.papers == 2 * one.book.papers and other.book.source == "self-reported"
    single = trained(images, SAM(on=on, sparsity=0.8, single=True, rho=0.0))
    assert single.book.papers == one.book.papers


def test_only_what_the_pass_reads_is_moved(images) -> None:
    """In a pass with a dense gradient weights off the mask are not moved, nor counted in the norm."""
    method = SAM(on="rigl", sparsity=0.8, rho=0.3)
    training = Training(images, method)
    training.setup()
    training.run(until=4)
    method.begin(4)
    batch = training._move(next(training.task.batches("train", 0, start=4)))
    method.backward(batch)
    grads = [layer.grad * layer.forward_mask for layer in training.model.layers]
    known = {id(layer.parameter) for layer in training.model.layers}
    others = [p.grad for p in training.model.net.parameters() if id(p) not in known and p.grad is not None]
    norm = torch.stack([g.norm() for g in (*grads, *others)]).norm()
    weights = [layer.weight.clone() for layer in training.model.layers]
    method.climb()
    for layer, weight, grad in zip(training.model.layers, weights, grads, strict=True):
        torch.testing.assert_close(layer.weight * layer.forward_mask, weight + 0.3 * grad / norm)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str, single: bool) -> None:
    same_after_resume(images, lambda: SAM(on="rigl", sparsity=0.8, single=single), 5, kernel)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="sam: rho is -1"):
        SAM(rho=-1.0)
