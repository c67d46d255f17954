"""Sparse products of single layers over dense ones, forward and backward: python -m benchmarks.kernels

For each layer all candidates take turns in one run: dense fp32 in each layout, dense bf16 (autocast), torch CSR (for a
Linear), and the kernel `sparse` at each sparsity. A sample is a batch of calls of at least 60 ms; it is dropped when
other processes used more than 12 % of one core (and one tick of the clock) during it. Prints medians, and the ratio of
the best dense fp32 layout to each. The pattern is uniform random; gradients of input, weight and bias are computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from suite import machine
from suite.kernels.conv import ConvPattern, SparseConv2d
from suite.kernels.linear import LinearPattern, SparseLinear
from suite.kernels.plan import Plan

LAYERS: dict[str, tuple[int, ...]] = {
    "linear 1000x1000": (1000, 1000, 1),  # inputs, outputs, samples of each member of the batch
    "linear 192x768 tokens": (192, 768, 65),
    "conv 64@32": (64, 32),  # channels in and out, height and width; 3x3, stride 1
    "conv 128@16": (128, 16),
    "conv 256@8": (256, 8),
    "conv 512@4": (512, 4),
}
SAMPLE = 0.06  # seconds
FOREIGN, TICK = 0.12, 0.01

Call = Callable[[], object]
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


class Csr(torch.autograd.Function):
    """A Linear by torch's own sparse products: CSR times dense, and sampled dense times dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor, w: Tensor, turned: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        w = torch.sparse_csr_tensor(w.crow_indices(), w.col_indices(), values, w.shape)
        ctx.save_for_backward(x, values)
        ctx.sparse = w, turned, order
        return torch.addmm(bias[:, None], w, x.t()).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values = ctx.saved_tensors
        w, turned, order = ctx.sparse
        turned = torch.sparse_csr_tensor(turned.crow_indices(), turned.col_indices(), values[order], turned.shape)
        dw = torch.sparse.sampled_addmm(w, grad.t().contiguous(), x, beta=0.0).values()
        return (turned @ grad.t()).t(), dw, grad.sum(0), None, None, None


def csr(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pattern, its transpose, and the place of the transpose's entries in the pattern."""
    places = torch.zeros(mask.shape)
    places[mask] = torch.arange(1.0, int(mask.sum()) + 1)
    turned = places.t().to_sparse_csr()
    return mask.float().to_sparse_csr(), turned, turned.values().long() - 1


def linear(inputs: int, outputs: int, samples: int, sparsities: list[float]) -> Candidates:
    x, grad = torch.randn(samples, inputs), torch.randn(samples, outputs)
    w, b = torch.randn(outputs, inputs) / inputs**0.5, torch.zeros(outputs)
    columns = x.t().contiguous().t(), grad.t().contiguous().t()
    calls: Candidates = {
        ("dense rows", None): step(F.linear, (x, w, b), grad),
        ("dense columns", None): step(F.linear, (columns[0], w, b), columns[1]),
        ("dense bf16", None): step(in_bf16(F.linear), (x, w, b), grad),
    }
    for sparsity in sparsities:
        mask = torch.rand(w.shape) >= sparsity
        values, pattern, sparse = w[mask], LinearPattern(mask), csr(mask)
        plan = Plan(pattern, pattern, pattern.entries)

        def ours(x: Tensor, v: Tensor, b: Tensor, plan: Plan[LinearPattern] = plan) -> Tensor:
            return SparseLinear.apply(x, v, b, plan)

        def theirs(x: Tensor, v: Tensor, b: Tensor, sparse: tuple[Tensor, ...] = sparse) -> Tensor:
            return Csr.apply(x, v, b, *sparse)

        calls["csr", sparsity] = step(theirs, (x, values, b), grad)
        calls["sparse drop-in", sparsity] = step(ours, (x, values, b), grad)
        if samples < 1024:
            calls["sparse chained", sparsity] = step(ours, (columns[0], values, b), columns[1])
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
    return calls


def sample(call: Call, times: int) -> tuple[float, bool]:
    """Seconds of one call, and whether other processes left us alone."""
    busy, own, start = _busy(), time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    wall = time.perf_counter() - start
    foreign = _busy() - busy - (time.process_time() - own)
    return wall / times, foreign <= FOREIGN * wall + TICK


def _busy() -> float:
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)


def medians(calls: Candidates, rounds: int) -> Iterator[tuple[str, float | None, float, int]]:
    """Candidate, sparsity, median seconds and clean samples; with fewer than 2 of those, of the fastest third."""
    times = {}
    for key, call in calls.items():
        call()
        times[key] = max(1, round(SAMPLE / sample(call, 1)[0] + 0.5))
    found: dict[Any, list[tuple[float, bool]]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            found[key].append(sample(call, times[key]))
    for (name, sparsity), samples in found.items():
        clean = [seconds for seconds, alone in samples if alone]
        fastest = sorted(seconds for seconds, _ in samples)[: max(1, rounds // 3)]
        yield name, sparsity, statistics.median(clean if len(clean) >= 2 else fastest), len(clean)


def measure(layer: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    shape = LAYERS[layer]
    if layer.startswith("linear"):
        calls = linear(shape[0], shape[1], shape[2] * options.batch, options.sparsity)
    else:
        calls = conv(shape[0], shape[1], options.batch, options.sparsity)
    found = list(medians(calls, options.rounds))
    fp32 = ("dense rows", "dense columns", "dense NCHW", "dense NHWC")
    best = min(seconds for name, _, seconds, _ in found if name in fp32)
    return [
        {"layer": layer, "kernel": name, "sparsity": s, "seconds": t, "speedup": best / t, "clean_samples": clean}
        for name, s, t, clean in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PART", help=f"layers whose name has this: {', '.join(LAYERS)}")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    chosen = [layer for layer in LAYERS if options.only in layer]
    if not chosen:
        parser.error(f"no layer has {options.only!r} in its name: {', '.join(LAYERS)}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for layer in chosen:
        rows += (new := measure(layer, options))
        for row in new if not options.json else ():
            level = "" if row["sparsity"] is None else f"{row['sparsity']:.0%}"
            what = f"{layer:22s} {row['kernel']:15s} {level:>4s}"
            times = f"{row['seconds'] * 1e3:9.3f} ms {row['speedup']:6.2f} x"
            print(f"{what} {times}  {row['clean_samples']}/{options.rounds} clean", flush=True)
    found = {"machine": machine.facts(), "versions": machine.versions(), "rows": rows}
    found |= {name: getattr(options, name) for name in ("threads", "batch", "rounds")}
    print(json.dumps(found) if options.json else f"{found['machine']['cpu']}, torch {found['versions']['torch']}")


if __name__ == "__main__":
    main()
