"""The peer kernel `sparseprop`: with the real package where it is installed, and what it refuses."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

from dstbench.suite import kernels, planfile
from dstbench.suite.kernels import sparseprop
from dstbench.suite.model import SparseModel


def test_sparseprop_must_be_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sparseprop", None)
    sparseprop._package.cache_clear()
    with pytest.raises(ValueError, match=r"needs the package sparseprop.*pip install sparseprop"):
        kernels.get("sparseprop")
    with pytest.raises(planfile.PlanError, match="--kernel: kernel sparseprop needs the package"):
        planfile.read("quick", {"kernel": "sparseprop"})
    sparseprop._package.cache_clear()


@pytest.mark.parametrize(
    ("conv", "why"),
    [
        (nn.Conv2d(2, 2, (3, 1)), r"one kernel_size for both dimensions, this layer has \(3, 1\)"),
        (nn.Conv2d(2, 2, 3, stride=(1, 2)), "one stride"),
        (nn.Conv2d(2, 2, 3, padding=(1, 0)), "one padding"),
        (nn.Conv2d(2**12, 2, 3), "filters of less than 32768 weights, this layer has 36864"),
        (nn.Conv2d(2, 2, 3, dilation=2), "dilation"),
    ],
)
def test_convolutions_that_sparseprop_cannot_compute_are_named(monkeypatch, conv: nn.Conv2d, why: str) -> None:
    monkeypatch.setattr(sparseprop, "_package", lambda: None)
    reason = sparseprop.SparseProp().unsupported(conv, "weight")
    assert re.search(why, str(reason))


@pytest.mark.parametrize(
    ("samples", "channels", "size", "kernel", "stride", "padding", "density"),
    [
        (5, 3, (7, 6), 3, 1, 1, 0.2),
        (7, 4, (9, 9), 3, 2, 0, 0.5),
        (8, 1, (8, 8), 1, 2, 0, 0.3),
        (3, 3, (32, 34), 3, 1, 0, 0.2),
        (3, 3, (33, 35), 7, 2, 3, 0.2),
    ],
)
def test_sparseprops_convolutions_are_those_of_the_masked_weight(
    samples: int, channels: int, size: tuple[int, int], kernel: int, stride: int, padding: int, density: float
) -> None:
    """Ragged batches and both of its variants, with the real package."""
    pytest.importorskip("sparseprop", reason="the package sparseprop is not installed")
    found = []
    for name in ("masked", "sparseprop"):
        torch.manual_seed(0)
        model = SparseModel(
            nn.Conv2d(channels, 6, kernel, stride, padding), torch.zeros(1, channels, *size), kernel=name
        )
        (layer,) = model.layers
        layer.forward_mask = layer.grad_mask = torch.rand(layer.shape) < density
        x = torch.randn(samples, channels, *size, requires_grad=True)
        y = model(x)
        (y * torch.randn(y.shape)).sum().backward()
        assert layer.fallback is None
        found.append([y.detach(), layer.grad, x.grad, model.net.bias.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
