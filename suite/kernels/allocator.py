"""Allocator: glibc's malloc told to keep freed memory, so that the next step does not fault its pages in again."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

# Numbers of malloc.h. A tensor above 32 MB is else mapped, unmapped and zeroed page by page at every step.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 * 2**20, M_ARENA_MAX: 1}
CHOICES = ("system", "tuned")


def tune() -> bool:
    """Set malloc for the whole process, for good; False, with nothing changed, where `unavailable` says why."""
    return _tuned()


def unavailable() -> str | None:
    """Why malloc cannot be tuned here, or None."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        libc = None
    if libc is None or not hasattr(_libc(), "mallopt"):
        return "the allocator can be tuned where glibc's malloc is used, on Linux alone: take the allocator system"
    other = os.environ.get("LD_PRELOAD", "")
    if "malloc" in other:
        return f"LD_PRELOAD is {other!r}, another malloc than glibc's: unset it, or take the allocator system"
    return None


def _libc() -> Any:
    return ctypes.CDLL(None)


@functools.cache
def _tuned() -> bool:
    if unavailable():
        return False
    mallopt = _libc().mallopt
    # mallopt returns 1 for what it has set.
    return all([mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()])
