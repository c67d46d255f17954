"""The roofs of this machine: python -m benchmarks.roofs

fp32 multiply-adds from registers, and multiply-adds that load one operand each (the bound of a product with stored
weights) from buffers, one a thread, that fill half of L1, half of L2, and far more than any cache. A roof is the best
of a few samples, not their median: what the machine can do.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import timing
from dstbench.suite.kernels import build

SOURCE = Path(__file__).parent / "native" / "roofs.cpp"
MEMORY = 128 << 20  # bytes
SECONDS, SAMPLES = 0.02, 7


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loops; built anew in each process, by the kernels' compiler and flags; NotBuilt where that fails."""
    if not (compiler := build.compiler()):
        raise build.NotBuilt("the roofs need a C++ compiler: install g++, or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler, *build.FLAGS, str(SOURCE), "-o", target := f"{folder}/roofs.so"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise build.NotBuilt(f"{' '.join(command)} failed:\n{done.stderr}")
        found = ctypes.CDLL(target)
    found.chained.restype, found.seconds.restype = ctypes.c_long, ctypes.c_double
    found.seconds.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int]
    return found


def cache_bytes(level: str, otherwise: int) -> int:
    """Bytes of a core's L1 ("LEVEL1_DCACHE") or L2 ("LEVEL2_CACHE") as the system tells."""
    name = f"SC_{level}_SIZE"
    return (os.sysconf(name) if name in os.sysconf_names else 0) or otherwise


def gflops(size: int, threads: int) -> float:
    """The best GF/s (one multiply-add is 2) from buffers of `size` bytes, a multiple of 2,048; 0: from registers."""
    floats, rounds = size // 4, 1
    while library().seconds(floats, rounds, threads) < SECONDS:
        rounds *= 2
    best = min(library().seconds(floats, rounds, threads) for _ in range(SAMPLES))
    return 2 * (floats or library().chained()) * rounds * threads / best / 1e9


def measure(threads: int) -> dict[str, float]:
    """GF/s by roof: "registers", and with a load each "l1", "l2" and "memory"."""
    l1, l2 = cache_bytes("LEVEL1_DCACHE", 32 << 10), cache_bytes("LEVEL2_CACHE", 512 << 10)
    sizes = {"registers": 0, "l1": l1 // 2, "l2": l2 // 2, "memory": MEMORY}
    return {name: gflops(size // 2048 * 2048, threads) for name, size in sizes.items()}


def lines(found: dict[str, float]) -> list[str]:
    """A line a roof; a multiply-add that loads reads 4 bytes for 2 FLOPs."""
    loads = {name: "" if name == "registers" else f"{2 * value:8.1f} GB/s" for name, value in found.items()}
    return [f"roof {name:10s} {value:8.1f} GF/s {loads[name]}".rstrip() for name, value in found.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = timing.begin(timing.parser(__doc__), arguments)
    report = timing.Report(options)
    found = measure(options.threads)
    for line in lines(found):
        report.say(line)
    report.close(roofs=found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
