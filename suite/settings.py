"""Settings: what a process has set for all that runs in it, and setting it back after a plugin's file was executed."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

CUDNN = ("benchmark", "deterministic", "allow_tf32")
ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_paths: list[str] = []  # what plugins have added to sys.path in this process
_variables: dict[str, str | None] = {}  # the environment's variables that plugins have changed, as they were


@contextmanager
def kept() -> Iterator[None]:
    """Set back what foreign code sets meanwhile: signal handlers, working directory, chance, torch's settings.

    What it adds to the search path and to the environment it may need later: that stays in this process, and is kept
    from others (see `untouched`). So do filters of warnings. What it does to modules cannot be taken back.
    """
    path, variables, streams = list(sys.path), dict(os.environ), (sys.stdout, sys.stderr)
    taken = [restore for take in (_directory, _signals, _process, _numbers, _torch) for restore in take()]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        _paths.extend(entry for entry in sys.path if entry not in path)
        for name in variables.keys() | os.environ.keys():
            if variables.get(name) != os.environ.get(name):
                _variables.setdefault(name, variables.get(name))
        for restore in taken:
            with suppress(Exception):  # the folder may be gone, a handler may have been C's
                restore()


@contextmanager
def untouched() -> Iterator[None]:
    """Search path and environment as they would be without plugins, for processes that are started meanwhile."""
    path, variables = list(sys.path), dict(os.environ)
    sys.path[:] = [entry for entry in path if entry not in _paths]
    for name, value in _variables.items():
        _set(name, value)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in _variables:
            _set(name, variables.get(name))


def now() -> dict[str, Any]:
    """What torch computes with in this process, for the record."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _directory() -> Iterator[Callable[[], object]]:
    with suppress(OSError):  # it may have been removed
        here = os.getcwd()
        yield lambda: os.chdir(here)


def _signals() -> Iterator[Callable[[], object]]:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):
            handler = signal.getsignal(number)
            if handler is not None:  # set by C
                yield partial(_back, partial(signal.getsignal, number), partial(signal.signal, number), handler)


def _process() -> Iterator[Callable[[], object]]:
    mask = os.umask(0o77)
    os.umask(mask)
    yield partial(os.umask, mask)
    yield gc.enable if gc.isenabled() else gc.disable
    yield partial(sys.setrecursionlimit, sys.getrecursionlimit())


def _numbers() -> Iterator[Callable[[], object]]:
    import numpy

    yield partial(random.setstate, random.getstate())
    yield partial(numpy.random.set_state, numpy.random.get_state())
    yield partial(lambda errors: numpy.seterr(**errors), numpy.geterr())


def _torch() -> Iterator[Callable[[], object]]:
    import torch

    backends, cuda = torch.backends, torch.backends.cuda
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for get, put in (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),  # also whether it warns alone
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        *((partial(torch.is_autocast_enabled, k), partial(torch.set_autocast_enabled, k)) for k in kinds),
        *((partial(torch.get_autocast_dtype, k), partial(torch.set_autocast_dtype, k)) for k in kinds),
        *((getattr(cuda, f"{n}_sdp_enabled"), getattr(cuda, f"enable_{n}_sdp")) for n in ATTENTION),
        *((partial(getattr, backends.cudnn, n), partial(setattr, backends.cudnn, n)) for n in CUDNN),
        (partial(getattr, backends.mkldnn, "enabled"), partial(setattr, backends.mkldnn, "enabled")),
    ):
        yield partial(_back, get, put, get())
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    yield partial(torch.set_flush_denormal, False)  # torch's default: nobody can ask for what is set


def _back(get: Callable[[], Any], put: Callable[[Any], object], value: Any) -> None:
    if get() != value:
        put(value)
