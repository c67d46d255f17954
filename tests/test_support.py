"""Gather and scatter between dense tensors and the entries on a mask, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.suite.kernels import support
from dstbench.suite.kernels.support import gather, scatter


def drawn(shape: list[int], density: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.rand(shape) < density, torch.randn(shape)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 23), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99), st.integers(1, 3))
def test_gather_and_scatter_are_those_of_torch(shape: list[int], density: float, seed: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mask, dense = drawn(shape, density, seed)
        values = gather(mask, dense)
        assert torch.equal(values, dense[mask])
        assert torch.equal(scatter(mask, values), dense * mask)
        assert torch.equal(scatter(mask, 2 * values, dense), torch.where(mask, 2 * dense, dense))
        assert torch.equal(scatter(mask, values, dense), dense) and dense.shape == mask.shape
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -0.0])
def test_all_numbers_pass_as_they_are(fill: float) -> None:
    mask, dense = drawn([7, 9], 0.5, 0)
    dense[mask] = fill
    assert torch.equal(gather(mask, dense).view(torch.int32), dense[mask].view(torch.int32))
    assert torch.equal(scatter(mask, gather(mask, dense), dense).view(torch.int32), dense.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int64])
def test_other_types_are_torchs_business(dtype: torch.dtype) -> None:
    mask, dense = drawn([5, 6], 0.5, 1)
    dense = (10 * dense).to(dtype)
    assert torch.equal(scatter(mask, gather(mask, dense)), torch.where(mask, dense, torch.zeros_like(dense)))


def test_strided_tensors_and_the_path_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, dense = drawn([6, 8], 0.4, 2)
    assert torch.equal(gather(mask, dense.t().contiguous().t()), dense[mask])
    assert torch.equal(gather(mask.t(), dense.t()), dense.t()[mask.t()])
    monkeypatch.setattr(support, "_native", lambda: None)
    assert torch.equal(scatter(mask, gather(mask, dense), dense), dense)


def test_what_is_kept_stays_as_it_was_and_wrong_counts_are_refused() -> None:
    mask, dense = drawn([4, 4], 0.5, 3)
    before = dense.clone()
    scatter(mask, torch.zeros(int(mask.sum())), dense)
    assert torch.equal(dense, before)
    with pytest.raises(ValueError, match="one for each entry"):
        scatter(mask, torch.zeros(17))
