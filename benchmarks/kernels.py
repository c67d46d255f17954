"""Sparse products of single layers over dense ones, forward and backward: python -m benchmarks.kernels

For each layer all candidates take turns in one run: dense fp32 in each layout, dense bf16 (autocast), torch CSR (for a
Linear), and the kernel `sparse` at each sparsity. Prints medians (benchmarks.timing says of what), the ratio of the
best dense fp32 layout to each, the GF/s of useful arithmetic (weights that are zero do not count) and what share that
is of the machine's roofs (benchmarks.roofs). The pattern is uniform random; under "8x1" 8 outputs in sequence share it,
and the kernel takes its route for blocks. Gradients of input, weight and bias are computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import roofs, timing
from benchmarks.timing import Call
from dstbench.suite.kernels.conv import ConvPattern, SparseConv2d, to_blocked
from dstbench.suite.kernels.csr import CsrLinear, CsrPattern
from dstbench.suite.kernels.linear import LinearPattern, SparseLinear
from dstbench.suite.kernels.plan import Plan

BLOCKED = (0.9, 0.95)  # sparsities of which a Linear is measured with blocks, too
LAYERS: dict[str, tuple[int, ...]] = {
    "linear 1000x1000": (1000, 1000, 1),  # inputs, outputs, samples of each member of the batch
    "linear 192x768 tokens": (192, 768, 65),
    "conv 64@32": (64, 32),  # channels in and out, height and width; 3x3, stride 1
    "conv 128@16": (128, 16),
    "conv 256@8": (256, 8),
    "conv 512@4": (512, 4),
}
FP32 = ("dense rows", "dense columns", "dense NCHW", "dense NHWC")

Candidates = dict[tuple[str, float | None], Call]


def step(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], grad: Tensor) -> Call:
    """Forward, and backward to all leaves."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def in_bf16(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(*leaves).float()

    return run


def linear(inputs: int, outputs: int, samples: int, sparsities: list[float]) -> Candidates:
    x, grad = torch.randn(samples, inputs), torch.randn(samples, outputs)
    w, b = torch.randn(outputs, inputs) / inputs**0.5, torch.zeros(outputs)
    columns = x.t().contiguous().t(), grad.t().contiguous().t()
    calls: Candidates = {
        ("dense rows", None): step(F.linear, (x, w, b), grad),
        ("dense columns", None): step(F.linear, (columns[0], w, b), columns[1]),
        ("dense bf16", None): step(in_bf16(F.linear), (x, w, b), grad),
    }
    for sparsity, height in [(s, h) for s in sparsities for h in ((1, 8) if s in BLOCKED else (1,))]:
        mask = (torch.rand(outputs // height, inputs) >= sparsity).repeat_interleave(height, 0)
        values, pattern = w[mask], LinearPattern(mask)
        plan = Plan(pattern, pattern, pattern.entries)

        def ours(x: Tensor, v: Tensor, b: Tensor, plan: Plan[LinearPattern] = plan) -> Tensor:
            return SparseLinear.apply(x, v, b, plan)

        name = "sparse" if height == 1 else f"sparse {height}x1"
        calls[f"{name} drop-in", sparsity] = step(ours, (x, values, b), grad)
        if samples < 1024:
            calls[f"{name} chained", sparsity] = step(ours, (columns[0], values, b), columns[1])
        if height > 1:
            continue
        peer = CsrPattern(mask)
        csr = Plan(peer, peer, peer.entries)

        def theirs(x: Tensor, v: Tensor, b: Tensor, plan: Plan[CsrPattern] = csr) -> Tensor:
            return CsrLinear.apply(x, v, b, plan)

        calls["csr", sparsity] = step(theirs, (x, values, b), grad)
    return calls


def conv(channels: int, size: int, batch: int, sparsities: list[float]) -> Candidates:
    def dense(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, 1, 1)

    x, w = torch.randn(batch, channels, size, size), torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
    grad = torch.randn_like(x)
    last = [t.to(memory_format=torch.channels_last) for t in (x, w, grad)]
    calls: Candidates = {
        ("dense NCHW", None): step(dense, (x, w), grad),
        ("dense NHWC", None): step(dense, (last[0], last[1]), last[2]),
        ("dense bf16", None): step(in_bf16(dense), (last[0], last[1]), last[2]),
    }
    for sparsity in sparsities:
        mask = torch.rand(w.shape) >= sparsity
        pattern = ConvPattern(mask, 1, 1)
        plan = Plan(pattern, pattern, pattern.entries)

        def ours(x: Tensor, v: Tensor, plan: Plan[ConvPattern] = plan) -> Tensor:
            return SparseConv2d.apply(x, v, None, plan)

        calls["sparse NCHW", sparsity] = step(ours, (x, w[mask]), grad)
        calls["sparse blocked", sparsity] = step(ours, (to_blocked(x), w[mask]), to_blocked(grad))
    return calls


def products(layer: str, batch: int) -> float:
    """FLOPs of forward pass, input and weight gradient, dense; padding is counted as if it were read."""
    shape = LAYERS[layer]
    if layer.startswith("linear"):
        inputs, outputs, samples = shape
        return 3 * 2.0 * inputs * outputs * samples * batch
    channels, size = shape
    return 3 * 2.0 * 9 * channels**2 * size**2 * batch


def measure(layer: str, options: argparse.Namespace, limits: dict[str, float]) -> Iterator[dict[str, Any]]:
    """A row a candidate; `gflops` counts the weights read alone, `of_l1` and `of_l2` are its shares of those roofs."""
    shape = LAYERS[layer]
    if layer.startswith("linear"):
        calls = linear(shape[0], shape[1], shape[2] * options.batch, options.sparsity)
    else:
        calls = conv(shape[0], shape[1], options.batch, options.sparsity)
    found = timing.medians(calls, options.rounds)
    best = min(seconds for (name, _), (seconds, _) in found.items() if name in FP32)
    for (name, sparsity), (seconds, clean) in found.items():
        row = {"layer": layer, "kernel": name, "sparsity": sparsity, "seconds": seconds, "speedup": best / seconds}
        gflops = products(layer, options.batch) * (1 - (sparsity or 0)) / seconds / 1e9
        shares = {f"of_{roof}": None if sparsity is None else gflops / limits[roof] for roof in ("l1", "l2")}
        yield row | {"clean_samples": clean, "gflops": gflops} | shares


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    made = timing.parser(__doc__, list(LAYERS), [0.7, 0.8, 0.9, 0.95, 0.99], batch=128, rounds=11)
    options = timing.begin(made, arguments)
    report = timing.Report(options)
    limits = roofs.measure(options.threads)
    for line in roofs.lines(limits):
        report.say(line)
    for layer in options.chosen:
        for row in measure(layer, options, limits):
            remark = f"{row['clean_samples']}/{options.rounds} clean  {row['gflops']:7.1f} GF/s"
            if row["sparsity"] is not None:
                remark += f"  {row['of_l1']:4.0%} of L1  {row['of_l2']:4.0%} of L2"
            report.add(row, remark)
    report.close(roofs=limits)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
