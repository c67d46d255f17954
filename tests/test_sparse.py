"""The kernel `sparse`: what it computes, stores, refuses, and names in the record."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dstbench.suite import record, registry
from dstbench.suite.kernels import sparse
from dstbench.suite.meters.memory import training_state
from dstbench.suite.model import SparseModel
from dstbench.suite.plan import Run
from dstbench.suite.run import execute
from dstbench.suite.train import Training

STEPS = 24


def trained(task, name: str, kernel: str, steps: int = STEPS, **options) -> Training:
    recipe = replace(task.recipe, steps=steps)
    training = Training(replace(task, recipe=recipe), registry.method(name, **options), kernel=kernel)
    training.setup()
    training.run()
    return training


class Mixed(nn.Module):
    """Strides, a 1x1 shortcut, pooling, and a Linear that is used twice, on matrices and on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, (3, 1), stride=(2, 1), padding=(1, 0), bias=False)
        self.short = nn.Conv2d(8, 12, 1, stride=(2, 1))
        self.token = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.down(x) + self.short(x)).relu()
        x = self.token(x.flatten(2).mT).relu().mean(1)
        return self.head(self.token(x).relu())


def draw(model: SparseModel, seed: int, forward: float, grad: str) -> None:
    """New masks; `grad`: the same, a wider one, another, or all."""
    rng = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        score = torch.rand(layer.shape, generator=rng)
        layer.forward_mask = mask = score < forward
        other = torch.rand(layer.shape, generator=rng) < 0.3
        layer.grad_mask = {"same": mask, "wider": score < 2 * forward, "another": other, "all": None}[grad]


def backward(model: SparseModel, x: Tensor) -> float:
    loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 4)
    loss.backward()
    return float(loss.detach())


GRADS = ("same", "wider", "another", "all")


def sparse_model(net: nn.Module, x: Tensor, density: float = 0.2, grad: str = "same") -> SparseModel:
    model = SparseModel(net, x, kernel="sparse")
    draw(model, 0, density, grad)
    return model


def test_the_sparse_products_are_what_computes(monkeypatch) -> None:
    """Dense products are made impossible: a route that says "sparse" is one."""
    model = sparse_model(Mixed(), torch.zeros(1, 3, 7, 6))

    def refuse(*_: object) -> None:
        raise AssertionError("a dense forward")

    for name in ("linear", "conv2d"):
        monkeypatch.setattr(nn.functional, name, refuse)
    assert {y.kernel.route(y) for y in model.layers} == {"sparse"}
    model(torch.randn(2, 3, 7, 6)).sum().backward()
    draw(model, 1, 0.7, "same")
    assert {y.kernel.route(y) for y in model.layers} == {"dense"}


@pytest.mark.parametrize("height", [1, 2, 4, 8])
def test_a_route_names_blocks(height: int) -> None:
    """Outputs in groups that read the same inputs, but for the last group's last one where height is 1."""
    model, x = SparseModel(nn.Linear(40, 48), torch.zeros(1, 40), kernel="sparse"), torch.randn(5, 40)
    (layer,) = model.layers
    mask = (torch.rand(48 // max(height, 2), 40) < 0.2).repeat_interleave(max(height, 2), 0)
    mask[-1] ^= height == 1
    layer.forward_mask = layer.grad_mask = mask
    assert layer.kernel.route(layer) == ("sparse" if height == 1 else f"sparse {height}x1")
    torch.testing.assert_close(model(x), nn.functional.linear(x, layer.weight * mask, model.net.bias))


def test_layers_that_it_cannot_hold_are_named(images) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
            self.strided = nn.Conv2d(4, 4, 3, stride=3)
            self.named = nn.Conv2d(4, 4, 3, padding="same")
            self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.wide = nn.Linear(4, 4).double()
            self.fine = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mirrored(self.named(self.strided(self.dilated(self.grouped(x))))).flatten(2).mT
            return self.fine(self.wide(self.attention(x, x, x)[0].double()).float())

    model = SparseModel(Odd(), torch.zeros(1, 4, 9, 9), kernel="sparse")
    reasons = {y.name: y.fallback for y in model.layers}
    expected = {
        "grouped": "no sparse convolution in 2 groups",
        "dilated": r"no sparse convolution with dilation (2, 2)",
        "strided": "no sparse convolution with stride (3, 3)",
        "named": "no sparse convolution with padding 'same', mode 'zeros'",
        "mirrored": "no sparse convolution with padding (1, 1), mode 'reflect'",
        "attention.in_proj_weight": "no sparse product for in_proj_weight of MultiheadAttention",
        "attention.out_proj": "no sparse product for weight of NonDynamicallyQuantizableLinear",
        "wide": "sparse products are in float32 on the CPU, this layer is torch.float64 on cpu",
        "fine": None,
    }
    assert reasons == expected
    elsewhere = sparse.Sparse().unsupported(nn.Linear(2, 2, device="meta"), "weight")
    assert elsewhere == "sparse products are in float32 on the CPU, this layer is torch.float32 on meta"
    assert all(y.kernel.name == ("masked" if y.fallback else "sparse") for y in model.layers)
    draw(model, 0, 0.2, "same")
    model(torch.randn(2, 4, 9, 9)).sum().backward()


def test_the_record_tells_kernel_route_and_fallback_and_that_time_is_real(tmp_path: Path) -> None:
    found = {}
    for sparsity in (0.9, 0.4):
        run = Run(
            "static", "digits/mlp", sparsity, budget=0.1, kernel="sparse", hyperparameters={"allocation": "uniform"}
        )
        assert execute(run.to_json(), str(tmp_path)) == "ok"
        (found[sparsity],) = [r for r in record.load(tmp_path)[0] if r["id"]["key"] == run.key]
    layers = found[0.9]["sparsity"]["layers"].values()
    assert {(y["kernel"], y["route"], y["fallback"]) for y in layers} == {("sparse", "sparse", None)}
    assert {y["route"] for y in found[0.4]["sparsity"]["layers"].values()} == {"dense"}
    assert found[0.9]["time"]["simulated"] is False and found[0.4]["time"]["simulated"] is True


def test_resuming_is_bit_exact(images) -> None:
    task = replace(images, recipe=replace(images.recipe, steps=STEPS))

    def fresh() -> Training:
        return Training(task, registry.method("rigl", sparsity=0.8), kernel="sparse")

    whole, half, again = fresh(), fresh(), fresh()
    whole.setup(), half.setup()
    whole.run(), half.run(until=13)
    file = io.BytesIO()
    torch.save(half.state(), file)
    file.seek(0)
    again.load(torch.load(file, weights_only=True))
    again.run()
    assert again.curve == whole.curve and again.book == whole.book
    for a, b in zip(whole.model.layers, again.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_flops_of_a_setup_are_counted_as_under_masked(images, name: str) -> None:
    masked, ours = (trained(images, name, kernel, 2, sparsity=0.8).book for kernel in ("masked", "sparse"))
    assert ours == masked and ours.setup


def test_memory_is_values_masks_and_plans(images) -> None:
    model = SparseModel(nn.Linear(40, 30), torch.zeros(1, 40), kernel="sparse")
    (layer,) = model.layers
    assert training_state(model, None) == 4 * (1200 + 30), "all is stored: no index"
    layer.activate(torch.rand(layer.shape) < 0.1)
    n = layer.nnz()
    assert training_state(model, None) == 4 * (n + 30) + 1200
    model(torch.zeros(2, 40)).sum().backward()
    index = 4 * (3 * n + 31 + 41)  # column, row and place of each entry, and two lists of starts
    assert training_state(model, None) == 8 * (n + 30) + 1200 + index
    model.zero_grad()
    layer.grad_mask = torch.rand(layer.shape) < 0.2
    model(torch.zeros(2, 40))
    union, m = int(layer.stored.sum()), layer.nnz("grad")
    index = 4 * (3 * n + 72) + 4 * (3 * m + 72) + 4 * n + 4 * m  # two patterns and the places of their entries
    assert training_state(model, None) == 4 * (union + 30) + 3 * 1200 + index


def test_plans_are_those_of_the_present_masks() -> None:
    model, x = sparse_model(nn.Linear(9, 9), torch.zeros(1, 9)), torch.randn(4, 9)
    for seed in (1, 2):
        draw(model, seed, 0.2, "same")
        layer = model.layers[0]
        expected = nn.functional.linear(x, layer.weight * layer.forward_mask, model.net.bias)
        torch.testing.assert_close(model(x), expected)


def test_a_pattern_outlives_a_change_of_the_gradient_that_is_computed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 9))
    model, x = sparse_model(net, torch.zeros(1, 3, 4, 4)), torch.randn(4, 3, 4, 4)

    def patterns() -> list[object]:
        backward(model, x)
        return [plan.forward for kept in model.layers[0].kernel.plans.values() for plan in kept.values()]

    draw(model, 1, 0.2, "same")
    first = patterns()
    for layer in model.layers:
        layer.grad_mask = None
    assert len(first) == 2 and all(a is b for a, b in zip(first, patterns(), strict=True))
    for layer in model.layers:
        layer.grad_mask = layer.forward_mask
    assert all(a is b for a, b in zip(first, patterns(), strict=True))
    draw(model, 2, 0.2, "same")
    assert not any(a is b for a, b in zip(first, patterns(), strict=True))


@pytest.mark.parametrize("shape", [(9,), (0, 9), (4, 9), (2, 3, 9), (2, 0, 9), (1100, 9)])
def test_linear_layers_take_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    model, x = sparse_model(nn.Linear(9, 5), torch.zeros(1, 9)), torch.randn(shape)
    layer = model.layers[0]
    torch.testing.assert_close(model(x), nn.functional.linear(x, layer.weight, model.net.bias))


def test_convolutions_take_one_image_none_and_any_memory_format() -> None:
    model = sparse_model(nn.Conv2d(4, 5, 3), torch.zeros(1, 4, 6, 6))
    layer, x = model.layers[0], torch.randn(3, 4, 6, 6)
    for batch in (x, x[0], x[:0], x.to(memory_format=torch.channels_last), x[:, :, ::2].contiguous()):
        torch.testing.assert_close(model(batch), nn.functional.conv2d(batch, layer.weight, model.net.bias))


def test_wrong_inputs_are_torchs_own_errors() -> None:
    linear, conv = nn.Linear(9, 5), nn.Conv2d(4, 5, 3)
    for net, good, bad in (
        (linear, torch.zeros(1, 9), torch.zeros(1, 8)),
        (linear, torch.zeros(1, 9), torch.zeros(1, 9).double()),
        (conv, torch.zeros(1, 4, 6, 6), torch.zeros(1, 3, 6, 6)),
        (conv, torch.zeros(1, 4, 6, 6), torch.zeros(1, 1, 4, 6, 6)),
    ):
        with pytest.raises(RuntimeError) as theirs:
            copy.deepcopy(net)(bad)
        with pytest.raises(RuntimeError) as ours:
            sparse_model(copy.deepcopy(net), good)(bad)
        assert str(ours.value) == str(theirs.value)


def test_autocast_computes_in_float32() -> None:
    model, x = sparse_model(Mixed(), torch.zeros(1, 3, 7, 6)), torch.randn(2, 3, 7, 6)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.sum().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    assert all(layer.parameter.grad.dtype == torch.float32 for layer in model.layers)


@pytest.mark.parametrize("net", [nn.Linear(9, 5), nn.Conv2d(9, 5, 3)], ids=["linear", "conv"])
def test_a_second_derivative_is_refused(net: nn.Module) -> None:
    x = torch.randn(2, 9) if isinstance(net, nn.Linear) else torch.randn(2, 9, 4, 4)
    model = sparse_model(copy.deepcopy(net), x)
    with pytest.raises(RuntimeError, match=r"no second derivative.*run this method under kernel masked or compact"):
        torch.autograd.grad(model(x).sum(), model.layers[0].parameter, create_graph=True)


def test_functional_calls_and_costs_see_the_tensors_they_were_given(images) -> None:
    model = sparse_model(images.build(0), images.example())
    other = SparseModel(images.build(0), images.example())
    draw(other, 0, 0.2, "same")
    assert model.cost() == other.cost()
    layer, x = model["stem"], torch.randn(2, 3, 8, 8)
    ones = torch.ones(layer.shape)
    seen = torch.func.functional_call(model.net.stem, {"weight": ones}, (x,))
    assert torch.equal(seen, nn.functional.conv2d(x, ones, padding=1))
    model.shrink("stem.weight", 0, torch.arange(8))
    assert model.cost() == other.cost()


def test_a_copy_of_the_network_computes_the_same() -> None:
    model, x = sparse_model(Mixed(), torch.zeros(1, 3, 7, 6)), torch.randn(2, 3, 7, 6)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model.net)(x), expected)


def test_results_may_be_changed_in_place_and_a_kernel_as_large_as_its_input_is_a_linear() -> None:
    def net() -> nn.Module:
        act = nn.ReLU(inplace=True)
        first = nn.Conv2d(3, 8, 3, bias=False), act, nn.Conv2d(8, 6, (5, 4)), act, nn.Conv2d(6, 5, 1), act
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(5, 7), act, nn.Linear(7, 4))

    for batch in (3, 16):
        for grad in GRADS:
            found = []
            for kernel in ("masked", "sparse"):
                torch.manual_seed(0)
                model = SparseModel(net(), torch.zeros(1, 3, 7, 6), kernel=kernel)
                draw(model, 0, 0.3, grad)
                loss = backward(model, torch.randn(batch, 3, 7, 6))
                found.append((loss, [layer.grad for layer in model.layers]))
            assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
            for a, b in zip(found[0][1], found[1][1], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
