"""Kernels: how a masked weight is stored and read; chosen by the run, never by the method."""

from __future__ import annotations

from dstbench.suite.kernels.base import Kernel
from dstbench.suite.kernels.compact import Compact
from dstbench.suite.kernels.csr import Csr
from dstbench.suite.kernels.masked import Masked
from dstbench.suite.kernels.semi_structured import SemiStructured
from dstbench.suite.kernels.sparse import Sparse
from dstbench.suite.kernels.sparseprop import SparseProp

KERNELS: dict[str, type[Kernel]] = {
    kind.name: kind for kind in (Masked, Compact, Sparse, Csr, SparseProp, SemiStructured)
}


def get(name: str) -> Kernel:
    """A new kernel of that name; ValueError names the choices."""
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}; choose one of {', '.join(KERNELS)}")
    return KERNELS[name]()
