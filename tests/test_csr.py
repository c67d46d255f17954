"""The peer kernel `csr` against a dense oracle in float64, and what it refuses."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dstbench.suite.kernels import csr
from dstbench.suite.kernels.csr import CsrLinear, CsrPattern
from dstbench.suite.kernels.plan import Plan
from dstbench.suite.model import SparseModel
from test_sparse import Mixed, draw


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_products_are_those_of_the_masked_weight_in_float64(
    outputs: int, inputs: int, samples: int, density: float, bias: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(outputs, inputs, generator=rng), torch.randn(samples, inputs, generator=rng)
    b = torch.randn(outputs, generator=rng) if bias else None
    grad = torch.randn(samples, outputs, generator=rng)
    mask = torch.rand(weight.shape, generator=rng) < density
    pattern = CsrPattern(mask)
    leaves = [t.requires_grad_() for t in (x, weight[mask].clone(), b) if t is not None]
    y = CsrLinear.apply(*leaves[:2], b, Plan(pattern, pattern, pattern.entries))
    found = torch.autograd.grad(y, leaves, grad)
    exact = [t.detach().double().requires_grad_() for t in (x, weight * mask, b) if t is not None]
    oracle = nn.functional.linear(*exact[:2], exact[2] if bias else None)
    expected = list(torch.autograd.grad(oracle, exact, grad.double()))
    expected[1] = expected[1][mask]
    for ours, theirs in zip((y, *found), (oracle, *expected), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_tokens_keep_their_shape() -> None:
    pattern = CsrPattern(torch.rand(5, 3) < 0.5)
    x = torch.randn(2, 4, 3, requires_grad=True)
    y = CsrLinear.apply(x, torch.randn(pattern.entries), torch.zeros(5), Plan(pattern, pattern, pattern.entries))
    y.sum().backward()
    assert y.shape == (2, 4, 5) and x.grad is not None and x.grad.shape == x.shape


def test_csr_takes_linear_layers_and_names_the_others(monkeypatch) -> None:
    model = SparseModel(Mixed(), torch.zeros(1, 3, 7, 6), kernel="csr")
    fallen = {y.name: y.fallback for y in model.layers if y.fallback}
    assert fallen == dict.fromkeys(("stem", "down", "short"), "no CSR product for a Conv2d")
    assert {y.kernel.name for y in model.layers if y.name in ("token", "head")} == {"csr"}
    draw(model, 0, 0.9, "same")
    assert {y.kernel.route(y) for y in model.layers if not y.fallback} == {"sparse"}, "a peer, whatever the density"

    def refuse(*_: object) -> None:
        raise AssertionError("a dense forward")

    monkeypatch.setattr(nn.functional, "linear", refuse)
    model(torch.randn(2, 3, 7, 6)).sum().backward()
    layer = model["token"]
    assert layer.parameter.numel() == layer.nnz() and layer.kernel.index_bytes(layer) > 4 * layer.nnz()


def test_a_torch_without_csr_products_is_named(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("built without MKL")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", refuse)
    csr._lacking.cache_clear()
    assert "built without MKL" in str(csr.Csr().unsupported(nn.Linear(2, 2), "weight"))
    csr._lacking.cache_clear()
