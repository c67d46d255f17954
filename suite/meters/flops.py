"""FLOPs: what one dense pass costs, booked per parameter, and what the passes of a run add up to.

One multiply-add is 2 FLOPs. Costs come from torch's own registry of formulas, run over the operations that a forward
and a backward pass dispatch; on the `meta` device this needs neither memory nor arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopMeter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside it and books each operation under the parameter whose storage it reads.

    `read[name]`: FLOPs of the operations that read the parameter; `weights[name]`: FLOPs of weight gradients that came
    fused with an input gradient in one operation; both are part of `total`.
    """

    def __init__(self, owners: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        # A bias rides along in addmm, but it is the matrix that the product reads.
        self.owners = {p.untyped_storage()._cdata: name for name, p in (owners or {}).items() if p.dim() > 1}
        self.read: Counter[str] = Counter()
        self.weights: Counter[str] = Counter()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            if func is not torch.ops.prim.device.default:
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self.total += (flops := int(formula(*args, **kwargs, out_val=out)))
        for tensor in args:
            if isinstance(tensor, Tensor) and (owner := self.owners.get(tensor.untyped_storage()._cdata)):
                for_inputs, for_weights = _split(func, args, flops)
                self.read[owner] += for_inputs
                self.weights[owner] += for_weights
                break
        return out


def _split(func: Any, args: Any, flops: int) -> tuple[int, int]:
    """FLOPs of an operation that reads a weight: the product with it, and its gradient where both are one call."""
    if func._overloadpacket is not torch.ops.aten.convolution_backward:
        return flops, 0
    wants_input, wants_weight, _ = args[-1]
    return (0, flops) if not wants_input else (flops // 2, flops - flops // 2) if wants_weight else (flops, 0)


@dataclass(frozen=True)
class PassCost:
    """FLOPs per sample of one dense pass: by parameter `forward`, `inputs`; `rest_*` are products of activations."""

    forward: dict[str, int]
    inputs: dict[str, int]
    rest_forward: int
    rest_backward: int

    @property
    def ahead(self) -> int:
        """Forward of one sample, everything dense."""
        return self.rest_forward + sum(self.forward.values())

    @property
    def dense(self) -> int:
        """Forward and backward of one sample, everything dense."""
        return self.ahead + self.rest_backward + sum(self.forward.values()) + sum(self.inputs.values())


def measure(net: nn.Module, example: Any, shapes: Mapping[str, torch.Size] | None = None) -> PassCost:
    """Count a forward and a backward pass of `net` on one sample of `example` (leading dimension: the batch) on `meta`.

    The weight gradient of a parameter costs what its forward products cost; what the backward pass counts beyond
    input and weight gradients belongs to products of activations. Evaluation mode, so that batch norm takes one sample.
    `shapes` overrides the shapes of parameters that are stored in another form.
    """
    one = torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:1].detach().to("meta"), example)
    shapes = shapes or {}
    meta = {
        n: torch.empty(shapes.get(n, p.shape), dtype=p.dtype, device="meta", requires_grad=p.requires_grad)
        for n, p in net.named_parameters()
    }
    buffers = {n: b.detach().to("meta") for n, b in net.named_buffers()}
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.enable_grad(), FlopMeter(meta) as ahead:
            out = torch.func.functional_call(net, {**meta, **buffers}, (one,))
        leaves = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        with FlopMeter(meta) as back:
            if leaves:
                torch.stack([t.sum() for t in leaves]).sum().backward()
    finally:
        for module, training in modes.items():
            module.training = training
    forward = {n: ahead.read[n] for n in ahead.read}
    trained = sum(f for n, f in forward.items() if meta[n].requires_grad)
    rest = back.total - sum(back.read.values()) - trained
    return PassCost(forward, dict(back.read), ahead.total - sum(forward.values()), rest)


@dataclass(frozen=True)
class Cost:
    """FLOPs per sample of the pass that the present masks ask for.

    `papers` follows the papers' convention (RigL, arXiv 1911.11134, App. H): weighted products alone, the first layer's
    input gradient included: 2 f_S + f_S where the weight gradient is sparse, 2 f_S + f_D where it is dense.
    """

    forward: float
    inputs: float
    weights: float
    papers: float
    dense_gradient: bool

    @property
    def total(self) -> float:
        """Forward, input gradients and weight gradients."""
        return self.forward + self.inputs + self.weights


@dataclass
class FlopBook:
    """What a run has spent, FLOPs; the record's `flops` block. `papers` follows the papers' convention, see `Cost`."""

    forward: int = 0
    inputs: int = 0
    weights: int = 0
    setup: int = 0
    charged: int = 0
    papers: int = 0
    samples: int = 0
    dense_gradient_steps: int = 0
    source: str = "masks"

    @property
    def total(self) -> int:
        """Training FLOPs: all passes, setup and charged work."""
        return self.forward + self.inputs + self.weights + self.setup + self.charged

    def add(self, cost: Cost, samples: int) -> None:
        """Book one pass over `samples`."""
        self.forward += round(cost.forward * samples)
        self.inputs += round(cost.inputs * samples)
        self.weights += round(cost.weights * samples)
        self.papers += round(cost.papers * samples)
        self.samples += samples
        self.dense_gradient_steps += cost.dense_gradient

    def block(self, dense: PassCost, now: Cost, samples: int) -> dict[str, Any]:
        """The record's "flops": the sums, dense training on the run's own `samples`, and inference per sample.

        `samples` is what the task and the run's budget ask for: a method that trains longer, or repeats passes, pays.
        """
        papers = 3 * sum(dense.forward.values()) * samples
        return {
            **asdict(self),
            "total": self.total,
            "dense_total": dense.dense * samples,
            "dense_papers": papers,
            "ratio": self.total / max(1, dense.dense * samples),
            "papers_ratio": self.papers / max(1, papers),
            "inference": now.forward,
            "dense_inference": dense.ahead,
        }

    def state(self) -> dict[str, int | str]:
        """For a checkpoint."""
        return asdict(self)
