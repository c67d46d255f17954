"""Attention: values and gradients are those of the definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.suite.kernels.attention import TOKENS, FusedAttention
from dstbench.suite.meters.flops import FlopMeter
from test_kernels_conv import assert_close, run_with


def run(qkv, grad):
    """y and the gradient, of queries, keys and values as a Linear gives them: (images, tokens, 3, heads, size)."""
    leaf = qkv.clone().requires_grad_()
    y = FusedAttention()(leaf.permute(2, 0, 3, 1, 4), attn_mask=None, dropout_p=0.0, is_causal=False)
    assert "Transpose" in type(y.grad_fn).__name__
    y.backward(grad)
    return y.detach(), leaf.grad


def defined(qkv, grad):
    leaf = qkv.double().requires_grad_()
    q, k, v = leaf.permute(2, 0, 3, 1, 4).unbind(0)
    y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
    y.backward(grad.double())
    return y.detach(), leaf.grad


def check(images, tokens, heads, size, spread=1.0):
    torch.manual_seed(0)
    qkv, grad = torch.randn(images, tokens, 3, heads, size) * spread, torch.randn(images, heads, tokens, size)
    for ours, wanted in zip(run(qkv, grad), defined(qkv, grad), strict=True):
        assert_close(ours, wanted, wanted, "attention", 1e-6 * (1 + spread**2))


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.sampled_from([16, 32, 48, 64, 80]),
    st.sampled_from([0.1, 1.0, 5.0]),
)  # fmt: skip
def test_ragged_shapes(images, tokens, heads, size, spread):
    check(images, tokens, heads, size, spread)


def test_as_many_tokens_as_it_takes():
    check(1, TOKENS, 1, 64)


def test_large_scores_do_not_overflow():
    check(2, 9, 1, 16, spread=30.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinities_pass_as_in_torch(value):
    torch.manual_seed(0)
    for part in range(3):
        qkv, grad = torch.randn(2, 20, 3, 2, 16), torch.randn(2, 2, 20, 16)
        qkv[1, 7, part, 0, 3] = value
        for ours, wanted in zip(run(qkv, grad), defined(qkv, grad), strict=True):
            assert torch.equal(ours.isfinite(), wanted.isfinite()) and not ours.isfinite().all()


def test_threads_do_not_matter():
    qkv, grad, before = torch.randn(3, 33, 3, 3, 32), torch.randn(3, 3, 33, 32), torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(run(qkv, grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("what", ["mask", "causal", "scale", "double", "many", "size", "counted"])
def test_what_the_kernel_has_no_part_in_is_computed_by_torch(what):
    packed = torch.randn(3, 2, 2, TOKENS + 1 if what == "many" else 9, 10 if what == "size" else 16)
    packed = packed.double() if what == "double" else packed
    options = {"mask": {"attn_mask": torch.rand(9, 9) < 0.7}, "causal": {"is_causal": True}, "scale": {"scale": 0.1}}
    chosen = options.get(what, {})
    wanted = F.scaled_dot_product_attention(*packed.unbind(0), **chosen)
    if what == "counted":
        with FlopMeter() as meter:
            y = FusedAttention()(packed, **chosen)
        assert meter.total > 0
    else:
        y = FusedAttention()(packed, **chosen)
    assert torch.equal(y.isnan(), wanted.isnan()) and torch.equal(y[~y.isnan()], wanted[~y.isnan()])


def test_second_derivatives_are_refused():
    packed = torch.randn(3, 1, 1, 4, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(FusedAttention()(packed).square().sum(), packed, create_graph=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all", "-march=haswell"])
def test_other_builds(flags):
    calls = [(2, tokens, 3, size) for tokens in (1, 15, 16, 17, 65) for size in (16, 48, 64)]
    run_with(f"import test_attention as t; [t.check(*a) for a in {calls!r}]", flags)
