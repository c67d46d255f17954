"""Kernels: how a masked weight is stored and read; chosen by the run, never by the method.

Their names and what they do are known here without torch; a kernel's class is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from dstbench.suite.values import near

if TYPE_CHECKING:
    from dstbench.suite.kernels.base import Kernel as Kernel
    from dstbench.suite.kernels.compact import Compact as Compact
    from dstbench.suite.kernels.csr import Csr as Csr
    from dstbench.suite.kernels.masked import Masked as Masked
    from dstbench.suite.kernels.semi_structured import SemiStructured as SemiStructured
    from dstbench.suite.kernels.sparse import Sparse as Sparse
    from dstbench.suite.kernels.sparseprop import SparseProp as SparseProp


class Entry(NamedTuple):
    """A kernel by name: its class, in the module of that name, and the first line of the class's docstring."""

    kind: str
    what: str


KERNELS = {
    "masked": Entry(
        "Masked",
        "Keeps the whole tensor, zero where nothing is stored, at the speed of dense training: simulated sparsity.",
    ),
    "compact": Entry(
        "Compact",
        "The optimiser steps the vector of stored values; what is kept off the support waits in `layer.reserve`.",
    ),
    "sparse": Entry(
        "Sparse",
        "True sparse arithmetic of Linear and Conv2d on the CPU, in C++ compiled on first use; stores as compact does.",
    ),
    "csr": Entry(
        "Csr", "torch's sparse CSR products for every masked Linear, whatever its density; a peer to compare with."
    ),
    "sparseprop": Entry(
        "SparseProp", "The package sparseprop's products for every masked Linear and Conv2d; a peer to compare with."
    ),
    "semi_structured": Entry(
        "SemiStructured",
        "torch's 2:4 forward products of Linear layers on CUDA, under fp16 or bf16; stores as masked does.",
    ),
}
HOMES = {entry.kind: name for name, entry in KERNELS.items()} | {"Kernel": "base"}


def get(name: str) -> Kernel:
    """A new kernel of that name; ValueError for an unknown one, and for one whose package is not installed."""
    known(name)
    return __getattr__(KERNELS[name].kind)()


def known(name: str) -> None:
    """ValueError for a name that no kernel has; loads none."""
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}; {near(name, list(KERNELS))}")


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
