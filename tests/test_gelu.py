"""GELU: values and gradients are those of the definition in float64, far into the tail."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.suite.kernels.gelu import gelu
from dstbench.suite.meters.flops import FlopMeter
from test_kernels_conv import run_with

LIMIT = 2e-6  # relative error
SMALLEST = 1e-37  # probability, near the smallest normal number; below, zero is as good


def errors(x):
    """Relative errors of value and slope; of the slope, which has a zero, to the size of its two terms."""
    leaf = x.clone().requires_grad_()
    y = gelu(leaf)
    y.sum().backward()
    assert "Gelu" in type(y.grad_fn).__name__ and y.shape == x.shape
    x = x.double()
    phi, density = torch.special.erfc(-x / math.sqrt(2)) / 2, torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    seen = (phi > SMALLEST) & (x != 0)
    value = (y.detach() - x * phi).abs() / (x * phi).abs()
    slope = (leaf.grad - phi - x * density).abs() / (phi + (x * density).abs())
    assert (y.detach()[~seen].abs() <= 1e-35).all()
    return float(value[seen].amax()) if seen.any() else 0.0, float(slope[phi > SMALLEST].amax())


def check(shape, spread):
    torch.manual_seed(0)
    assert max(errors(torch.randn(shape) * spread)) <= LIMIT


@pytest.mark.parametrize(("low", "high"), [(-15, 15), (-13.2, -12), (-1, -0.5), (-1e-3, 1e-3), (-1e-30, 1e-30), (5, 6)])
def test_values_and_slopes(low, high):
    assert max(errors(torch.linspace(low, high, 500_001))) <= LIMIT


@settings(max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=0, max_size=3), st.sampled_from([1e-3, 0.5, 2.0]))
def test_ragged_shapes(shape, spread):
    check(shape, spread)


def test_far_out_it_is_the_identity_or_zero():
    x = torch.tensor([20.0, 1e30, 3e38, -20.0, -1e30, -3e38] * 3, requires_grad=True)
    y = gelu(x)
    y.sum().backward()
    assert torch.equal(y, x.clamp_min(0)) and torch.equal(x.grad, (x > 0).float())


def test_nan_and_infinities_pass_as_in_torch():
    """But gelu(inf), which is NaN in torch's vectors and inf in its float64."""
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0] * 5, requires_grad=True)
    y = gelu(x)
    y.sum().backward()
    wanted = x.detach().clone().requires_grad_()
    F.gelu(wanted).sum().backward()
    assert y.isnan().tolist() == [True, False, True, False] * 5 and y[1] == math.inf
    torch.testing.assert_close(x.grad, wanted.grad, equal_nan=True)


def test_threads_do_not_matter():
    x, before = torch.randn(1003), torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        y = gelu(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("x", [torch.randn(40).double(), torch.randn(40).bfloat16(), torch.randn(8, 5).t()])
def test_what_the_kernel_has_no_part_in_is_computed_by_torch(x):
    assert torch.equal(gelu(x), F.gelu(x)) and gelu(x).dtype == x.dtype


def test_under_a_mode_that_counts_torch_computes_it_and_second_derivatives_are_else_refused():
    x = torch.randn(40, requires_grad=True)
    with FlopMeter():
        y = gelu(x)
    assert torch.autograd.grad(y.sum(), x, create_graph=True)[0].requires_grad
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gelu(x).sum(), x, create_graph=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all", "-march=haswell"])
def test_other_builds(flags):
    run_with("import test_gelu as t; [t.check((n,), s) for n in (1, 15, 16, 17, 1000) for s in (0.5, 3.0)]", flags)
