"""Achieved: how sparse a run has become, by its target, and what of the network, and of its FLOPs, that leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dstbench.suite.model import SparseModel
from dstbench.suite.schema import FEW
from dstbench.suite.train import Training
from dstbench.suite.values import number

TOLERANCE = 0.01  # of the target's number of weights; at least one weight,
GRAIN = 0.05  # or one unit of a method's structure, where that is no more than this share of it


def achieved(training: Training, target: float | None) -> dict[str, Any]:
    """The block `sparsity` of the record of a run with this target."""
    model, grain = training.model, number(training.method.grain, "grain is")
    active = sum(layer.nnz() for layer in model.layers)
    wanted = None if target is None else round((1 - target) * model.maskable)
    parameters = sum(p.numel() for p in model.net.parameters())
    stored = sum(layer.parameter.numel() for layer in model.layers)
    everything = parameters - stored + model.maskable
    return {
        "target": target,
        "achieved": 1 - active / max(1, model.maskable),
        "target_weights": wanted,
        "active_weights": active,
        "maskable": model.maskable,
        "parameters": everything,
        "explored": training.explored.share,
        "of_parameters": (model.maskable - active) / everything,
        "maskable_share": model.maskable / max(1, everything),
        "left_dense": model.left_dense,
        "never_reached": (idle := [layer.name for layer in model.layers if not layer.met]),
        "warning": left_out(model.maskable / max(1, everything), model, idle),
        "on_target": wanted is None or abs(active - wanted) <= slack(wanted, grain),
        "layers": {
            y.name: {
                "density": y.density,
                "numel": y.numel,
                "kernel": y.kernel.name,
                "route": y.kernel.route(y),
                "fallback": y.fallback,
            }
            for y in model.layers
        },
    }


def slack(wanted: int, grain: float) -> float:
    """How many weights a run may end away from its target."""
    return max(1, TOLERANCE * wanted, min(grain, GRAIN * wanted))


def left_out(share: float, model: SparseModel, idle: list[str]) -> str:
    """The warnings that sparsity is that of a small part of the network, or in part of weights that no pass reads."""
    few = f"{share:.1%} of the parameters can be sparse; left dense: {model.why_dense()}" if share < FEW else ""
    never = f"no training pass reached {', '.join(idle)}" if idle else ""
    return "; ".join(filter(None, (few, never)))


def not_counted(calls: Mapping[str, int]) -> str:
    """The warning that FLOPs lack operations, by name; "" where they lack none."""
    found = ", ".join(f"{name} ({count} call{'s' * (count > 1)})" for name, count in calls.items())
    return f"FLOPs lack operations without a formula: {found}" if found else ""
