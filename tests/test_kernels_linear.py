"""Sparse linear layers against torch's dense masked ones in float64."""

from __future__ import annotations

import copy
import itertools
import platform

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.suite.kernels.linear import ROWS, LinearPattern, SparseLinear, by_rows, transposed
from dstbench.suite.kernels.plan import Plan
from test_kernels_conv import OLDER, SANITIZE, assert_close, run_with


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def product(x, values, bias, pattern, gelu=False):
    """All entries of the pattern read, stored and given a gradient."""
    return SparseLinear.apply(x, values, bias, Plan(pattern, pattern, pattern.entries), gelu)


def dense(x, w, bias, grad, gelu=False):
    """y and the gradients of x, w and bias, in float64."""
    x, w, bias = (None if t is None else t.double().requires_grad_() for t in (x, w, bias))
    y = F.linear(F.gelu(x) if gelu else x, w, bias)
    y.backward(grad.double())
    return y.detach(), x.grad, w.grad, None if bias is None else bias.grad


def check(samples, inputs, outputs, density, bias, chained, gelu=False, height=1, seed=0):
    """Against the oracle; `samples` is a tuple of leading dimensions; `chained`: the input comes transposed.

    Of `height` times `outputs` outputs, that many in sequence have one support.
    """
    torch.manual_seed(seed)
    mask = (torch.rand(outputs, inputs) < density).repeat_interleave(height, 0)
    outputs *= height
    w, x = torch.randn(mask.shape) * mask, torch.randn(*samples, inputs)
    b, grad = torch.randn(outputs) if bias else None, torch.randn(*samples, outputs)
    if chained and x.dim() == 2:
        x, grad = x.t().contiguous().t(), grad.t().contiguous().t()
    gelu = gelu and by_rows(x)
    want = dense(x, w, b, grad, gelu)
    scales = dense(x.abs(), w.abs(), None if b is None else b.abs(), grad.abs())
    leaf, values = x.clone(memory_format=torch.preserve_format).requires_grad_(), w[mask].requires_grad_()
    b2 = None if b is None else b.clone().requires_grad_()
    y = product(leaf, values, b2, LinearPattern(mask), gelu)
    y.backward(grad)
    assert_close(y, want[0], scales[0], "y")
    assert_close(leaf.grad, want[1], scales[1], "dx")
    assert_close(values.grad, want[2][mask], scales[2][mask], "dw")
    if bias:
        assert_close(b2.grad, want[3], scales[3], "db")


SAMPLES = [(1,), (3,), (16,), (17,), (100,), (128,), (255,), (ROWS,), (ROWS + 6,), (2100,), (3, 5), (2, 7, 16), ()]


@settings(max_examples=60)
@given(
    st.sampled_from(SAMPLES),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 1, 2, 4, 8]),
)
def test_ragged_shapes(samples, inputs, outputs, density, bias, chained, gelu, height):
    check(samples, inputs, outputs, density, bias, chained, gelu, height)


@settings(max_examples=200)
@given(st.integers(1, 24), st.integers(1, 5), st.floats(0, 1), st.sampled_from([1, 2, 3, 4, 8, 12]), st.integers(0, 99))
def test_the_tallest_blocks_are_found(outputs, inputs, density, height, seed):
    torch.manual_seed(seed)
    mask = (torch.rand(outputs, inputs) < density).repeat_interleave(height, 0)
    mask[0, 0] ^= seed % 3 == 0  # a group that differs in one place
    fits = [h for h in (8, 4, 2) if len(mask) % h == 0 and all((g == g[0]).all() for g in mask.split(h))]
    assert LinearPattern(mask).height == (fits[0] if fits and mask.any() else 1)
    assert LinearPattern(mask, tallest=4).height == next((h for h in fits if h <= 4 and mask.any()), 1)


@pytest.mark.parametrize("height", [2, 4, 8])
@pytest.mark.parametrize("samples", [20, 130, ROWS + 40])
def test_blocks_compute_what_single_entries_do_with_less_index(height, samples):
    torch.manual_seed(0)
    mask = (torch.rand(64 // height, 50) < 0.2).repeat_interleave(height, 0)
    patterns = LinearPattern(mask), LinearPattern(mask, tallest=1)
    assert [p.height for p in patterns] == [height, 1] and patterns[0].bytes < patterns[1].bytes
    x, values, bias, grad = (torch.randn(*s) for s in ((samples, 50), (patterns[0].entries,), (64,), (samples, 64)))
    results = []
    for pattern in patterns:
        leaves = [t.clone().requires_grad_() for t in (x, values, bias)]
        y = product(*leaves, pattern)
        results.append((y, *torch.autograd.grad(y, leaves, grad)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs.double(), theirs, "blocks", 1e-6)


@pytest.mark.parametrize("shape", [(1, 4096), (4096, 1), (4096, 600), (600, 4096)])
@pytest.mark.parametrize("samples", [20, ROWS])
def test_wide_layers(shape, samples):
    check((samples,), *shape, 0.05, True, False)


@pytest.mark.parametrize("height", [1, 2, 8])
@pytest.mark.parametrize("samples", [33, ROWS + 100])
def test_threads_agree_and_repeat(samples, height):
    torch.manual_seed(0)
    mask = (torch.rand(72 // height, 50) < 0.3).repeat_interleave(height, 0)
    pattern, x, grad = LinearPattern(mask), torch.randn(samples, 50), torch.randn(samples, 72)
    results = {}
    for name, threads in (("one", 1), ("two", 2), ("again", 2), ("five", 5)):
        torch.set_num_threads(threads)
        leaf, values, bias = x.clone(), torch.linspace(-1, 1, pattern.entries), torch.zeros(72)
        leaves = [t.requires_grad_() for t in (leaf, values, bias)]
        y = product(*leaves, pattern)
        y.backward(grad)
        results[name] = [y.detach(), *(t.grad for t in leaves)]
    for name in ("two", "five"):
        for ours, theirs in zip(results[name], results["one"], strict=True):
            assert_close(ours, theirs.double(), theirs, name, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results["two"], results["again"], strict=True))


@pytest.mark.parametrize("height", [1, 2, 4, 8])
@pytest.mark.parametrize("samples", [20, ROWS])
def test_nan_and_inf_pass_where_read(samples, height):
    torch.manual_seed(1)
    mask = (torch.rand(32 // height, 40) < 0.2).repeat_interleave(height, 0)
    pattern, w, x = LinearPattern(mask), torch.rand(32, 40), torch.rand(samples, 40)
    x[0, 3], x[7, 5] = float("nan"), float("inf")
    values = w[mask].requires_grad_()
    y = product(x, values, None, pattern)
    assert torch.equal(y.isnan(), x.isnan().float() @ mask.t().float() > 0)
    assert torch.equal(y == float("inf"), x.isinf().float() @ mask.t().float() > 0)
    y.backward(torch.rand(samples, 32))
    columns = torch.arange(40).expand(32, 40)[mask]
    assert torch.equal(values.grad.isnan(), columns == 3) and torch.equal(values.grad.isinf(), columns == 5)


def test_gradients_only_where_wanted():
    mask = torch.ones(3, 4, dtype=torch.bool)
    x, values, bias = torch.randn(5, 4), torch.randn(12), torch.randn(3)
    for wanted in itertools.product([False, True], repeat=3):
        leaves = [t.clone().requires_grad_(want) for t, want in zip((x, values, bias), wanted, strict=True)]
        y = product(*leaves, LinearPattern(mask))
        if any(wanted):
            y.sum().backward()
        assert [t.grad is not None for t in leaves] == list(wanted)
        if wanted[2]:
            assert torch.equal(leaves[2].grad, torch.full((3,), 5.0))


@pytest.mark.parametrize("wanted", [None, "other"])
def test_gelu_before_the_layer_whatever_weight_gradient_is_wanted(wanted):
    """Dense, or on other entries than those read."""
    torch.manual_seed(0)
    read, other = torch.rand(20, 30) < 0.2, torch.rand(20, 30) < 0.1
    pattern, grad = LinearPattern(read), torch.randn(2, 40, 20)
    w, x = torch.randn(20, 30), torch.randn(2, 40, 30)
    grad_pattern = None if wanted is None else LinearPattern(other)
    where = None if wanted is None else other.flatten().nonzero().flatten().int()
    places, mask = read.flatten().nonzero().flatten().int(), None if wanted is None else other
    leaf, stored = x.clone().requires_grad_(), w.flatten().requires_grad_()
    SparseLinear.apply(leaf, stored, None, Plan(pattern, grad_pattern, 600, places, where, read, mask), True).backward(
        grad
    )
    _, dx, dw, _ = dense(x, w.detach() * read, None, grad, True)
    torch.testing.assert_close(leaf.grad.double(), dx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        stored.grad.view(20, 30).double(), dw if wanted is None else dw * other, rtol=1e-5, atol=1e-5
    )


def test_a_chain_of_layers_moves_nothing_and_elementwise_operations_keep_its_layout():
    x = torch.randn(32, 48).t()
    assert transposed(x).data_ptr() == x.data_ptr()
    pattern = LinearPattern(torch.rand(24, 32) < 0.5)
    y = product(x, torch.randn(pattern.entries), None, pattern).relu()
    assert transposed(y).data_ptr() == y.data_ptr()


def test_strided_and_expanded_inputs_are_accepted():
    pattern = LinearPattern(torch.rand(6, 8) < 0.5)
    values = torch.randn(pattern.entries)
    wide = torch.randn(20, 16)
    for x in (
        wide[:, ::2],
        wide[:, 3:11],
        wide[::3, :8],
        torch.randn(1, 8).expand(5, 8),
        torch.randn(4, 1).expand(4, 8),
    ):
        torch.testing.assert_close(product(x, values, None, pattern), product(x.contiguous(), values, None, pattern))


def test_copies_work():
    pattern = LinearPattern(torch.rand(6, 8) < 0.5)
    x, values = torch.randn(4, 8), torch.randn(pattern.entries)
    y, twin = product(x, values, None, pattern), copy.deepcopy(pattern)
    del pattern
    assert torch.equal(product(x, values, None, twin), y)


def grid():
    """Ragged shapes: what the sanitizers see."""
    for samples, inputs, outputs in itertools.product(SAMPLES, (1, 5, 16, 33), (1, 10, 70)):
        for density, height in ((0.0, 1), (0.03, 1), (0.3, 1), (1.0, 1), (0.2, 2), (0.2, 4), (0.2, 8)):
            yield samples, inputs, outputs, density, density != 0.3, density == 1.0, density < 1.0, height


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flags", [SANITIZE, *OLDER])
def test_other_builds(flags):
    """Address and undefined-behaviour sanitizers; and the code that older machines run."""
    run_with("import test_kernels_linear as t; [t.check(*a) for a in t.grid()]", flags)


def extremes():
    """From 1 x 1 to 4096 x 4096, by both routes."""
    for inputs, outputs in [(1, 1), (1, 4096), (4096, 1), (4096, 4096), (17, 4095), (4095, 33), (15, 16), (1, 2)]:
        for density, samples in itertools.product((0.0, 0.001, 1.0), ((5,), (3, 5))):
            yield samples, inputs, outputs, density, True, False


@pytest.mark.slow
def test_nothing_outside_is_touched_at_any_size():
    run_with("import test_kernels_linear as t; [t.check(*a) for a in t.extremes()]", SANITIZE)
