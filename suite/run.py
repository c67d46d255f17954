"""One run in its own process: from a Run to the record of what happened."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from dstbench.suite import checkpoint, definitions, machine, record, registry, settings, sources
from dstbench.suite.kernels import allocator
from dstbench.suite.lasting import content
from dstbench.suite.meters import energy
from dstbench.suite.meters.crosscheck import counted, ptflops_macs
from dstbench.suite.meters.flops import measure
from dstbench.suite.meters.memory import model_bytes
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.plan import Run, own_data
from dstbench.suite.task import Task
from dstbench.suite.train import Diverged, Training
from dstbench.suite.values import number, plain, stored
from dstbench.suite.words import printable, told

CHECKPOINT_SECONDS = 2.0  # at least, from one checkpoint to the next, and
CHECKPOINT_SHARE = 0.03  # at most, of a run's time
TOLERANCE = 0.01  # of the target's number of weights; at least one weight,
GRAIN = 0.05  # or one unit of a method's structure, where that is no more than this share of it
HALF = 0.5  # of all parameters: where fewer can be sparse, the record warns


def execute(run: Mapping[str, Any], results: str, shared: bool = False, start_method: str = "") -> str:
    """Do one run, from its checkpoint where there is one, write its record, return its status."""
    return _Execution(Run.from_json(run), Path(results), shared, start_method).go()


def build(run: Run) -> tuple[Task, Method]:
    """The task, with its recipe as the run wants it, and the method."""
    recipe = dict(run.recipe) | ({"precision": run.precision} if run.precision else {})
    task = registry.task(run.task, run.plugins, recipe, run.definition)
    task = own_data(task, run.data_root, run.download)
    options = dict(run.hyperparameters)
    if run.sparsity is not None:
        options["sparsity"] = run.sparsity
    return task, registry.method(run.method, plugins=run.plugins, **options)


class _Execution:
    def __init__(self, run: Run, results: Path, shared: bool, start_method: str) -> None:
        self.run, self.results, self.shared, self.start_method = run, results, shared, start_method
        self.work = results / "work" / run.key
        self.record = record.empty(run)
        self.attempt = 1 + max(record.attempts(results, run.key), default=0)
        self.started = time.monotonic()
        self.resumed = 0
        self.meters: list[energy.Counter] = []
        self.used: list[dict[str, Any]] = []  # energy readings of earlier sittings

    def go(self) -> str:
        torch.set_num_threads(self.run.threads)
        self.record["stamps"].update(started=datetime.now(UTC).isoformat(timespec="seconds"), shared=self.shared)
        try:
            status = self._train()
        except Diverged as why:
            status = self._fail("diverged", why)
        except (MemoryError, torch.OutOfMemoryError) as why:
            status = self._fail("oom", why)
        except Exception as why:  # a plugin may raise anything, and the record says what
            memory = isinstance(why, RuntimeError) and "can't allocate memory" in told(why)
            status = self._fail("oom" if memory else "error", why)
        self.record["status"].update(status)
        faults: list[str] = []
        self.record = stored(self.record, faults)
        if faults:
            said = self.record["status"]
            said["name"] = "error" if said["name"] == "ok" else said["name"]
            said["reason"] = f"{said['reason']} the record cannot hold {'; '.join(faults[:5])}".strip()
            for block in {fault.partition(" ")[0].partition(".")[0] for fault in faults} & {*record.BLOCKS}:
                self.record[block] = None
        self.record["stamps"].update(finished=datetime.now(UTC).isoformat(timespec="seconds"), resumed=self.resumed)
        try:
            record.write(self.record, self.results)
        except record.Unwritable:  # where room is short, the record goes before the checkpoint
            shutil.rmtree(self.work, ignore_errors=True)
            record.write(self.record, self.results)
        shutil.rmtree(self.work, ignore_errors=True)
        return self.record["status"]["name"]

    def _fail(self, name: str, why: BaseException) -> dict[str, str]:
        lines = [printable(line) for line in traceback.format_exc().strip().splitlines()]
        with contextlib.suppress(OSError):
            print("\n".join(lines), file=sys.stderr)  # whole, to the run's log
        return {"name": name, "reason": told(why), "traceback": "\n".join(line[:500] for line in lines[-12:])}

    # ---- the run -------------------------------------------------------------------------------------------------

    def _train(self) -> dict[str, str]:
        run, out = self.run, self.record
        if run.allocator == "tuned" and not allocator.tune():
            raise RuntimeError(allocator.unavailable() or "mallopt refused its settings: take the allocator system")
        task, method = build(run)
        torch.set_num_threads(run.threads)  # once more: what was loaded may have set others
        task.judged()  # raises, before anything is trained
        out["machine"], out["code"] = machine.facts(), self._code()
        if reason := method.skip(task):
            return {"name": "skipped", "reason": printable(str(reason))}
        task.prepare()
        training = Training(task, method, run.seed, budget=run.budget, device=run.device, kernel=run.kernel)
        out["params"] = {
            "method": plain(method.hyperparameters()),
            "recipe": plain(asdict(training.recipe)),
            "period": training.recipe.period,
            "kind": method.kind,
            "own_tuning": bool(run.recipe or run.hyperparameters),
            "settings": settings.now(),
        }
        self.meters = energy.meters(training.device, self.shared, run.watts_per_core or energy.WATTS_PER_CORE)
        for meter in self.meters:
            meter.start()
        try:
            self._resume_or_setup(training)
            training.run(after=lambda: self._checkpoint(training))
            self._save(training)  # what comes next is repeated as a whole
            method.finish()
            status = self._judge(training)
        finally:
            self._measure(training)
        if run.save_models:
            save_model(training.model, self.results / "models" / f"{run.key}.safetensors")
        return status

    def _judge(self, training: Training) -> dict[str, str]:
        """Score, sparsity and hashes at the last step, and the status that follows from them."""
        task, model, out = training.task, training.model, self.record
        tensors = values(model)
        lost = [n for n, p in model.net.named_parameters() if p.requires_grad and not tensors[n].isfinite().all()]
        # Other buffers may hold infinities by design, such as a mask of -inf.
        statistics = [f"{n}.{b}" for n, m in model.net.named_modules() if isinstance(m, _NormBase) for b in m._buffers]
        lost += [name for name in statistics if name in tensors and not tensors[name].isfinite().all()]
        if lost:
            raise Diverged(f"{', '.join(lost[:3])} of the network is not finite after the last step")
        scores = {split: training.evaluate(split) for split in ("valid", "test")}
        for split, score in scores.items():
            if not math.isfinite(score):
                raise Diverged(f"the metric {task.metric} on {split} is {score} after the last step")
        training.curve["valid"][-1] = scores["valid"]
        out["score"] = {**task.judged(), **scores, "step": training.t}
        out["hashes"] = hashes(model)
        out["sparsity"] = sparsity = self._sparsity(training)
        empty = [layer.name for layer in model.layers if not layer.nnz()]
        if empty:
            return {"name": "collapsed", "reason": f"no weight left in {', '.join(empty)}"}
        if not sparsity["on_target"]:
            reason = f"{sparsity['active_weights']} weights are active, the target is {sparsity['target_weights']}"
            return {"name": "off_target", "reason": reason}
        return {"name": "ok", "reason": ""}

    def _sparsity(self, training: Training) -> dict[str, Any]:
        model, target, grain = training.model, self.run.sparsity, number(training.method.grain, "grain is")
        active = sum(layer.nnz() for layer in model.layers)
        wanted = None if target is None else round((1 - target) * model.maskable)
        parameters = sum(p.numel() for p in model.net.parameters())
        stored = sum(layer.parameter.numel() for layer in model.layers)
        everything = parameters - stored + model.maskable
        return {
            "target": target,
            "achieved": 1 - active / max(1, model.maskable),
            "target_weights": wanted,
            "active_weights": active,
            "maskable": model.maskable,
            "parameters": everything,
            "explored": training.explored.share,
            "of_parameters": (model.maskable - active) / everything,
            "maskable_share": model.maskable / max(1, everything),
            "left_dense": model.left_dense,
            "never_reached": (idle := [layer.name for layer in model.layers if not layer.met]),
            "warning": left_out(model.maskable / max(1, everything), model, idle),
            "on_target": wanted is None or abs(active - wanted) <= slack(wanted, grain),
            "layers": {
                y.name: {
                    "density": y.density,
                    "numel": y.numel,
                    "kernel": y.kernel.name,
                    "route": y.kernel.route(y),
                    "fallback": y.fallback,
                }
                for y in model.layers
            },
        }

    def _measure(self, training: Training) -> None:
        """What the run has spent so far: also of one that failed on its way."""
        out, model, book = self.record, training.model, training.book
        out["params"]["settings"] = settings.now()  # as the last step left them
        simulated = self.run.sparsity is not None and all(
            layer.kernel.simulated or layer.kernel.route(layer) == "dense" for layer in model.layers
        )
        out["curve"] = training.curve
        book.charged = training.method.charged
        out["flops"] = book.block(model.dense_passes, model.cost(), training.samples)
        out["flops"]["warning"] = not_counted(out["flops"]["uncounted"])
        out["time"] = training.clock.block(training.t, simulated)
        moved = 0 if training.memory.model is None else 2 * model_bytes(model)[0] * training.t
        readings = energy.add([meter.stop() for meter in self.meters], self.used)
        out["energy"] = [asdict(r) for r in (*readings, energy.modelled_ops(book.total, moved))]
        if training.memory.model is not None:
            out["memory"] = {**training.memory.block(), "start_method": self.start_method}
        out["flops"]["check"] = crosscheck(training.task)  # last, so that it is in no other figure

    def _code(self) -> dict[str, Any]:
        entry = registry.find("method", self.run.method, self.run.plugins)
        task = definitions.found(self.run.task, self.run.plugins, self.run.definition)
        return {
            "versions": machine.versions(),
            "commit": machine.commit(Path(__file__).parent),
            "method_source": sources.source_hash(entry, self.run.hyperparameters),
            "task_source": sources.source_hash(task),
            "distribution": machine.distribution() if entry.origin == "built-in" else entry.origin,
        }

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _made_by(self) -> list[str]:
        code = self.record["code"]
        return [code["method_source"], code["task_source"], str(torch.__version__)]

    @property
    def _file(self) -> Path:
        return self.work / "checkpoint.pt"

    def _resume_or_setup(self, training: Training) -> None:
        self.saved_at, self.saving = time.monotonic(), 0.0
        saved, note = checkpoint.take(self._file, self.run.key)
        if saved and (self._ended(saved["attempt"]) or saved["made_by"] != self._made_by()):
            # Half of one version and half of another would be neither's result.
            note = "" if self._ended(saved["attempt"]) else f"{self._file.name} was made by other code"
            saved = None
        if note:
            self.record["stamps"]["checkpoint"] = f"{note}; the run began afresh"
        if saved is None:
            training.setup()
            return
        training.load(saved["training"])
        self.resumed = saved["resumed"] + 1
        self.used = saved["energy"]

    def _ended(self, attempt: int) -> bool:
        """Whether a process of this attempt, or of a later one, wrote a record and died before its clean-up.

        A run that was stopped has a record too, by another process: it knows no machine, and the run may go on.
        """
        for path in record.paths(self.results, self.run.key):
            with contextlib.suppress(ValueError):
                if record.number(path) >= attempt and record.read(path)["machine"] is not None:
                    return True
        return False

    def _checkpoint(self, training: Training) -> None:
        if time.monotonic() - self.saved_at > max(CHECKPOINT_SECONDS, self.saving / CHECKPOINT_SHARE):
            self._save(training)

    def _save(self, training: Training) -> None:
        if forgotten := training.forgets():  # older checkpoints, before that, still hold all
            if "unsaved" not in self.record["stamps"]:
                self.record["stamps"]["unsaved"] = forgotten[:5]
                print(f"no checkpoint from step {training.t} on: {'; '.join(forgotten)}", file=sys.stderr)
            return
        started = time.monotonic()
        state = {"key": self.run.key, "made_by": self._made_by(), "attempt": self.attempt}
        state |= {"training": training.state(), "resumed": self.resumed, "energy": energy.state(self.meters, self.used)}
        try:
            checkpoint.write(self._file, state)
        except OSError as why:  # a run can do without
            self.record["stamps"]["checkpoint"] = f"one could not be written: {why.strerror or why}"
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - started


def slack(wanted: int, grain: float) -> float:
    """How many weights a run may end away from its target."""
    return max(1, TOLERANCE * wanted, min(grain, GRAIN * wanted))


def left_out(share: float, model: SparseModel, idle: list[str]) -> str:
    """The warnings that sparsity is that of a small part of the network, or in part of weights that no pass reads."""
    few = f"{share:.1%} of the parameters can be sparse; left dense: {model.why_dense()}" if share < HALF else ""
    never = f"no training pass reached {', '.join(idle)}" if idle else ""
    return "; ".join(filter(None, (few, never)))


def not_counted(calls: Mapping[str, int]) -> str:
    """The warning that FLOPs lack operations, by name; "" where they lack none."""
    found = ", ".join(f"{name} ({count} call{'s' * (count > 1)})" for name, count in calls.items())
    return f"FLOPs lack operations without a formula: {found}" if found else ""


def values(model: SparseModel) -> dict[str, torch.Tensor]:
    """Every parameter (a Layer's dense) and buffer by its name in the state dict."""
    layers = {layer.key: layer for layer in model.layers}
    found = {n: layers[n].weight if n in layers else p.detach() for n, p in model.net.named_parameters()}
    return {**found, **dict(model.net.named_buffers())}


def hashes(model: SparseModel) -> dict[str, str]:
    """sha256 of all weights and buffers (dense values), and of all masks."""
    weights, masks = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(values(model).items()):
        weights.update(name.encode() + content(tensor))
    for layer in sorted(model.layers, key=lambda layer: layer.key):
        for mask in (layer.forward_mask, layer.grad_mask):
            masks.update(layer.key.encode() + (b"all" if mask is None else content(mask)))
    return {"weights": weights.hexdigest(), "masks": masks.hexdigest()}


def crosscheck(task: Task) -> dict[str, Any]:
    """Our dense forward count, FLOPs per sample, beside FlopCounterMode's and ptflops'; None where one failed."""
    found: dict[str, Any] = dict.fromkeys(("forward", "torch", "torch_difference", "ptflops", "difference"))
    with contextlib.suppress(Exception):  # a second opinion that cannot be had costs no run its result
        net, example = task.build(0), task.example()
        found["forward"] = ours = measure(net, example).inference.ahead
        found["torch"] = counted(net, example)
        found["torch_difference"] = found["torch"] / ours - 1
        macs = ptflops_macs(net, example)
        if macs is not None:
            found |= {"ptflops": 2 * macs, "difference": 2 * macs / ours - 1}
    return found


def save_model(model: SparseModel, path: Path) -> None:
    """Weights (dense, zeros included) and masks as one safetensors file; a mask's name is the weight's plus "#mask"."""
    from safetensors.torch import save_file

    masks = {f"{y.key}#mask": y.forward_mask for y in model.layers if y.forward_mask is not None}
    tensors = {**values(model), **masks}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, str(temporary))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
