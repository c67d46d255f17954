"""Memory: bytes that training holds alive, the peaks of the process and the device, and the size of the model."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel

PROC = Path("/proc/self")
PEAKS = ("training_state", "peak_over_start", "peak_resident", "cuda_allocated", "cuda_reserved")


def training_state(
    model: SparseModel, optimizer: torch.optim.Optimizer | None, memory: Mapping[str, Any] | None = None
) -> int:
    """Bytes of parameters, gradients, optimiser state, masks and index plans alive now, each storage counted once.

    `memory` is the method's own: its tensors count as well.
    """
    seen: dict[int, int] = {}
    held = (value for value in (memory or {}).values() if torch.is_tensor(value))
    for tensor in (*_tensors(model, optimizer), *held):
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
    return sum(seen.values()) + sum(layer.kernel.index_bytes(layer) for layer in model.layers)


def _tensors(model: SparseModel, optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    parameters = [*model.net.parameters(), *(layer.parameter for layer in model.layers)]
    if optimizer is not None:
        # A reparametrised method steps raw tensors that are no parameter of the network.
        parameters += [p for group in optimizer.param_groups for p in group["params"]]
        yield from (leaf for leaf in torch.utils._pytree.tree_leaves(dict(optimizer.state)) if torch.is_tensor(leaf))
    yield from parameters
    yield from (p.grad for p in parameters if p.grad is not None)
    for layer in model.layers:
        yield from layer.reserve.values()
        yield from (leaf for leaf in torch.utils._pytree.tree_leaves(layer.streamed) if torch.is_tensor(leaf))
        if layer._dense_grad is not None:
            yield layer._dense_grad


def model_bytes(model: SparseModel) -> tuple[int, int]:
    """Bytes of the model (dense, sparse): sparse holds of each masked Layer the values read and the smaller index.

    The index is CSR with 32-bit integers or a bitmap; other parameters and all buffers are dense in both.
    """
    own = {layer.parameter for layer in model.layers}
    rest = sum(_bytes(t) for t in [*model.net.parameters(), *model.net.buffers()] if t not in own)
    dense = sparse = rest
    for layer in model.layers:
        size, nnz = layer.parameter.element_size(), layer.nnz("forward")
        index = min(4 * (nnz + layer.shape[0] + 1), -(-layer.numel // 8))
        dense += layer.numel * size
        sparse += layer.numel * size if layer.forward_mask is None else nnz * size + index
    return dense, sparse


class MemoryMeter:
    """Peaks of one run from `start` to `block`; the kernel keeps the peak of resident memory, so nothing samples."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.peaks: dict[str, int | None] = dict.fromkeys(PEAKS)
        self.first: int | None = None
        self.history: int | None = None
        self.model: SparseModel | None = None

    def start(self) -> None:
        """Forget earlier peaks: of the process (VmHWM on Linux) and of the CUDA allocator."""
        self.history = None if reset_peak() else max_resident()
        self.first = psutil.Process().memory_info().rss
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def observe(
        self, model: SparseModel, optimizer: torch.optim.Optimizer | None, memory: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the maximum of `training_state`; call it after a backward pass, when gradients are alive."""
        self.model = model
        self._raise("training_state", training_state(model, optimizer, memory))

    def _raise(self, name: str, value: int | None) -> None:
        if value is not None:
            self.peaks[name] = max(value, self.peaks[name] or 0)

    def _read(self) -> None:
        if self.first is None:
            raise RuntimeError("the memory meter is not running; call start() before training")
        peak = max_resident() if self.history is not None else peak_resident()
        self._raise("peak_resident", peak)
        # Without a reset the system's peak is that of training only if training moved it.
        if self.history is None or peak > self.history:
            self._raise("peak_over_start", max(0, peak - self.first))
        if self.device.type == "cuda":
            self._raise("cuda_allocated", torch.cuda.max_memory_allocated(self.device))
            self._raise("cuda_reserved", torch.cuda.max_memory_reserved(self.device))

    def state(self) -> dict[str, int | None]:
        """Plain numbers for a checkpoint: the peaks so far, bytes."""
        self._read()
        return dict(self.peaks)

    def load(self, saved: Mapping[str, int | None]) -> None:
        """Take in the peaks of earlier sittings; the record shows the highest."""
        for name, value in saved.items():
            self._raise(name, value)

    def block(self) -> dict[str, Any]:
        """The record's "memory", bytes; None where the system could not tell; the model is the one last observed."""
        if self.model is None:
            raise RuntimeError("the memory meter has seen no model; call observe() at least once after a backward pass")
        dense, sparse = model_bytes(self.model)
        return {**self.state(), "model_dense": dense, "model_sparse": sparse, "start_method": start_method()}


def reset_peak(proc: Path = PROC) -> bool:
    """Set the process's peak of resident memory (VmHWM) to what is resident now; False where that is impossible."""
    try:
        (proc / "clear_refs").write_text("5")
        return bool(peak_resident(proc))
    except OSError:
        return False


def peak_resident(proc: Path = PROC) -> int:
    """Peak resident bytes of this process since `reset_peak`; OSError where the system has no VmHWM."""
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc / 'status'} has no line VmHWM")


def max_resident() -> int:
    """Peak resident bytes of this process since it began; macOS counts bytes, other systems KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start_method() -> str:
    """How this process began: "spawn", "forkserver", "fork" or "main"; peaks compare only within one of them."""
    return getattr(multiprocessing.current_process(), "_start_method", None) or "main"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
