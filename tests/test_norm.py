"""Fused batch norm: values, gradients and running statistics are those of torch's operations in float64."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.suite.kernels.norm import FusedNorm
from dstbench.suite.meters.flops import FlopMeter
from test_kernels_conv import OLDER, SANITIZE, run_with


def check(images, channels, size, add, relu, training, momentum=0.1, offset=0.0, seed=0, steps=2):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2), norm.bias.uniform_(-1, 1)
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    wanted = copy.deepcopy(norm).double().train(training)
    fused = FusedNorm(norm.train(training), relu)
    for _ in range(steps):
        x = (torch.randn(images, channels, *size) + offset).requires_grad_()
        other = torch.randn_like(x).requires_grad_() if add else None
        grad = torch.randn_like(x)
        y = fused(x, other)
        y.backward(grad)
        x2 = x.detach().double().requires_grad_()
        other2 = None if other is None else other.detach().double().requires_grad_()
        y2 = wanted(x2) if other2 is None else wanted(x2) + other2
        y2 = F.relu(y2) if relu else y2
        # Where float32 and float64 disagree on which side of zero a sum is, the gradients differ and say nothing.
        y2.backward(grad.double() * ((y > 0) == (y2 > 0)) if relu else grad.double())
        assert "NormAct" in type(y.grad_fn).__name__
        pairs = {"y": (y, y2), "weight": (norm.weight.grad, wanted.weight.grad)}
        pairs |= {"dx": (x.grad, x2.grad), "bias": (norm.bias.grad, wanted.bias.grad)}
        pairs |= {"mean": (norm.running_mean, wanted.running_mean), "var": (norm.running_var, wanted.running_var)}
        pairs |= {"other": (other.grad, other2.grad)} if add else {}
        for name, (ours, theirs) in pairs.items():
            summed = (x.numel() / channels) ** 0.5 / 8 if name in ("weight", "bias") else 1
            torch.testing.assert_close(
                ours.double(), theirs, rtol=2e-5, atol=2e-5 * (1 + abs(offset)) * max(1, summed), msg=name
            )
        assert norm.num_batches_tracked == wanted.num_batches_tracked


@settings(max_examples=40)
@given(
    st.integers(1, 20),
    st.integers(1, 70),
    st.sampled_from([(4, 4), (1, 16), (5, 5), (7, 7), (8, 8), (3, 11), (16, 16), (33, 31)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.1, 0.5, None]),
)
def test_values_gradients_and_statistics_are_those_of_torch(images, channels, size, add, relu, training, momentum):
    check(images, channels, size, add, relu, training, momentum)


def test_a_large_mean_costs_no_precision():
    check(16, 4, (8, 8), False, False, True, offset=1000.0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads):
    torch.manual_seed(0)
    x, fused = torch.randn(9, 33, 6, 6), FusedNorm(nn.BatchNorm2d(33), True)
    torch.set_num_threads(1)
    one = fused(x)
    torch.set_num_threads(threads)
    assert torch.equal(fused(x), one)


def test_nan_passes_as_in_torch():
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 2, 2] = float("nan")
    norm = nn.BatchNorm2d(3)
    y = FusedNorm(norm, True)(x)
    assert y[:, 1].isnan().all() and y[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("what", ["double", "small", "plain", "broadcast", "counted"])
def test_what_the_kernel_has_no_part_in_is_computed_by_torch(what):
    norm = nn.BatchNorm2d(3, affine=what != "plain")
    x, other = torch.randn(2, 3, 5, 5), None
    if what == "double":
        norm, x = norm.double(), x.double()
    if what == "small":
        x = x[..., :3, :5]
    if what == "broadcast":
        other = torch.randn(2, 3, 1, 1)
    wanted = F.relu(copy.deepcopy(norm)(x) + (0 if other is None else other))
    if what == "counted":
        with FlopMeter():
            y = FusedNorm(norm, True)(x.requires_grad_())
        assert torch.autograd.grad(y.sum(), x, create_graph=True)[0].requires_grad
    else:
        y = FusedNorm(norm, True)(x, other)
    assert torch.equal(y, wanted)


def test_second_derivatives_are_refused():
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(FusedNorm(nn.BatchNorm2d(3), True)(x).square().sum(), x, create_graph=True)


def grid():
    """Ragged planes, with and without what is fused."""
    for size, add, relu in itertools.product([(5, 5), (8, 8), (1, 17)], (0, 1), (0, 1)):
        yield 3, 5, size, add, relu, True


@pytest.mark.slow
@pytest.mark.parametrize("flags", [SANITIZE, *OLDER])
def test_other_builds(flags):
    run_with("import test_norm as t; [t.check(*a) for a in t.grid()]", flags)
