"""Layer: one sparsifiable weight, its two declarations, and how methods read and change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dstbench.suite.kernels.base import Kernel

Mask = Tensor | None
Reduction = Callable[[Tensor], Any]


class Layer:
    """One sparsifiable weight; a pass reads `forward_mask` of it and computes `grad_mask` of its gradient.

    What is stored is the union of both masks (`None`: all). Stored entries keep value and optimiser state when the
    union changes, new ones start at zero, dropped ones are lost, except the tensors that `keeps` names: those are held
    in `reserve`, bit for bit, while they are not stored.
    """

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        positions: float,
        kernel: Kernel,
        key: str = "",
        fallback: str | None = None,
        heads: tuple[int, int, int] | None = None,
    ) -> None:
        self.name = name
        self.key = key or f"{name}.weight"
        self.parameter = parameter
        self.shape = parameter.shape
        self.positions = positions
        self.kernel = kernel
        self.fallback = fallback  # why it is not the run's kernel, or None
        self.heads = heads  # the weight's shape with its attention heads as the middle axis, or None
        self.keeps: Mapping[str, str] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.reserve: dict[str, Tensor] = {}
        self.revision = 0
        self._forward: Mask = None
        self._grad: Mask = None
        self._dense_grad: Tensor | None = None
        self._versions: dict[str, int] = {}
        self.streams = False  # whether backward passes may hand over dense gradients, set by the run
        self.streamed: Any = None
        self._reduce: Reduction | None = None
        self._uses = 0  # of the weight in the pass, whose gradients have not come yet
        self.used = 0  # by calls of its modules in the forward pass: samples, positions and all
        self.learned = 0  # by calls under grad, recomputation in the backward pass included
        self.met = False  # whether a training pass of the run has reached it
        self._stale = False
        self.plain = False  # all is read, computed and stored as it is: nothing to do around a pass
        self._nnz: dict[str, int] = {}
        self.kernel.adopt(self, {"weight": parameter.detach()})
        self._settled()

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {tuple(self.shape)}, density={self.density:.4g}, kernel={self.kernel.name!r})"

    @property
    def numel(self) -> int:
        """The number of weights, read or not."""
        return self.shape.numel()

    # ---- the two declarations ------------------------------------------------------------------------------------

    @property
    def forward_mask(self) -> Mask:
        """Bool, shape of the weight: the weights a pass reads (`None`: all); assign a new mask, do not edit it."""
        return self._forward

    @forward_mask.setter
    def forward_mask(self, mask: Mask) -> None:
        self._forward = self._declare("forward", mask)

    @property
    def grad_mask(self) -> Mask:
        """Bool, shape of the weight: the entries of its gradient a pass computes (`None`: all)."""
        return self._grad

    @grad_mask.setter
    def grad_mask(self, mask: Mask) -> None:
        self._reduce = None
        self._grad = self._declare("grad", mask)

    def stream(self, reduce: Reduction) -> None:
        """Declare that passes compute the whole gradient (`grad_mask` None), and what is wanted of it: `reduce` of it.

        Where the run can, `reduce` is called inside backward, as soon as the gradient is complete; `streamed` is then
        what it returned, and values, state and `grad` are those of `forward_mask` alone. Else `streamed` is None and
        `grad` whole: under `masked`, and where the recipe scales, sums or clips gradients first, or compiles.
        """
        if self._grad is not None or self._reduce is None:
            self.grad_mask = None
        self._reduce = reduce

    @property
    def streaming(self) -> bool:
        """Whether passes hand their dense gradient over inside backward."""
        return self.streams and self._reduce is not None

    def _declare(self, which: str, mask: Mask) -> Mask:
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != self.shape:
                raise ValueError(
                    f"layer {self.name!r}: {which}_mask is {mask.dtype} of shape {tuple(mask.shape)}; "
                    f"give a torch.bool tensor of shape {tuple(self.shape)}, or None for all entries"
                )
            mask = mask.to(self.parameter.device)
        self._nnz.pop(which, None)
        self._versions[which] = _version(mask)
        self._stale, self.plain = True, False
        self.revision += 1
        return mask

    def intact(self) -> None:
        """RuntimeError if a mask was edited in place since it was declared: counts and storage would be stale."""
        for which, mask in (("forward", self._forward), ("grad", self._grad)):
            if mask is not None and _version(mask) != self._versions[which]:
                raise RuntimeError(
                    f"layer {self.name!r}: {which}_mask was edited in place after it was declared; build the new mask "
                    f"in a tensor of its own (a view shares its tensor's edits) and assign it: layer.{which}_mask = new"
                )

    def nnz(self, which: str = "forward") -> int:
        """How many weights `forward_mask` ("forward") or gradient entries `grad_mask` ("grad") declares."""
        if which not in self._nnz:
            mask = self._forward if which == "forward" else self._grad
            self._nnz[which] = self.numel if mask is None else int(mask.count_nonzero())
        return self._nnz[which]

    @property
    def density(self) -> float:
        """The share of the weights that a pass reads."""
        return self.nnz("forward") / self.numel

    @property
    def stored(self) -> Mask:
        """The union of both masks: where a weight has a value and optimiser state (`None`: everywhere)."""
        if self.streaming:
            return self._forward
        if self._forward is None or self._grad is None:
            return None
        return self._forward if self._forward is self._grad else self._forward | self._grad

    # ---- values --------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """Dense, detached, read-only view, zero where nothing is stored; it may follow the weight: clone to keep."""
        self.pack()
        return self.kernel.dense(self, self.parameter.detach(), self.reserve.get("weight"))

    @property
    def grad(self) -> Tensor:
        """The weight gradient of the last pass, dense; exactly zero outside the `grad_mask` of that pass."""
        if self._dense_grad is not None:
            return self._dense_grad
        if self.parameter.grad is None:
            raise RuntimeError(f"layer {self.name!r} has no gradient: read it in step(t), after a pass that reached it")
        return self.kernel.dense(self, self.parameter.grad)

    @torch.no_grad()
    def add_grad(self, term: Tensor) -> None:
        """Add a dense tensor, such as a penalty's gradient, to the gradient of the last pass, inside its grad_mask."""
        if self.parameter.grad is None:
            raise RuntimeError(f"layer {self.name!r} has no gradient: add to it in step(t), before masks change")
        inside = term if self._grad is None else term.masked_fill(~self._grad, 0)
        self.parameter.grad.add_(self.kernel.store(self, inside))

    @property
    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors for this weight, name -> dense; zero where nothing is stored or kept."""
        self.pack()
        return {k: self.kernel.dense(self, v, self.reserve.get(k)) for k, v in self._slots().items()}

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Set the values; entries that are not stored are ignored, unless the method keeps `weight`."""
        self.pack()
        if "weight" in self.reserve and self.stored is not None:
            self.reserve["weight"] = weight.masked_fill(self.stored, 0)
        self.parameter.copy_(self.kernel.store(self, weight))
        self.kernel.project(self)

    @torch.no_grad()
    def activate(self, mask: Tensor, grown: float | Tensor = 0.0) -> None:
        """Make `mask` the support of both passes: kept entries keep value and state, grown ones start at `grown`."""
        mask = mask.to(self.parameter.device)
        new = None if self._forward is None else mask & ~self._forward
        if new is not None:
            self.forget(new)
        self.forward_mask = self.grad_mask = mask
        self.pack()
        if new is not None and (isinstance(grown, Tensor) or grown != 0):
            self.assign(torch.where(new, grown, self.weight))

    @torch.no_grad()
    def forget(self, where: Tensor) -> None:
        """Zero the values and all optimiser state, kept state included, at the entries of the bool mask `where`."""
        self.pack()
        for held in self.reserve.values():
            held.masked_fill_(where, 0)
        at = self.kernel.store(self, where)
        for tensor in (self.parameter, *self._slots().values()):
            tensor.masked_fill_(at, 0)

    # ---- the suite's side ----------------------------------------------------------------------------------------

    def _slots(self) -> dict[str, Tensor]:
        """The optimiser's tensors as stored."""
        state = self.optimizer.state.get(self.parameter, {}) if self.optimizer else {}
        return {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == self.parameter.shape and v.dim()}

    def pack(self) -> None:
        """Make the storage follow the masks: outside their union values and state vanish, except what `keeps` names."""
        self.intact()
        if self._stale:
            self._stale = False
            if self.parameter.grad is not None and self._dense_grad is None:
                self._dense_grad = self.kernel.dense(self, self.parameter.grad)
            self.kernel.pack(self)
            self._settled()

    def _settled(self) -> None:
        self.plain = self._forward is None and self._grad is None and self.parameter.shape == self.shape

    def tensors(self) -> dict[str, Tensor]:
        """Value and optimiser state, dense, with what is kept off the support; "weight" is the value."""
        return {"weight": self.weight, **self.state}

    @torch.no_grad()
    def shrink(self, dim: int, keep: Tensor) -> None:
        """Keep the slices `keep` of dimension `dim`: values, state and masks; `SparseModel.shrink` is the way in."""
        tensors = {k: v.index_select(dim, keep) for k, v in self.tensors().items()}
        masks = [m if m is None else m.index_select(dim, keep) for m in (self._forward, self._grad)]
        self.shape, self.heads = tensors["weight"].shape, None
        self.parameter.grad = self._dense_grad = None
        self.forward_mask, self.grad_mask = masks
        self._stale = False
        self.kernel.adopt(self, tensors)
        self._settled()

    def project(self) -> None:
        """Restore the invariant after an optimiser step: values and state are zero where nothing is stored."""
        self.pack()
        if not self.plain:
            self.kernel.project(self)

    def zero_grad(self) -> None:
        """Drop the gradient of the last pass, and what was made of it."""
        self._dense_grad = self.parameter.grad = self.streamed = None
        self._uses = self.used = self.learned = 0

    def reached(self, usual: tuple[int, int], samples: int) -> tuple[float, float]:
        """How much of its products the last pass computed, forward and backward.

        Of the `usual` uses in the forward pass and under grad; of one a sample, where none are known. Where calls
        cannot tell, all or nothing: a weight that has no gradient was not reached.
        """
        got = self.parameter.grad is not None or self._dense_grad is not None
        self.met |= got
        if not self.used or (not usual[0] and self.positions):
            return float(got), float(got)
        ahead = self.used / (usual[0] or samples)
        return ahead, got * (self.learned / usual[1] if usual[1] else ahead)

    @torch.no_grad()
    def close(self) -> None:
        """After backward: a Layer that the pass did not reach has a zero gradient; hand over what streamed in."""
        if self.parameter.grad is None and self._dense_grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
            if self.streaming and self.streamed is None:
                self._dense_grad = self.parameter.new_zeros(self.shape)
        self.hand_over()

    def reader(self) -> Reduction | None:
        """For a kernel, at each use of the weight in a pass: where the dense gradient of this use goes, if any."""
        if not self.streaming or not torch.is_grad_enabled():
            return None
        self._uses += 1
        return self._take

    @torch.no_grad()
    def _take(self, grad: Tensor) -> None:
        """The dense gradient of one use; with that of the last use, all is handed over."""
        self._uses -= 1
        self._dense_grad = grad if self._dense_grad is None else self._dense_grad + grad
        if not self._uses:
            self.hand_over()

    def hand_over(self) -> None:
        """Reduce the dense gradient that streamed in and drop it; after backward, for uses without a gradient."""
        if self.streaming and self._dense_grad is not None:
            whole, self._dense_grad = self._dense_grad, None
            assert self._reduce is not None
            self.streamed = self._reduce(whole)

    def snapshot(self) -> dict[str, object]:
        """What a checkpoint holds: values as stored, masks, kept tensors."""
        self.pack()
        return {
            "values": self.parameter.detach().clone(),
            "forward": self._forward,
            "grad": self._grad,
            "streams": self._reduce is not None,
            "met": self.met,
            "reserve": {k: v.clone() for k, v in self.reserve.items()},
        }

    def restore(self, saved: Mapping[str, object]) -> None:
        """Take back a `snapshot`, before the optimiser's state is loaded."""
        self.forward_mask, self.grad_mask = saved["forward"], saved["grad"]  # type: ignore[assignment]
        if saved["streams"]:
            self.stream(lambda grad: None)  # until `begin` of the next step says what it wants
        self.met = bool(saved.get("met", True))
        self.pack()
        self.reserve = {k: v.to(self.parameter.device) for k, v in saved["reserve"].items()}  # type: ignore[attr-defined]
        with torch.no_grad():
            self.parameter.copy_(saved["values"])  # type: ignore[arg-type]


def _version(mask: Mask) -> int:
    """How often a mask was edited in place, as torch counts it; it does not in inference mode."""
    return 0 if mask is None or mask.is_inference() else mask._version


def layer_name(parameter: str) -> str:
    """A Layer's name: the parameter's without a closing ".weight"."""
    return parameter.removesuffix(".weight")
