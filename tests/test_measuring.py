"""Counting FLOPs: what measuring leaves behind, where it runs, and which operations have a formula."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import odd
from conftest import ConvNet, Perceptron
from dstbench.suite.meters import flops
from dstbench.suite.meters.crosscheck import counted
from dstbench.suite.meters.flops import measure
from dstbench.suite.meters.operations import FREE
from dstbench.suite.model import SparseModel
from odd import EXAMPLE, block, made, trained

# ---- measuring -------------------------------------------------------------------------------------------------------


def traces(net: nn.Module) -> list[Any]:
    """All that a measurement may not touch; what stands under `same` by identity."""
    same = [t for m in net.modules() for t in (*vars(m).items(), *m._parameters.items(), *m._buffers.items())]
    hooks = [list(vars(m)[kind].values()) for m in net.modules() for kind in vars(m) if kind.endswith("hooks")]
    plain = [(n, m.training, repr({k: v for k, v in vars(m).items() if type(v) in (dict, list, int, bool)}))
             for n, m in net.named_modules()]  # fmt: skip
    tensors = [t.clone() for t in (*net.parameters(), *net.buffers())]
    return [[(k, id(v)) for k, v in same], hooks, plain, [p.grad for p in net.parameters()], tensors]


@pytest.mark.parametrize("count", [measure, counted])
@pytest.mark.parametrize("net", [odd.Cached, odd.Recurrent, odd.Recomputed, odd.Experts, odd.Dropped, odd.Holding])
@pytest.mark.parametrize("small", [0, 1e6])
def test_measuring_leaves_no_trace(net: type[nn.Module], count: Any, small: float, monkeypatch) -> None:
    monkeypatch.setattr("dstbench.suite.meters.flops.SMALL", small)
    built = net()
    before, chance = traces(built), (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy())
    count(built, EXAMPLE)
    after = traces(built)
    assert before[:-1] == after[:-1]
    assert all(torch.equal(a, b) for a, b in zip(before[-1], after[-1], strict=True))
    assert torch.equal(chance[0], torch.get_rng_state()) and chance[1] == random.getstate()
    assert (chance[2] == numpy.random.get_state()[1]).all()


def test_a_network_that_functions_hold_is_counted_under_its_own_parameters(monkeypatch) -> None:
    a, b = 2 * 48 * 16, 2 * 16 * 4
    for small in (0, 1e6):
        monkeypatch.setattr("dstbench.suite.meters.flops.SMALL", small)
        built = odd.Holding()
        assert measure(built, EXAMPLE).forward == {"a.weight": a, "b.weight": b} and counted(built, EXAMPLE) == a + b
    training = trained(odd.Holding, "static", 4)
    assert [y.name for y in training.model.layers] == ["a", "b"]
    assert block(training)["papers_ratio"] == pytest.approx(0.1, abs=0.01)
    assert not [key for key in vars(training.model.net) if "tensor" in key]


@pytest.mark.parametrize("where", ["module", "box"])
def test_a_reference_that_no_copy_follows_is_found_wherever_it_is(where: str) -> None:
    """A registry outside the network that hands it out again."""
    registry: dict[str, nn.Module] = {}

    class Registered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 4)
            registry["a"] = self.a

        def forward(self, x: Tensor) -> Tensor:
            return registry["a"](x) if where == "module" else torch.stack([x @ registry["a"].weight.t()])[0]

    assert measure(Registered(), EXAMPLE).forward == {"a.weight": 2 * 6 * 8 * 4}


@pytest.mark.parametrize("bound", [True, False])
def test_a_hook_that_cannot_be_copied_does_not_keep_a_network_from_being_measured(bound: bool) -> None:
    class Tracker:
        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), 0

        def hook(self, *given: Any) -> None:
            with self.lock:
                self.calls += 1

        __call__ = hook

    net, tracker = nn.Sequential(nn.Linear(8, 4)), Tracker()
    net[0].register_forward_hook(tracker.hook if bound else tracker)
    assert measure(net, EXAMPLE).ahead == 2 * 6 * 8 * 4 == counted(net, EXAMPLE)


COUNTED = [odd.Frozen, odd.LoRA, odd.Dropped, odd.Heads, odd.Recomputed, odd.Causal, odd.Convolutions, odd.Query]


@pytest.mark.parametrize("net", [*COUNTED, "test_resnet", "test_vit", ConvNet, Perceptron])
def test_with_numbers_and_without_counts_are_the_same(net: Any, monkeypatch) -> None:
    x = torch.zeros(2, 3, 8, 8) if net is ConvNet else torch.zeros(2, 12) if net is Perceptron else EXAMPLE
    if isinstance(net, str):
        x, name = torch.zeros(2, 3, 32, 32), net
        more = {"img_size": 32} if name == "test_vit" else {}
        net = lambda: timm.create_model(name, num_classes=4, **more)  # noqa: E731
    built, found, ran = net(), [], []
    real = flops.stand_in
    monkeypatch.setattr(flops, "stand_in", lambda net, device, *more: ran.append(device) or real(net, device, *more))
    for small in (0, 1e6):
        monkeypatch.setattr(flops, "SMALL", small)
        found.append(measure(built, x))
    assert found[0] == found[1] and ran == ["meta", "meta", None, None]


@pytest.mark.parametrize(("net", "flops"), [(odd.Cached, 2 * 6 * 8 * 8 + 2 * 48 * 4), (odd.Recurrent, None)])
def test_what_cannot_run_on_meta_is_counted_where_it_is(net: type[nn.Module], flops: int | None) -> None:
    cost = measure(net(), EXAMPLE)
    gru = 6 * 2 * (3 * 16 * 8 + 3 * 16 * 16) + 2 * 16 * 4
    assert cost.inference.ahead == cost.ahead == (flops or gru) and not cost.uncounted
    assert trained(net, "rigl", 4).book.total > 0


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_without_statistics_takes_one_sample_and_keeps_none(affine: bool) -> None:
    norm = nn.BatchNorm1d(4, affine=affine, track_running_stats=False)
    net = nn.Sequential(nn.Linear(8, 4), norm, nn.ReLU(), nn.Linear(4, 2))
    passes = measure(net, torch.zeros(3, 8))
    assert passes.ahead == counted(net, torch.zeros(3, 8)) == 2 * (8 * 4 + 4 * 2) and passes.dense > passes.ahead
    assert norm.running_mean is None and norm.running_var is None and norm.training


def test_a_network_that_cannot_run_its_example_is_told_so() -> None:
    with pytest.raises(RuntimeError, match=r"counting FLOPs: .* \(RuntimeError: .*example\(\) has to be a batch"):
        SparseModel(nn.Linear(5, 4), torch.zeros(2, 6))


def test_a_lock_or_a_computed_tensor_does_not_keep_a_network_from_being_measured() -> None:
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 4)
            self.lock, self.rng = threading.Lock(), torch.Generator().manual_seed(3)
            self.half = self.weight * 0.5  # no leaf

        def forward(self, x: Tensor) -> Tensor:
            with self.lock:
                return super().forward(x) + torch.rand((), generator=self.rng)

    net = Locked()
    state = net.rng.get_state()
    assert measure(net, EXAMPLE).ahead == 2 * 6 * 8 * 4 and torch.equal(net.rng.get_state(), state)


# ---- operations without a formula ------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """A Fourier transform and a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Bilinear(8, 8, 5), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.fft.fft(x).real, x).flatten(1))


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.points = nn.Linear(9, 4), nn.Parameter(torch.randn(9, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(x.flatten(1), self.points, p=1.0))


@pytest.mark.parametrize(("net", "names"), [(Mixing, {"_fft_r2c"}), (Distances, {"_cdist_forward"})])
def test_an_operation_without_a_formula_is_named_with_its_calls(net: type[nn.Module], names: set[str]) -> None:
    (calls,) = (n for name, n in block(trained(net, "snip", 2))["uncounted"].items() if name in names)
    assert calls == 1 + 2, "of a pass, and of the two of setup"
    found = block(trained(net, "static", 2))["uncounted"]
    assert names <= set(found) and all(isinstance(n, int) and n >= 1 for n in found.values())
    assert not measure(odd.Query(), EXAMPLE).uncounted


X = torch.rand(2, 4, 5)
ELEMENTWISE: dict[str, Callable[[Tensor], Any]] = {
    **{mode: lambda x, mode=mode: F.pad(x, (1, 1), mode) for mode in ("reflect", "replicate", "circular")},
    **{f"{mode} 2d": lambda x, mode=mode: F.pad(x, (1, 1, 1, 1), mode) for mode in ("reflect", "replicate")},
    "bce": lambda x: F.binary_cross_entropy(x, x.detach()),
    "bce logits": lambda x: F.binary_cross_entropy_with_logits(x, x.detach(), pos_weight=torch.ones(5)),
    "polar": lambda x: torch.polar(x, x).real,
    "complex": lambda x: torch.complex(x, x).imag,
    "dist": lambda x: torch.dist(x, 2 * x),
    "bucketize": lambda x: x * torch.bucketize(x.detach(), torch.tensor([0.1, 0.5])),
    "softplus": lambda x: F.softplus(x) + x.copysign(x - 1) + torch.rsub(x, x),
    "isin": lambda x: x * torch.isin(x.detach(), torch.ones(2)),
    "rms": lambda x: F.rms_norm(x, (5,), torch.ones(5, requires_grad=True)),
    "quantised": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_goes_element_by_element_is_not_named(name: str) -> None:
    with flops.FlopMeter() as meter:
        out = ELEMENTWISE[name](X.clone().requires_grad_())
        out.sum().backward()
    assert not meter.uncounted and not meter.total


PRODUCTS: dict[str, Callable[[Tensor], Any]] = {
    "_pdist_forward": lambda x: torch.pdist(x[0]),
    "_linalg_svd": lambda x: torch.linalg.svd(x),
    "_linalg_eigh": lambda x: torch.linalg.eigh(x[0] @ x[0].t()),
    "linalg_cholesky_ex": lambda x: torch.linalg.cholesky(torch.eye(4)),
    "_linalg_solve_ex": lambda x: torch.linalg.solve(torch.eye(4), x[0]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_decompositions_and_distances_are_named(name: str) -> None:
    with flops.FlopMeter() as meter:
        PRODUCTS[name](X)
    assert name in meter.uncounted


def test_products_with_something_elementwise_in_them_are_not_free() -> None:
    for name in ("_foreach_mm", "cudnn_convolution_relu", "_flash_attention_forward_no_dropout_inplace"):
        assert not FREE.fullmatch(name)


def test_a_product_in_place_has_the_formula_of_the_product() -> None:
    with flops.FlopMeter() as meter:
        torch.zeros(4, 3).addmm_(torch.ones(4, 5), torch.ones(5, 3))
        torch.zeros(4).addmv_(torch.ones(4, 5), torch.ones(5))
        torch.zeros(2, 4, 3).baddbmm_(torch.ones(2, 4, 5), torch.ones(2, 5, 3))
    assert meter.total == 2 * (4 * 5 * 3 + 4 * 5 + 2 * 4 * 5 * 3) and not meter.uncounted


def test_products_that_torch_has_no_formula_for_are_counted() -> None:
    assert measure(Mixing(), EXAMPLE).ahead == 6 * 2 * 8 * 8 * 5 + 2 * 30 * 4
    # A vector by a matrix, and by a vector.
    net = nn.Sequential(nn.Flatten(0), nn.Linear(48, 4), nn.Linear(4, 1))
    assert measure(net, EXAMPLE).ahead == 2 * (48 * 4 + 4)


@pytest.mark.parametrize("net", [odd.Query, odd.Dropped, odd.Recurrent, odd.Convolutions, odd.LoRA, Mixing])
def test_the_second_counter_agrees_and_has_formulas_of_its_own(net: type[nn.Module], monkeypatch) -> None:
    built = net()
    ours = measure(built, EXAMPLE).inference.ahead
    monkeypatch.setattr("torch.utils.flop_counter.flop_registry", {})
    monkeypatch.setattr("dstbench.suite.meters.operations.flop_registry", {})
    assert counted(built, EXAMPLE) == ours > 0


def test_a_product_of_two_parameters_belongs_to_the_layer() -> None:
    model = made(odd.Query)
    both, ask, head = 2 * 11 * 8 * 8, 2 * 8 * 8, 2 * 8 * 4
    assert [y.name for y in model.layers] == ["both", "ask", "head"]
    assert model.dense_passes.forward == {"both.weight": both, "ask.weight": ask, "head.weight": head}
    assert model.dense_passes.weights == model.dense_passes.forward
    assert model.dense_passes.rest_backward == 2 * model.dense_passes.rest_forward == 2 * 2 * 2 * 11 * 8


def test_a_product_of_two_plain_parameters_belongs_to_the_matrix() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.matrix = nn.Parameter(torch.randn(5, 48)), nn.Parameter(torch.randn(48, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.rows @ self.matrix).sum(0) + x.flatten(1) @ self.matrix

    assert measure(Plain(), EXAMPLE).forward == {"matrix": 2 * 48 * 4 * 6}
