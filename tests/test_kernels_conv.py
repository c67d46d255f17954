"""Sparse convolutions against torch's dense masked ones in float64."""

from __future__ import annotations

import copy
import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.suite.kernels.conv import (
    ConvPattern,
    SparseConv2d,
    conv_forward,
    conv_input_grad,
    conv_weight_grad,
    from_blocked,
    to_blocked,
)
from dstbench.suite.kernels.plan import Plan

SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
OLDER = ["-march=haswell", "-march=x86-64"]  # without AVX-512, without any AVX
KERNELS = [(1, 1), (3, 3), (1, 3), (5, 5), (7, 7), (3, 1)]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_close(ours, theirs, scale, what, limit=1e-5):
    """Within `limit` of `scale`: the size of the sums before anything cancels."""
    assert ours.shape == theirs.shape, what
    error = (ours.detach().double() - theirs.detach()).norm() / max(float(scale.detach().norm()), 1e-30)
    assert error <= limit, f"{what}: relative error {error:.1e}"


def product(x, values, bias, pattern):
    """All entries of the pattern read, stored and given a gradient."""
    return SparseConv2d.apply(x, values, bias, Plan(pattern, pattern, pattern.entries))


def dense(x, w, bias, grad, stride, padding):
    """y and the gradients of x, w and bias, in float64."""
    x, w, bias = (None if t is None else t.double().requires_grad_() for t in (x, w, bias))
    y = F.conv2d(x, w, bias, stride, padding)
    y.backward(grad.double())
    return y.detach(), x.grad, w.grad, None if bias is None else bias.grad


def check(images, channels, outputs, size, kernel, stride, padding, density, chunk, bias, seed=0):
    """Both layouts against the oracle."""
    torch.manual_seed(seed)
    mask = torch.rand(outputs, channels, *kernel) < density
    w, x = torch.randn(mask.shape) * mask, torch.randn(images, channels, *size)
    b = torch.randn(outputs) if bias else None
    pattern = ConvPattern(mask, stride, padding, chunk)
    grad = torch.randn(images, outputs, *pattern.output_size(*size))
    want = dense(x, w, b, grad, stride, padding)
    scales = dense(x.abs(), w.abs(), None if b is None else b.abs(), grad.abs(), stride, padding)
    for blocked in (False, True):
        there = to_blocked if blocked else lambda t: t
        back = (lambda t: from_blocked(t, images)) if blocked else lambda t: t
        leaf, values = there(x).clone().requires_grad_(), w[mask].clone().requires_grad_()
        b2 = None if b is None else b.clone().requires_grad_()
        y = product(leaf, values, b2, pattern)
        y.backward(there(grad))
        assert_close(back(y), want[0], scales[0], "y")
        assert_close(back(leaf.grad), want[1], scales[1], "dx")
        assert_close(values.grad, want[2][mask], scales[2][mask], "dw")
        if bias:
            assert_close(b2.grad, want[3], scales[3], "db")


def fits(size, kernel, padding):
    return all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding, strict=True))


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 15, 16, 17, 33]),
    st.sampled_from([1, 3, 16, 17, 40, 70]),
    st.sampled_from([1, 2, 7, 16, 33]),
    st.tuples(st.integers(1, 20), st.integers(1, 36)),
    st.sampled_from(KERNELS),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    st.sampled_from([0, 0, 1, 16]),
    st.booleans(),
)
def test_ragged_shapes(images, channels, outputs, size, kernel, stride, padding, density, chunk, bias):
    if fits(size, kernel, padding):
        check(images, channels, outputs, size, kernel, stride, padding, density, chunk, bias)


@pytest.mark.parametrize("size", [*((n, n) for n in (32, 28, 16, 14, 8, 7, 4, 2, 1)), (1, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_usual_sizes(size, stride):
    check(16, 48, 24, size, (3, 3), (stride, stride), (1, 1), 0.1, 0, False)


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_many_channels(density):
    check(20, 300, 40, (8, 8), (3, 3), (1, 1), (1, 1), density, 0, True)


def test_wide_image_takes_tiles_of_columns():
    pattern = ConvPattern(torch.rand(4, 96, 3, 3) < 0.2, 1, 1)
    assert pattern.run(6, 150).tile_cols < 150
    check(3, 96, 4, (6, 150), (3, 3), (1, 1), (1, 1), 0.2, 0, False)


def test_negative_padding_of_the_input_gradient():
    check(3, 4, 5, (6, 5), (1, 1), (1, 2), (3, 3), 0.5, 0, True)


@pytest.mark.parametrize("images", [3, 32, 48])
def test_threads_agree_and_repeat(images):
    torch.manual_seed(0)
    mask = torch.rand(20, 33, 3, 3) < 0.3
    pattern, values = ConvPattern(mask, 1, 1), torch.randn(int(mask.sum()))
    x, grad = torch.randn(images, 33, 9, 11), torch.randn(images, 20, 9, 11)
    results = {}
    for name, threads in (("one", 1), ("two", 2), ("again", 2), ("five", 5)):
        torch.set_num_threads(threads)
        y, dx = conv_forward(x, values, pattern), conv_input_grad(grad, values, pattern, (9, 11))
        results[name] = y, dx, conv_weight_grad(x, grad, pattern)
    for name in ("two", "five"):
        for ours, theirs in zip(results[name], results["one"], strict=True):
            assert_close(ours, theirs.double(), theirs, name, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results["two"], results["again"], strict=True))


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_nan_and_inf_pass_where_read(blocked, size):
    torch.manual_seed(1)
    mask = torch.rand(6, 20, 3, 3) < 0.2
    w, x = torch.randn(mask.shape).abs() * mask, torch.rand(17, 20, *size)
    x[0, 3, 2, 2], x[16, 5, 4, 4] = float("nan"), float("inf")
    pattern, values = ConvPattern(mask, 1, 1), w[mask]
    y = conv_forward(to_blocked(x), values, pattern) if blocked else conv_forward(x, values, pattern)
    y = from_blocked(y, 17) if blocked else y
    reads = F.conv2d((~x.isfinite()).double(), mask.double(), None, 1, 1) > 0
    assert torch.equal(~y.isfinite(), reads)
    assert y[0][reads[0]].isnan().all() and (y[16][reads[16]] == float("inf")).all()
    grad = torch.rand(17, 6, *pattern.output_size(*size))
    arguments = (to_blocked(x), to_blocked(grad)) if blocked else (x, grad)
    dv = conv_weight_grad(*arguments, pattern)
    for special, kind in ((x.isnan(), dv.isnan()), (x.isinf(), dv == float("inf"))):
        reads = torch.nn.grad.conv2d_weight(special.double(), mask.shape, grad.double(), 1, 1) > 0
        assert torch.equal(kind, reads[mask])


def test_empty_pattern_gives_zeros_and_bias():
    pattern = ConvPattern(torch.zeros(4, 3, 3, 3, dtype=torch.bool), 2, 1)
    x = torch.randn(5, 3, 9, 9, requires_grad=True)
    values, bias = torch.empty(0, requires_grad=True), torch.arange(4.0, requires_grad=True)
    y = product(x, values, bias, pattern)
    assert torch.equal(y, bias.detach()[None, :, None, None].expand(5, 4, 5, 5))
    assert not conv_forward(x.detach(), values.detach(), pattern).any()
    y.sum().backward()
    assert not x.grad.any() and values.grad.shape == (0,) and torch.equal(bias.grad, torch.full((4,), 125.0))


def test_no_images():
    pattern = ConvPattern(torch.ones(4, 3, 3, 3, dtype=torch.bool), 1, 1)
    x, values = torch.empty(0, 3, 5, 5), torch.randn(108)
    assert conv_forward(x, values, pattern).shape == (0, 4, 5, 5)
    assert not conv_weight_grad(x, torch.empty(0, 4, 5, 5), pattern).any()


def test_gradients_only_where_wanted():
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    x, values = torch.randn(2, 3, 6, 6), torch.randn(54, requires_grad=True)
    y = product(x, values, None, ConvPattern(mask))
    y.sum().backward()
    assert x.grad is None and values.grad is not None


def test_strided_memory_is_accepted():
    mask = torch.rand(5, 4, 3, 3) < 0.5
    pattern, x = ConvPattern(mask, 1, 1), torch.randn(3, 4, 8, 8)
    values = torch.randn(2 * pattern.entries)[::2]
    like = conv_forward(x, values.contiguous(), pattern)
    assert torch.equal(conv_forward(x.to(memory_format=torch.channels_last), values, pattern), like)
    assert torch.equal(conv_forward(torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape), values, pattern), like)


def test_copies_work():
    mask = torch.rand(5, 4, 3, 3) < 0.5
    pattern, x = ConvPattern(mask, 1, 1), torch.randn(3, 4, 8, 8)
    values = torch.randn(pattern.entries)
    y = conv_forward(x, values, pattern)
    twin = copy.deepcopy(pattern)
    del pattern
    assert torch.equal(conv_forward(x, values, twin), y)


def test_errors_name_the_value():
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"stride: \(3, 3\)"):
        ConvPattern(mask, 3)
    with pytest.raises(ValueError, match="mask: shape"):
        ConvPattern(mask[0])
    pattern, values = ConvPattern(mask), torch.zeros(54)
    with pytest.raises(ValueError, match="x: shape"):
        conv_forward(torch.zeros(1, 4, 5, 5), values, pattern)
    with pytest.raises(ValueError, match="2 x 9"):
        conv_forward(torch.zeros(1, 3, 2, 9), values, pattern)
    with pytest.raises(ValueError, match="values"):
        conv_forward(torch.zeros(1, 3, 5, 5), values[1:], pattern)
    with pytest.raises(TypeError, match="float64"):
        conv_forward(torch.zeros(1, 3, 5, 5).double(), values, pattern)
    with pytest.raises(ValueError, match="does not belong"):
        conv_weight_grad(torch.zeros(1, 3, 5, 5), torch.zeros(1, 2, 5, 5), pattern)


def grid():
    """Every kernel, stride and padding at ragged sizes: what the sanitizers see."""
    sizes = itertools.cycle([(1, 1), (2, 3), (4, 4), (5, 7), (8, 8), (9, 17), (16, 16), (3, 33), (6, 48)])
    images, channels = itertools.cycle([1, 16, 17]), itertools.cycle([1, 3, 20, 33])
    for kernel, stride, padding in itertools.product(KERNELS, [(1, 1), (2, 2), (1, 2)], [(0, 0), (1, 1), (3, 2)]):
        size = next(s for s in sizes if fits(s, kernel, padding))
        for density, chunk in ((0.3, 0), (0.3, 16), (0.02, 0)):
            yield next(images), next(channels), 9, size, kernel, stride, padding, density, chunk, True


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flags", [SANITIZE, *OLDER])
def test_other_builds(flags):
    """Address and undefined-behaviour sanitizers; and the code that older machines run."""
    run_with("import test_kernels_conv as t; [t.check(*a) for a in t.grid()]", flags)


def run_with(code: str, flags: str, **variables: str) -> None:
    """Run Python code in a process whose kernels are compiled with more flags; `variables` of its environment."""
    libraries = (
        subprocess.run(["g++", f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan", "libubsan")
    )
    extra = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"} if "sanitize" in flags else {}
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; print('passed')"],
        env={**os.environ, **extra, **variables, "DSTBENCH_CXXFLAGS": flags, "OMP_NUM_THREADS": "2",
             "PYTHONPATH": str(here.parent)},
        cwd=here, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0 and "passed" in run.stdout, run.stderr[-4000:]
