"""Peer kernel: torch's own sparse CSR products, for Linear layers."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite.kernels.base import Kernel
from dstbench.suite.kernels.plan import Plan, first_order
from dstbench.suite.kernels.sparse import Sparse, unsuited
from dstbench.suite.layer import Layer, Mask


class CsrPattern:
    """CSR of a bool mask (outputs, inputs), and of its transpose; `order`: the transpose's entries in the mask's."""

    def __init__(self, mask: Tensor) -> None:
        rows, columns = mask.nonzero(as_tuple=True)
        self.shape, self.entries = mask.shape, len(rows)
        self.order = columns.argsort(stable=True)
        self.crow, self.col = _pointers(rows, mask.shape[0]), columns.int()
        self.turned_crow, self.turned_col = _pointers(columns, mask.shape[1]), rows[self.order].int()

    @property
    def bytes(self) -> int:
        arrays = (self.crow, self.col, self.turned_crow, self.turned_col, self.order)
        return sum(array.numel() * array.element_size() for array in arrays)

    def matrix(self, values: Tensor) -> Tensor:
        """The sparse matrix with these values, (outputs, inputs)."""
        return torch.sparse_csr_tensor(self.crow, self.col, values, self.shape, check_invariants=False)

    def transpose(self, values: Tensor) -> Tensor:
        """Its transpose, (inputs, outputs)."""
        shape = self.shape[::-1]
        return torch.sparse_csr_tensor(
            self.turned_crow, self.turned_col, values[self.order], shape, check_invariants=False
        )


def _pointers(places: Tensor, size: int) -> Tensor:
    return torch.cat([places.new_zeros(1), places.bincount(minlength=size).cumsum(0)]).int()


class CsrLinear(torch.autograd.Function):
    """x (.., inputs), the stored values, bias (outputs,) or None -> (.., outputs)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None, plan: Plan[CsrPattern]) -> Tensor:  # type: ignore[override]
        values, flat = plan.values(stored), x.reshape(-1, x.shape[-1])
        weight = plan.forward.matrix(values)
        y = weight @ flat.t() if bias is None else torch.addmm(bias[:, None], weight, flat.t())
        ctx.save_for_backward(flat, values)
        ctx.plan, ctx.shape = plan, x.shape
        return y.t().reshape(*x.shape[:-1], len(y))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        first_order()
        x, values = ctx.saved_tensors
        plan = ctx.plan
        columns = grad.reshape(-1, grad.shape[-1]).t()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = (plan.forward.transpose(values) @ columns).t().reshape(ctx.shape)
        if ctx.needs_input_grad[1] and plan.grad is None:
            dw = plan.select(columns @ x)
        elif ctx.needs_input_grad[1]:
            where = plan.grad.matrix(x.new_zeros(plan.grad.entries))
            sampled = torch.sparse.sampled_addmm(where, columns.contiguous(), x.contiguous(), beta=0.0)
            dw = plan.spread(sampled.values())
        return dx, dw, columns.sum(1) if ctx.needs_input_grad[2] else None, None


class Csr(Sparse):
    """torch's sparse CSR products for every masked Linear, whatever its density; a peer to compare with."""

    name = "csr"
    network = Kernel.network  # nothing is fused: all but its own products are torch's

    def unsupported(self, module: nn.Module, attribute: str) -> str | None:
        return unsuited(module, attribute) or (
            "no CSR product for a Conv2d" if isinstance(module, nn.Conv2d) else _lacking()
        )

    def reads(self, layer: Layer) -> Mask:
        return layer.forward_mask

    def route(self, layer: Layer) -> str:
        return "dense" if self.reads(layer) is None else "sparse"

    def linear(self, module: nn.Module, layer: Layer, x: Tensor) -> Tensor:
        return CsrLinear.apply(x, layer.parameter, module.bias, self._plan(layer, CsrPattern))


@functools.cache
def _lacking() -> str | None:
    """Why this torch has no CSR products, or None; some builds lack them."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that CSR tensors are in beta, which torch says once
            one = torch.ones(1, 1)
            torch.sparse.sampled_addmm(one.to_sparse_csr(), one.to_sparse_csr() @ one, one)
    except RuntimeError as why:
        return f"no CSR products in this build of torch: {why}"
    return None
