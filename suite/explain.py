"""Explain: which kernel and route each Layer of a run takes, so that a silent fall-back cannot pass as sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dstbench.suite import kernels, listing, registry
from dstbench.suite.plan import Run, resolve
from dstbench.suite.run import build
from dstbench.suite.train import Training

OUTSIDE = "outside of Layers"


def explain(
    method: str,
    task: str,
    sparsity: float,
    kernel: str = "sparse",
    threads: int = 1,
    device: str = "cpu",
    precision: str | None = None,
    data_root: str | None = None,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """A run's network in a pass with its method's first masks: a row a Layer, and forward FLOPs by route.

    Shares are of the forward FLOPs of the dense network and sum to 1; `OUTSIDE` is what no Layer is part of (layers
    kept dense, attention scores), always dense. RegistryError for an unknown name, and where the method skips the task.
    """
    try:
        kernels.get(kernel)
    except ValueError as why:
        raise registry.RegistryError(str(why)) from None
    level = sparsity if registry.sparse(registry.find("method", method, plugins)) else None
    trained, rule = build(Run(method, task, level, precision=precision, plugins=tuple(plugins), data_root=data_root))
    if reason := rule.skip(trained):
        raise registry.RegistryError(f"{method} skips {task}: {reason}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        training = Training(trained, rule, device=resolve(device), kernel=kernel)
        training.setup()
        rule.begin(0)
        training.model.net.eval()
        with torch.no_grad(), training.autocast():  # a route may depend on what arrives
            training.model(trained.example().to(training.device))
        return _described(training)
    finally:
        torch.set_num_threads(before)


def _described(training: Training) -> dict[str, Any]:
    model, passes = training.model, training.model.dense_passes.inference
    rows = []
    routes: dict[str, float] = {}
    for layer in model.layers:
        route, share = layer.kernel.route(layer), passes.forward.get(layer.key, 0) / passes.ahead
        facts = {"layer": layer.name, "shape": list(layer.shape), "density": layer.density}
        rows.append({**facts, "kernel": layer.kernel.name, "route": route, "share": share, "fallback": layer.fallback})
        routes[route] = routes.get(route, 0.0) + share
    return {"layers": rows, "routes": routes | {OUTSIDE: max(0.0, 1 - sum(routes.values()))}}


def text(found: dict[str, Any]) -> str:
    """What `explain` found, for the terminal."""
    rows = [
        {
            **row,
            "shape": "x".join(map(str, row["shape"])),
            "density": f"{row['density']:.4f}",
            "share": f"{row['share']:.1%}",
            "fallback": row["fallback"] or "",
        }
        for row in found["layers"]
    ]
    totals = ", ".join(f"{route} {share:.1%}" for route, share in found["routes"].items())
    return f"{listing.table(rows)}\n\nforward FLOPs of the dense network by route: {totals}"
