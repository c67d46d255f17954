"""The C library's allocator: keep freed memory, so that large activations are not faulted in at every step."""

from __future__ import annotations

import ctypes

# mallopt's parameters, from glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX.
SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 256 << 20, -8: 1}


def tune() -> bool:
    """Set it for the whole process, for good; False where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(name, value) == 1 for name, value in SETTINGS.items()])
