"""Method: the contract of a plugin, and LayerOptimizer: the base of update rules of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dstbench.suite.layer import Layer
from dstbench.suite.recipe import Recipe
from dstbench.suite.values import number, typed
from dstbench.suite.words import shown

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel
    from dstbench.suite.task import Task

STARTS = ("at zero", "at its own value", "one step off zero")  # how `Method.grown` may begin


class Gradients(Protocol):
    """Calibration gradients, summed over `batches` batches: dense tensors in the order of `method.layers`.

    The outputs of the network are divided by `temperature` before the loss; `train` is the mode of the network.
    """

    def __call__(
        self, batches: int = 1, create_graph: bool = False, temperature: float = 1.0, train: bool = True
    ) -> list[Tensor]: ...


@dataclass
class Method:
    """A sparse training method: a dataclass whose fields are its hyper-parameters.

    It publishes, before each pass, what the pass touches of each Layer: `layer.forward_mask`, the weights it reads, and
    `layer.grad_mask`, the entries of the weight gradient it computes (`None`: all). All else follows from that: FLOPs,
    storage, checkpoints. A method that needs the whole gradient, but only for something small or once, says so by
    `layer.stream(reduce)` in place of `grad_mask = None`: memory then holds one Layer's gradient at a time. Override
    what differs:

    - `skip(task)`: why this method cannot run this task, or None;
    - `network(task, seed)`: the network to train, where it is not the task's own;
    - `setup(gradients)`: once, before step 0: the first masks;
    - `begin(t)`: before the pass of step t: sets masks, or shrinks the model;
    - `step(t)`: after the pass: moves weights and topology; the default is `optimizer.step()`, then `project()`;
    - `project()`: outside `forward_mask | grad_mask` values and state are zero, except what `keeps` names;
    - `make_optimizer(groups)`, `lr(t)`: the update rule; the default is the task's recipe;
    - `descend(batch)`: forward and backward pass; the default is one of each; overridden, FLOPs are self-reported;
    - `finish()`: once, before the final evaluation; it may not prune.

    The docstring's lines "Passes:", "FLOPs:", "Defaults:" and "Ambiguous:" (each as long as it needs) go to the
    catalogue of methods: what a pass reads and computes, what the paper charges, where defaults come from, what the
    paper leaves open.

    Given before `setup`: `layers`, `model`, `recipe`, `rng` (a CPU generator seeded by the run), `optimizer`, `memory`
    (tensors and numbers that survive a resume). Law: schedules are pure functions of t; everything else lives in
    Layers, optimiser, rng or memory. That law is why resuming is bit-exact without code of yours.
    """

    sparsity: float = field(default=0.9, kw_only=True)
    budget: float = field(default=1.0, kw_only=True)

    name: ClassVar[str]
    family: ClassVar[str] = "other"
    citation: ClassVar[str] = ""
    version: ClassVar[int] = 1
    sparse: ClassVar[bool] = True  # False: sparsity does not apply, one run serves every level
    keeps: ClassVar[Mapping[str, str]] = {}
    names_methods: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that name other methods, which this one runs
    grown: ClassVar[str] = ""  # where a weight starts that a pass has not read before: one of `STARTS`, then why

    def __post_init__(self) -> None:
        typed(getattr(self, "name", type(self).__name__), self)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"{self.name}: sparsity is {self.sparsity}; give a share of zero weights in [0, 1)")
        if self.budget <= 0:
            raise ValueError(f"{self.name}: budget is {self.budget}; give a factor above 0 on the task's steps")

    # ---- given by the suite --------------------------------------------------------------------------------------

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        """Hand over all that a method may use; called once, before `setup`."""
        self.model, self.layers, self.recipe = model, model.layers, recipe
        self.rng = torch.Generator().manual_seed(seed)
        self.memory: dict[str, Any] = {}
        self.charged = 0
        self.optimizer = self.make_optimizer(model.groups())
        model.attach(self.optimizer, self.keeps)

    def backward(self, batch: Any) -> Tensor:
        """One forward and backward pass over `batch`, given by the training loop; returns the detached loss."""
        raise RuntimeError("backward is given by the training loop")

    def charge(self, flops: int) -> None:
        """Book FLOPs of arithmetic done outside the pass, such as a cubic score; ValueError for no finite count."""
        if not 0 <= number(flops, "charge was given") < math.inf:
            raise ValueError(f"charge was given {shown(flops)}; a finite count of FLOPs, 0 or more, is expected")
        self.charged += int(flops)

    def restart(self) -> None:
        """Forget all optimiser state, kept state included, as if no step had been taken."""
        self.optimizer.state.clear()
        for layer in self.layers:
            layer.reserve = {name: held for name, held in layer.reserve.items() if name == "weight"}

    @property
    def grain(self) -> int:
        """How many weights come and go together at most; a structure can miss its target density by that much."""
        return 1

    @property
    def kind(self) -> str:
        """Which of the recipe's learning rates this method uses: "sgd" or "adam"."""
        return self.recipe.optimizer

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter, name -> value."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    # ---- to override ---------------------------------------------------------------------------------------------

    def skip(self, task: Task) -> str | None:
        """Why this method cannot run this task, or None."""
        return None

    def network(self, task: Task, seed: int) -> nn.Module:
        """The network to train; FLOPs and sparsity are still measured against the task's own."""
        return task.build(seed)

    def setup(self, gradients: Gradients) -> None:
        """Set the first masks."""

    def begin(self, t: int) -> None:
        """Declare what the pass of step t touches."""

    def descend(self, batch: Any) -> Tensor:
        """Run the pass; returns the detached loss."""
        return self.backward(batch)

    def step(self, t: int) -> None:
        """Move weights and topology."""
        self.optimizer.step()
        self.project()

    def project(self) -> None:
        """Zero values and state outside what is declared and kept."""
        for layer in self.layers:
            layer.project()

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of all parameters, in two groups: weights, which decay, and all others."""
        return self.recipe.make_optimizer(groups, self.kind)

    def lr(self, t: int) -> float:
        """The learning rate of step t."""
        return self.recipe.lr[self.kind] * self.recipe.factor(t)

    def finish(self) -> None:
        """Last words before the final evaluation."""


class LayerOptimizer(torch.optim.Optimizer):
    """An optimiser with one rule for every parameter: override `update`.

    Tensors come as stored: dense under `masked`, a vector of stored values under compact kernels; an elementwise rule
    need not know, one over groups of a Layer's entries asks `suite.groups`. State tensors of the weight's shape
    belong in `state`; the suite moves them with the storage.
    """

    def __init__(self, groups: list[dict[str, Any]], layers: Sequence[Layer], **defaults: Any) -> None:
        super().__init__(groups, defaults)
        self.layers: dict[nn.Parameter, Layer] = {layer.parameter: layer for layer in layers}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply `update` to every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    layer = self.layers.get(parameter)
                    self.update(layer, parameter, parameter.grad, self.state[parameter], group)

    def update(
        self, layer: Layer | None, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Move `weight` in place; `layer` is None for biases, norms and all else that is no Layer."""
        raise NotImplementedError
