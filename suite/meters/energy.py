"""Energy: joules by component, each reading with the source it comes from; sources are never added to one another.

RAPL and NVML measure a whole package or device, so their readings belong to a run only when it ran alone (`shared`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    Device = torch.device | str

POWERCAP = Path("/sys/class/powercap")
# Watts of one busy hardware thread. The default of codecarbon (DEFAULT_POWER_PER_CORE in codecarbon/core/cpu.py) for a
# processor whose power is unknown; a known one is better served by its design power over its hardware threads.
WATTS_PER_CORE = 4.0
# fp32 multiply 3.7 pJ + add 0.9 pJ; DRAM 640 pJ per 32-bit word, the low end of the paper's 1.3-2.6 nJ per 64 bits.
JOULES_PER_MAC = 4.6e-12
JOULES_PER_BYTE = 160e-12
SHORT = 5.0  # seconds under which an NVML reading is marked


@dataclass(frozen=True)
class Reading:
    """One entry of the record's "energy": gross joules (None: not readable), idle watts apart, never subtracted."""

    component: str
    joules: float | None
    source: str
    scope: str
    idle_watts: float | None = None
    shared: bool = False
    note: str = ""


class EnergyMeter(Protocol):
    """Measures one component from `start` to `stop`; `read` is the reading so far, for a checkpoint.

    `available` says why the meter cannot measure here and what would mend it, or None. A counter that fails after the
    start gives None joules and the reason in the note.
    """

    component: str
    source: str

    def available(self) -> str | None: ...
    def start(self) -> None: ...
    def read(self) -> Reading: ...
    def stop(self) -> Reading: ...


class Counter:
    """What the meters share: energy is the difference of a counter that only grows (`total`, joules)."""

    component, source, scope = "", "", ""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.idle_watts: float | None = None
        self.first: float | None = None
        self.began = 0.0

    def total(self) -> float:
        """Joules on the counter; OSError, ValueError or RuntimeError if it cannot be read."""
        raise NotImplementedError

    def available(self) -> str | None:
        try:
            self.total()
        except (OSError, ValueError, RuntimeError) as error:
            return str(error)
        return None

    def start(self) -> None:
        self.began = time.monotonic()
        self.first = self.total()

    def read(self) -> Reading:
        if self.first is None:
            raise RuntimeError(f"the {self.source} meter of {self.component} is not running; call start() first")
        joules, note = None, ""
        try:
            joules, note = self.total() - self.first, self.note()
        except (OSError, ValueError, RuntimeError) as error:
            note = f"lost during the run: {error}"
        return Reading(self.component, joules, self.source, self.scope, self.idle_watts, self.shared, note)

    def stop(self) -> Reading:
        reading = self.read()
        self.first = None
        return reading

    def note(self) -> str:
        """What a reader of the number has to know."""
        return ""


class Rapl(Counter):
    """Package or DRAM energy of the whole machine from Linux powercap, all sockets summed; counter wraps are undone.

    The counter wraps at max_energy_range_uj, after minutes on a busy server, so a thread looks every `poll` seconds.
    """

    source, scope = "measured:rapl", "machine"

    def __init__(self, root: Path = POWERCAP, component: str = "cpu_package", shared: bool = False, poll: float = 30.0):
        if component not in ("cpu_package", "dram"):
            raise ValueError(f"RAPL component {component!r} is unknown; choose cpu_package or dram")
        super().__init__(shared)
        self.root, self.component, self.poll = Path(root), component, poll
        self._last: dict[Path, int] = {}
        self._joules = 0.0
        self._lock: AbstractContextManager[Any] = nullcontext()

    def zones(self) -> list[Path]:
        """The powercap zones that are summed; ValueError says which are missing."""
        if not self.root.is_dir():
            raise ValueError(f"no folder {self.root}: the kernel offers no RAPL (a virtual machine, or not Linux)")
        # intel-rapl-mmio shows the same package a second time, psys holds it; both would count it twice.
        wanted = re.compile(r"package-.*" if self.component == "cpu_package" else "dram")
        zones = [z for z in sorted(self.root.glob("intel-rapl:*")) if wanted.fullmatch(_text(z / "name"))]
        if not zones:
            raise ValueError(f"no zone of kind {self.component} under {self.root}: the processor does not report it")
        return zones

    def total(self) -> float:
        with self._lock:
            for zone in self.zones():
                now = int(_text(zone / "energy_uj"))
                before = self._last.get(zone, now)
                wrapped = int(_text(zone / "max_energy_range_uj")) if now < before else 0
                self._joules += (now - before + wrapped) * 1e-6
                self._last[zone] = now
            return self._joules

    def start(self) -> None:
        super().start()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), daemon=True).start()

    def stop(self) -> Reading:
        reading = super().stop()
        self._stopped.set()
        return reading

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(self.poll):
            self.available()


class Nvml(Counter):
    """Energy of one NVIDIA GPU (Volta or later) through nvidia-ml-py; `device` is NVML's index or the GPU's UUID.

    CUDA counts otherwise as soon as CUDA_VISIBLE_DEVICES is set. `synchronise` waits for the GPU before a reading.
    """

    component, source, scope = "gpu", "measured:nvml", "device"

    def __init__(self, device: int | str = 0, shared: bool = False, synchronise: Callable[[], None] | None = None):
        super().__init__(shared)
        self.device, self.synchronise = device, synchronise

    def total(self) -> float:
        try:
            import pynvml
        except ImportError as error:
            raise ValueError(f"no NVML library ({error}); install nvidia-ml-py") from None
        if self.synchronise is not None:
            self.synchronise()
        try:
            pynvml.nvmlInit()
            try:
                by_uuid = isinstance(self.device, str)
                find = pynvml.nvmlDeviceGetHandleByUUID if by_uuid else pynvml.nvmlDeviceGetHandleByIndex
                return pynvml.nvmlDeviceGetTotalEnergyConsumption(find(self.device)) * 1e-3
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise ValueError(f"NVML gives no energy of GPU {self.device}: {error}") from None

    def note(self) -> str:
        short = f"shorter than {SHORT:g} s: the counter moves every 0.1 s and samples power in part (arXiv 2312.02741)"
        return short if time.monotonic() - self.began < SHORT else ""


class CpuTime(Counter):
    """User and system seconds of this process times `watts_per_core`: an estimate, where nothing can be measured."""

    component, source, scope = "process", "estimated:cpu-time", "process"

    def __init__(self, watts_per_core: float = WATTS_PER_CORE) -> None:
        if not watts_per_core > 0:
            raise ValueError(f"watts_per_core is {watts_per_core}; give the watts of one busy core, more than 0")
        super().__init__()
        self.watts_per_core = watts_per_core

    def total(self) -> float:
        return time.process_time() * self.watts_per_core

    def note(self) -> str:
        return f"CPU time x {self.watts_per_core:g} W per core: it cannot rank methods differently from CPU time"


def modelled_ops(flops: float, bytes: float) -> Reading:
    """Joules of an arithmetic model: fp32 multiply-adds (2 FLOPs each) and bytes moved from and to DRAM.

    Reference: Horowitz, Computing's energy problem, ISSCC 2014, figure 1.1.9 (45 nm).
    """
    note = "4.6 pJ a multiply-add (fp32), 160 pJ a byte of DRAM: 45 nm figures of Horowitz, ISSCC 2014"
    return Reading("ops", flops / 2 * JOULES_PER_MAC + bytes * JOULES_PER_BYTE, "modelled:ops", "process", note=note)


def meters(
    device: Device, shared: bool, watts_per_core: float = WATTS_PER_CORE, idle: float = 0.5, root: Path = POWERCAP
) -> list[Counter]:
    """The meters that work here, not yet started; idle watts are taken over a window of `idle` seconds (0: off)."""
    found = [m for m in _candidates(device, shared, watts_per_core, root) if m.available() is None]
    if not shared:
        baseline([m for m in found if m.scope != "process"], idle)
    return found


def unavailable(device: Device = "cpu", root: Path = POWERCAP) -> list[str]:
    """One line for each meter that does not work here, with the reason."""
    gpu = [] if str(device).startswith("cuda") else [Nvml(0)]
    candidates = [*_candidates(device, False, WATTS_PER_CORE, root), *gpu]
    return [f"{m.source} ({m.component}): {reason}" for m in candidates if (reason := m.available())]


def baseline(found: Sequence[Counter], seconds: float) -> None:
    """Set the idle watts of counters over one window in which this process sleeps; nothing for 0 seconds."""
    if seconds <= 0 or not found:
        return
    before, began = [m.total() for m in found], time.monotonic()
    time.sleep(seconds)
    for meter, joules in zip(found, before, strict=True):
        meter.idle_watts = (meter.total() - joules) / (time.monotonic() - began)


def state(found: Iterable[EnergyMeter], earlier: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Plain entries for a checkpoint: what earlier sittings and this one have used so far."""
    return [asdict(r) for r in add([m.read() for m in found], earlier)]


def add(readings: Iterable[Reading], earlier: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """Readings of this sitting plus the `state` of earlier ones, by component and source; gaps go into the note."""
    now = {(r.component, r.source): r for r in readings}
    if not earlier:
        return list(now.values())
    before = {(r["component"], r["source"]): Reading(**r) for r in earlier}
    return [_sum(before.get(key), now.get(key)) for key in {**before, **now}]


def _sum(before: Reading | None, now: Reading | None) -> Reading:
    parts = [r for r in (before, now) if r is not None]
    notes = [n for r in parts for n in r.note.split("; ") if n]
    if len(parts) < 2:
        notes.append("covers a part of the run only: another sitting lacked this source")
    known = [r.joules for r in parts if r.joules is not None]
    return replace(
        parts[-1],
        joules=sum(known) if len(known) == len(parts) else None,
        idle_watts=next((r.idle_watts for r in reversed(parts) if r.idle_watts is not None), None),
        shared=any(r.shared for r in parts),
        note="; ".join(dict.fromkeys(notes)),
    )


def _candidates(device: Device, shared: bool, watts: float, root: Path) -> list[Counter]:
    rapl = [Rapl(root, part, shared) for part in ("cpu_package", "dram")]
    gpu = [_gpu(str(device), shared)] if str(device).startswith("cuda") else []
    return [*rapl, *gpu, CpuTime(watts)]


def _gpu(device: str, shared: bool) -> Nvml:
    import torch

    from dstbench.suite.meters.clock import synchroniser

    if not torch.cuda.is_available():
        return Nvml(0, shared)  # only to say why there is none
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    return Nvml(f"GPU-{uuid}", shared, synchroniser(device))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        raise ValueError(f"no permission: only root reads {path} since Linux 5.10; try sudo chmod a+r on it") from None
