"""Linear layers on a GPU, dense against 2:4, forward and backward: python -m benchmarks.gpu

Both take turns in one run under bf16 autocast; medians of CUDA events, and the ratio of dense to 2:4. The forward
product alone is 2:4; the two products of the backward pass are dense under both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite import machine
from dstbench.suite.kernels import semi_structured
from dstbench.suite.model import SparseModel

LAYERS = ((1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096))  # inputs, outputs


def step(inputs: int, outputs: int, x: Tensor, kernel: str, masked: bool) -> Callable[[], object]:
    """A forward and backward pass; `masked`: 2 of every 4 inputs are read, at random."""
    net = nn.Linear(inputs, outputs).to(x.device)
    model = SparseModel(net, x[:1], kernel=kernel)
    if masked:
        order = torch.rand(outputs, inputs // 4, 4, device=x.device).argsort(-1)
        model.layers[0].forward_mask = (order < 2).view(outputs, inputs)

    def run() -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            model(x).sum().backward()

    run()
    wanted = "2:4" if masked else "dense"
    if (found := model.layers[0].kernel.route(model.layers[0])) != wanted:
        raise RuntimeError(
            f"Linear {inputs}x{outputs} took the route {found}, not {wanted}: {model.layers[0].fallback}"
        )
    return run


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call, by events of the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(inputs: int, outputs: int, samples: int, rounds: int) -> list[dict[str, Any]]:
    x = torch.randn(samples, inputs, device="cuda", requires_grad=True)
    calls = {k: step(inputs, outputs, x, "semi_structured", k == "2:4") for k in ("dense", "2:4")}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(seconds(call))
    medians = {name: statistics.median(times) for name, times in found.items()}
    layer = f"linear {inputs}x{outputs}"
    return [
        {"layer": layer, "kernel": name, "sparsity": None if name == "dense" else 0.5, "seconds": t,
         "speedup": medians["dense"] / t}
        for name, t in medians.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU on this machine, and there is nothing to measure without one")
    if why := semi_structured.missing(torch.device("cuda")):
        parser.error(why)
    rows = [row for shape in LAYERS for row in measure(*shape, options.samples, options.rounds)]
    for row in rows if not options.json else ():
        print(f"{row['layer']:18s} {row['kernel']:6s} {row['seconds'] * 1e3:9.3f} ms {row['speedup']:6.2f} x")
    found = {"machine": machine.facts(), "versions": machine.versions(), "rows": rows}
    found |= {name: getattr(options, name) for name in ("samples", "rounds")}
    print(json.dumps(found) if options.json else f"{found['machine']['gpu']}, torch {found['versions']['torch']}")


if __name__ == "__main__":
    main()
