"""The kernel `semi_structured`, with torch's support check and its format mocked: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from dstbench.suite.explain import explain
from dstbench.suite.kernels import semi_structured
from dstbench.suite.kernels.semi_structured import SemiStructured, two_of_four
from dstbench.suite.model import SparseModel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.wide = nn.Linear(64, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.conv(x).flatten(1)).relu())


@pytest.fixture
def packed(monkeypatch) -> list[Tensor]:
    """A machine with 2:4 products; the weights that were compressed."""
    seen: list[Tensor] = []
    monkeypatch.setattr(semi_structured, "missing", lambda device: None)
    monkeypatch.setattr(semi_structured, "compress", lambda weight: seen.append(weight) or weight)
    return seen


def built(kernel: str, n: int = 2) -> SparseModel:
    torch.manual_seed(0)
    model = SparseModel(Net(), torch.zeros(1, 1, 4, 4), kernel=kernel)
    rng = torch.Generator().manual_seed(1)
    order = torch.rand(64, 16, 4, generator=rng).argsort(-1)
    model["wide"].forward_mask = (order < n).view(64, 64)
    return model


def run(model: SparseModel, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = model(x)
    y.float().square().sum().backward()
    return y.detach().float(), model["wide"].grad, x.grad


@pytest.mark.parametrize("grad", [None, "mask"])
def test_under_autocast_it_computes_what_masked_does(packed, grad: str | None) -> None:
    models = [built(kernel) for kernel in ("masked", "semi_structured")]
    for model in models:
        model["wide"].grad_mask = model["wide"].forward_mask if grad else None
    masked, ours = (run(model, torch.bfloat16) for model in models)
    for a, b in zip(masked, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-2, atol=2e-2)
    assert len(packed) == 1 and packed[0].dtype == torch.bfloat16
    assert ((packed[0].view(-1, 4) != 0).sum(1) <= 2).all()
    assert models[1]["wide"].kernel.route(models[1]["wide"]) == "2:4"
    if grad:
        assert not models[1]["wide"].grad[~models[1]["wide"].forward_mask].any()


def test_other_masks_and_other_precisions_are_dense_and_say_so(packed) -> None:
    model = built("semi_structured", n=3)
    run(model, torch.bfloat16)
    layer = model["wide"]
    assert layer.kernel.route(layer) == "dense" and not packed
    layer.forward_mask = built("masked")["wide"].forward_mask
    assert layer.kernel.route(layer) == "2:4"
    full = run(model, None)
    assert layer.kernel.route(layer) == "dense" and not packed, "float32 has no 2:4 product"
    masked = built("masked")
    torch.testing.assert_close(full[0], run(masked, None)[0])
    run(model, torch.bfloat16)
    assert layer.kernel.route(layer) == "2:4" and len(packed) == 1


def test_layers_that_it_cannot_hold_are_named(packed) -> None:
    reasons = {y.name: y.fallback for y in built("semi_structured").layers}
    assert reasons == {
        "conv": "no 2:4 product for weight of Conv2d",
        "wide": None,
        "last": "2:4 products take weights of multiples of (32, 64), this layer has (10, 64)",
    }


def test_where_there_is_no_such_gpu_all_falls_back_by_name(monkeypatch) -> None:
    model = built("semi_structured")
    assert model["wide"].fallback == "2:4 products are computed on CUDA, this layer is on cpu"
    assert model["wide"].kernel.name == "masked"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = semi_structured.missing(torch.device("cuda"))
    assert reason == "2:4 products need compute capability 8.0, this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert semi_structured.missing(torch.device("cuda")) is None
    assert not SemiStructured.simulated


def test_explain_shows_the_route_that_the_precision_takes(packed, monkeypatch) -> None:
    monkeypatch.setattr(semi_structured, "ROWS", 2)
    monkeypatch.setattr(semi_structured, "COLUMNS", 4)
    for precision, route in (("fp32", "dense"), ("bf16", "2:4")):
        found = explain("nm", "digits/mlp", 0.5, "semi_structured", precision=precision)
        assert {row["route"] for row in found["layers"]} == {route}


def test_two_of_four() -> None:
    row = torch.tensor([[1, 1, 0, 0, 0, 1, 0, 1]]).bool()
    assert two_of_four(row) and two_of_four(torch.zeros(2, 4).bool())
    assert not two_of_four(row.roll(1)) and not two_of_four(None) and not two_of_four(torch.zeros(4, 6).bool())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_what_is_missing() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 2 and "torch finds no CUDA GPU on this machine" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_products_are_torchs() -> None:
    if why := semi_structured.missing(torch.device("cuda")):
        pytest.skip(why)
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64).cuda(), torch.randn(64, 64, device="cuda")
    model = SparseModel(layer, x, kernel="semi_structured")
    model.layers[0].forward_mask = built("masked")["wide"].forward_mask
    dense = torch.where(model.layers[0].forward_mask, model.layers[0].weight, 0.0)
    with torch.autocast("cuda", torch.bfloat16):
        y = model(x)
    torch.testing.assert_close(y.float(), x @ dense.t() + layer.bias, rtol=3e-2, atol=3e-2)
    assert model.layers[0].kernel.route(model.layers[0]) == "2:4"
