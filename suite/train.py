"""The training loop: it declares, passes, counts and steps, and has no branch on the method."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dstbench.suite import lasting
from dstbench.suite.lasting import Lasting, foreign
from dstbench.suite.meters.clock import Clock
from dstbench.suite.meters.explored import Explored
from dstbench.suite.meters.flops import FlopBook, FlopMeter
from dstbench.suite.meters.memory import MemoryMeter
from dstbench.suite.meters.units import Units
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.schema import LARGEST
from dstbench.suite.task import Batch, Task
from dstbench.suite.values import number
from dstbench.suite.words import shown

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):
    """The loss is no longer a number."""


class Training:
    """One run: builds network, Layers and optimiser from (task, method, seed), trains, and can be saved at any step."""

    def __init__(
        self,
        task: Task,
        method: Method,
        seed: int = 0,
        *,
        budget: float = 1.0,
        device: str = "cpu",
        kernel: str = "masked",
    ) -> None:
        self.method, self.seed, self.device = method, seed, torch.device(device)
        self.task = task.on(self.device)
        self._name = getattr(method, "name", type(method).__name__)
        lasting.seed(seed)
        self.recipe = task.recipe.scaled(budget * method.budget)
        self.samples = task.recipe.scaled(budget).steps * task.recipe.batch  # without the method's own factor
        self.model = SparseModel(method.network(task, seed).to(self.device), task.example(), task.dense, kernel)
        if type(method).network is not Method.network:
            own = SparseModel(task.build(seed), task.example(), task.dense)
            self.model.maskable, self.model.dense_passes = own.maskable, own.dense_passes
        if method.sparse and not self.model.layers:
            raise ValueError(f"{method.name}: nothing of this network can be sparse: {self.model.why_dense()}")
        if self.recipe.compile:
            self.model.compile()
        method.attach(self.model, self.recipe, seed)
        method.backward = self.backward  # type: ignore[method-assign]
        r = self.recipe
        plain = r.accumulate == 1 and r.precision != "fp16" and not r.clip and not r.compile
        for layer in self.model.layers:  # what is done to whole gradients after backward needs them whole
            layer.streams = plain and layer.kernel.streams
        self.t = 0
        self.clock = Clock(self.device)
        self.memory = MemoryMeter(self.device)
        source = "masks" if type(method).descend is Method.descend else "self-reported"
        self.book = FlopBook(source=source, uncounted=dict(self.model.uncounted))
        self.curve: dict[str, Any] = {"step": [], "loss": [], "density": [], "valid": []}
        self.units = Units(self.model.layers)
        self.curve["active_units"] = self.units.seen
        self.scale = 2.0**16 if self.recipe.precision == "fp16" else 1.0
        self._observed: set[tuple[bool, bool, float]] = set()
        self.explored = Explored(self.model)
        self.model.net.train()
        self.lasting = Lasting(self.model.net)
        torch.manual_seed(seed)
        self.memory.start()

    # ---- the loop ------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """The method's first masks; whatever it computes for them is counted by the operation."""
        self.model.net.train()
        with FlopMeter() as meter, sdpa_kernel(SDPBackend.MATH):
            self.method.setup(self.gradients)
        self.book.setup += meter.total
        self.book.uncounted = dict(meter.uncounted + Counter(self.book.uncounted))
        self.model.net.train()
        self.model.zero_grad()

    def run(self, until: int | None = None, after: Callable[[], None] = lambda: None) -> None:
        """Train up to step `until` (default: all); `after` is called between steps. Raises Diverged."""
        method, clock, steps = self.method, self.clock, self.recipe.steps
        batches: Iterator[Batch] = iter(self.task.batches("train", self.seed, start=self.t))
        while self.t < (steps if until is None else until):
            t = self.t
            with clock("train"):
                for group in method.optimizer.param_groups:
                    group["lr"] = number(method.lr(t), f"{self._name}: lr({t}) returned")
                with clock("overhead"):
                    method.begin(t)
                with clock("data"):
                    batch = self._move(self._next(batches, "train"))
                loss = number(method.descend(batch), f"{self._name}: descend returned")
                if not abs(loss) <= LARGEST:  # or it is NaN
                    raise Diverged(f"the loss is {loss} at step {t} of {steps}")
                self._observe()
                if self.recipe.clip:
                    self.clip(self.recipe.clip)
                with clock("overhead"):
                    method.step(t)
                self.book.charged = method.charged
            clock.step_done()
            self.t += 1
            self._trace(t, loss)
            after()

    def backward(self, batch: Batch) -> Tensor:
        """One forward and backward pass, in equal micro-batches; gradients are unscaled, every pass is charged."""
        parts = self.recipe.accumulate
        while True:
            self.model.zero_grad()
            self.model.cost()  # refuses masks that were edited
            total = torch.zeros((), device=self.device)
            for inputs, targets in zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
                with self.autocast():
                    loss = self._loss(self.model, (inputs, targets)) / parts
                (loss * self.scale if self.scale != 1 else loss).backward()
                total += loss.detach()
            self.book.add(self.model.passed(len(batch[1])), len(batch[1]))
            if self.recipe.precision != "fp16" or self._unscale():
                return total

    def _unscale(self) -> bool:
        """Divide the gradients by the loss scale; False, with half the scale, where one overflowed."""
        grads = [p.grad for p in self.model.net.parameters() if p.grad is not None]
        finite = all(bool(g.isfinite().all()) for g in grads)
        if finite or self.scale <= 1:
            torch._foreach_div_(grads, self.scale)
            return True
        self.scale /= 2
        return False

    def clip(self, bound: float) -> None:
        """Scale all gradients to the norm `bound`, counting what the pass reads alone, whatever the method computes."""
        layers = {layer.parameter: layer for layer in self.model.layers}
        grads, counted = [], []
        for parameter in self.model.net.parameters():
            if (grad := parameter.grad) is None:
                continue
            layer = layers.get(parameter)
            grads.append(grad)
            read = (
                None if layer is None or layer.forward_mask is None else layer.kernel.store(layer, layer.forward_mask)
            )
            counted.append(grad if read is None else grad * read)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted)))
        torch._foreach_mul_(grads, (bound / (norm + 1e-6)).clamp(max=1.0))

    def autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision."""
        dtype = DTYPES.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def gradients(
        self, batches: int = 1, create_graph: bool = False, temperature: float = 1.0, train: bool = True
    ) -> list[Tensor]:
        """Gradients of the loss to all Layers, summed over calibration batches; see `Gradients`."""
        self.model.net.train(train)
        stream = iter(self.task.batches("calibration", self.seed))
        parameters = [layer.parameter for layer in self.model.layers]
        total: list[Tensor] | None = None
        for _ in range(batches):
            outputs: Any = self.model if temperature == 1 else lambda inputs: self.model(inputs) / temperature
            loss = self._loss(outputs, self._move(self._next(stream, "calibration")))
            found = torch.autograd.grad(
                loss, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
            found = tuple(y.kernel.dense(y, g) for y, g in zip(self.model.layers, found, strict=True))
            total = list(found) if total is None else [a + b for a, b in zip(total, found, strict=True)]
        if total is None:
            raise ValueError(f"gradients over {batches} batches: at least 1 is needed")
        self.model.net.train()
        return total

    def evaluate(self, split: str) -> float:
        """The task's metric on a whole split, with the masks as the last step left them; it may not be finite."""
        score = self._evaluated(self.task.evaluate, split)
        return number(score, f"{self.task.name}: evaluate({split!r}) returned")

    def further(self, split: str) -> dict[str, float]:
        """The task's further metrics on a whole split, by name."""
        found = self._evaluated(self.task.further, split)
        where = f"{self.task.name}: further({split!r}): "
        return {str(name): number(value, f"{where}{name} is") for name, value in found.items()}

    def _evaluated(self, judge: Callable[[SparseModel, str, torch.device], Any], split: str) -> Any:
        self.model.net.eval()
        with self.clock("evaluation"), torch.no_grad(), self.autocast():
            found = judge(self.model, split, self.device)
        self.model.net.train()
        return found

    # ---- what is kept --------------------------------------------------------------------------------------------

    def _next(self, batches: Iterator[Batch], split: str) -> Batch:
        for batch in batches:
            if isinstance(batch, tuple | list) and len(batch) == 2 and all(map(torch.is_tensor, batch)):
                return batch[0], batch[1]
            raise TypeError(f"{self.task.name}: batches({split!r}) gave {shown(batch)}; two tensors are expected")
        raise RuntimeError(f"{self.task.name}: batches({split!r}) ended at step {self.t}; they are to have no end")

    def _loss(self, model: Any, batch: Batch) -> Tensor:
        loss = self.task.loss(model, batch)
        if not torch.is_tensor(loss) or loss.numel() != 1:
            raise TypeError(f"{self.task.name}: loss returned {shown(loss)}; a tensor of one value is expected")
        return loss.reshape(()) if loss.dim() else loss

    def _move(self, batch: Batch) -> Batch:
        return batch[0].to(self.device), batch[1].to(self.device)

    def _observe(self) -> None:
        """Look at the memory alive after a pass, once for each kind of pass and hundredth of density."""
        self.explored.look()
        ready = bool(self.method.optimizer.state)
        kind = self.model.cost().dense_gradient, ready, round(self.model.density, 2)
        if kind not in self._observed:
            self._observed.add(kind)
            self.memory.observe(self.model, self.method.optimizer, self.method.memory)

    def _trace(self, t: int, loss: float) -> None:
        steps = self.recipe.steps
        last = t + 1 == steps
        # The last step is judged after `finish`, by the run.
        evaluate = not last and (t + 1) % math.ceil(steps / max(1, min(10, steps // 100))) == 0
        if evaluate or last or (t + 1) % max(1, steps // 100) == 0:
            valid = self.evaluate("valid") if evaluate else None
            valid = valid if valid is None or abs(valid) <= LARGEST else None  # the last one is judged
            row = {"step": t + 1, "loss": loss, "density": self.model.density, "valid": valid}
            for name, value in row.items():
                self.curve[name].append(value)
        if evaluate or last or t == 0:
            self.units.look(t + 1)

    def state(self) -> dict[str, Any]:
        """All of the run, in tensors and plain values."""
        method = self.method
        devices = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {
            "t": self.t,
            "model": {**self.model.state(), "buffers": {}},
            "lasting": self.lasting.state(),
            "optimizer": method.optimizer.state_dict(),
            "method": {"rng": method.rng.get_state(), "memory": method.memory, "charged": method.charged},
            "devices": {k: str(v.device) for k, v in method.memory.items() if torch.is_tensor(v)},
            "torch_rng": [torch.get_rng_state(), *devices],
            "chance": lasting.chance(),
            "book": self.book.state(),
            "clock": self.clock.state(),
            "memory": self.memory.state(),
            "explored": self.explored.seen,
            "curve": self.curve,
            "scale": self.scale,
        }

    def forgets(self) -> list[str]:
        """What the run holds and no checkpoint can: a run that were resumed without would not be the same run."""
        method = self.method
        parts = {f"memory[{name!r}]": value for name, value in method.memory.items()}
        parts["the optimiser's state"] = method.optimizer.state_dict()
        lost = [f"{self._name}: {place} holds a {why}" for place, value in parts.items() if (why := foreign(value))]
        return lost + self.lasting.forgets()

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from a `state`, instead of `setup`, on a Training built the same way."""
        method = self.method
        self.t, self.curve, self.scale = saved["t"], self.curve | saved["curve"], saved["scale"]
        self.units.seen = self.curve["active_units"]
        self.model.load(saved["model"])
        self.lasting.load(saved["lasting"], self.device)
        method.optimizer.load_state_dict(saved["optimizer"])
        method.rng.set_state(saved["method"]["rng"])
        memory, devices = saved["method"]["memory"], saved["devices"]
        for name, value in memory.items():
            there = method.memory.get(name)
            if torch.is_tensor(there):  # in place: an optimiser may step it
                there.data.copy_(value)
            else:
                method.memory[name] = value.to(devices[name]) if name in devices else value
        self.explored.seen = [None if m is None else m.to(self.device) for m in saved["explored"]]
        method.charged = saved["method"]["charged"]
        torch.set_rng_state(saved["torch_rng"][0])
        lasting.take_chance(saved["chance"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["torch_rng"][1], self.device)
        self.book = FlopBook(**saved["book"])
        self.clock.load(saved["clock"])
        self.memory.load(saved["memory"])
