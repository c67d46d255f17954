"""The kernel `sparse`: every method, and whole networks, train as under `masked`."""

from __future__ import annotations

import pytest
import timm
import torch

from dstbench.suite import registry
from dstbench.suite.kernels import sparse
from dstbench.suite.model import SparseModel
from dstbench.suite.train import Training
from test_sparse import GRADS, Mixed, backward, draw, trained


def alike(masked: Training, ours: Training) -> None:
    assert ours.curve["loss"] == pytest.approx(masked.curve["loss"], rel=1e-5)
    assert ours.curve["density"] == masked.curve["density"] and ours.book == masked.book
    for a, b in zip(masked.model.layers, ours.model.layers, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-3, atol=1e-5)


@pytest.fixture(params=["sparse", "csr", "sparseprop"])
def kernel(request, monkeypatch) -> str:
    if request.param == "sparseprop":
        pytest.importorskip("sparseprop", reason="the package sparseprop is not installed")
    monkeypatch.setattr(sparse, "break_even", lambda shape: 1.0)
    return request.param


@pytest.mark.parametrize("name", ["rigl", "topkast", "ml_linbreg", "ste"])
def test_methods_train_as_under_masked_on_mixed_routes(images, name: str) -> None:
    alike(*(trained(images, name, kernel, sparsity=0.8) for kernel in ("masked", "sparse")))


NARROW = ("small_dense", "depgraph")  # their networks are dense, and smaller
METHODS = sorted(name for name in registry.methods() if ":" not in name and name not in NARROW)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_under_masked_with_sparse_products_wherever_it_masks(
    images, kernel: str, name: str
) -> None:
    task = registry.task("digits/vit") if name == "s2vite" else images  # a network with attention heads
    sparsity = {"nm": 2 / 3, "s2vite": 0.5}.get(name, 0.8)
    masked, ours = (trained(task, name, k, sparsity=sparsity) for k in ("masked", kernel))
    alike(masked, ours)
    routes = {y.kernel.route(y) for y in ours.model.layers if y.fallback is None}
    assert ("sparse" in routes) == registry.methods()[name].sparse


@pytest.mark.sampled(6)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("grad", [*GRADS, "in turn"])
def test_masks_change_and_training_goes_on_as_under_masked(kernel: str, grad: str, optimizer: str) -> None:
    """With weight decay, momentum or moments; whatever a pass reads and computes, from nothing to all."""
    losses, weights, states = [], [], []
    for name in ("masked", kernel):
        torch.manual_seed(0)
        model = SparseModel(Mixed(), torch.zeros(1, 3, 7, 6), kernel=name)
        groups = model.groups()
        groups[0]["weight_decay"] = 0.1
        made = (
            torch.optim.SGD(groups, lr=0.1, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(groups, lr=0.01)
        )
        model.attach(made, {})
        found = []
        for t in range(20):
            if t % 4 == 0:
                model.zero_grad()
                draw(model, t, (0.2, 0.05, 0.3, 0.0, 1.0)[t // 4], GRADS[t // 4 % 4] if grad == "in turn" else grad)
            model.zero_grad()
            x = torch.randn(5, 3, 7, 6, generator=torch.Generator().manual_seed(t))
            found.append(backward(model, x))
            for layer in model.layers:
                if layer.grad_mask is not None:
                    assert not layer.grad[~layer.grad_mask].any(), layer.name
            made.step()
            for layer in model.layers:
                layer.project()
        losses.append(found)
        weights.append([layer.weight.clone() for layer in model.layers])
        states.append([layer.state for layer in model.layers])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(*states, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


NETWORKS = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "vgg16": lambda: timm.create_model("vgg16_bn", num_classes=10),
    "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=4, num_classes=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_train_as_under_masked(name: str) -> None:
    """20 steps to 1e-5; or where training multiplies rounding, as near as masked comes to itself in another layout."""

    def losses(kernel: str, layout: torch.memory_format = torch.contiguous_format) -> list[float]:
        torch.manual_seed(0)
        net = NETWORKS[name]().to(memory_format=layout)
        model = SparseModel(net, torch.zeros(1, 3, 32, 32), kernel=kernel)
        draw(model, 0, 0.1, "same")
        optimizer = torch.optim.SGD(model.net.parameters(), lr=0.003, momentum=0.9)
        model.attach(optimizer, {})
        found = []
        for t in range(20):
            model.zero_grad()
            x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(t))
            found.append(backward(model, x.to(memory_format=layout)))
            optimizer.step()
        assert kernel == "masked" or all(y.kernel.route(y) == "sparse" for y in model.layers if y.fallback is None)
        return found

    masked, ours = losses("masked"), losses("sparse")
    assert ours[0] == pytest.approx(masked[0], rel=1e-6)
    gap = max(abs(a - b) / b for a, b in zip(ours, masked, strict=True))
    other = max(abs(a - b) / b for a, b in zip(losses("masked", torch.channels_last), masked, strict=True))
    print(f"{name}: {gap:.1e} from masked, which in another layout is {other:.1e} from itself")
    assert gap <= max(1e-5, 4 * other)
