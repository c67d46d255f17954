"""One run in its own process: from a Run to the record of what happened."""

from __future__ import annotations

import contextlib
import re
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

from dstbench.suite import checkpoint, definitions, machine, record, registry, schema, settings, sources
from dstbench.suite.achieved import achieved, not_counted
from dstbench.suite.export import hashes, save_model, values
from dstbench.suite.kernels import allocator
from dstbench.suite.meters import energy
from dstbench.suite.meters.crosscheck import second_counts
from dstbench.suite.meters.memory import model_bytes
from dstbench.suite.method import Method
from dstbench.suite.plan import Run, own_data
from dstbench.suite.task import Task
from dstbench.suite.train import Diverged, Training
from dstbench.suite.values import plain, stored
from dstbench.suite.words import printable, told

CHECKPOINT_SECONDS = 2.0  # at least, from one checkpoint to the next, and
CHECKPOINT_SHARE = 0.03  # at most, of a run's time


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
        self._make_storable()
        self.record["stamps"].update(finished=datetime.now(UTC).isoformat(timespec="seconds"), resumed=self.resumed)
        try:
            record.write(self.record, self.results)
        except record.Unwritable:  # where room is short, the record goes before the checkpoint
            shutil.rmtree(self.work, ignore_errors=True)
            record.write(self.record, self.results)
        shutil.rmtree(self.work, ignore_errors=True)
        return self.record["status"]["name"]

    def _make_storable(self) -> None:
        """Drop what no record can hold, block by block, and say so: all else of the run is kept."""
        faults: list[str] = []
        # The key was made of the identity as it is.
        self.record = {**stored(self.record, faults), "id": self.record["id"]}
        for fault in faults:
            self._drop(fault)
        while (fault := record.refused(self.record)) and self._drop(fault):
            faults.append(fault)
        if faults:
            said = self.record["status"]
            said["reason"] = f"{said['reason']} the record cannot hold {'; '.join(faults[:5])}".strip()

    def _drop(self, fault: str) -> bool:
        """Make the block null that a fault begins with; False where it is none that may be, or is already."""
        said, block = self.record["status"], re.findall(r"^\w*", fault)[0]
        said["name"] = "error" if said["name"] == "ok" else said["name"]
        there = block in record.BLOCKS and self.record[block] is not None
        self.record |= {block: None} if there else {}
        return there

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
        training = self._training(task, method)
        out["params"] = {
            "method": plain(method.hyperparameters()),
            "task": plain(task.describe()),
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
            training = self._begun(training)
            training.run(after=lambda: self._checkpoint(training))
            self._save(training)  # what comes next is repeated as a whole
            training.method.finish()
            status = self._judge(training)
        finally:
            self._measure(training)
        if run.save_models:
            save_model(training.model, self.results / "models" / f"{run.key}.safetensors")
        return status

    def _training(self, task: Task, method: Method) -> Training:
        run = self.run
        return Training(task, method, run.seed, budget=run.budget, device=run.device, kernel=run.kernel)

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
            if not abs(score) <= schema.LARGEST:  # or it is NaN
                raise Diverged(f"the metric {task.metric} on {split} is {score} after the last step")
        training.curve["valid"][-1] = scores["valid"]
        out["score"] = {**task.judged(), **scores, "step": training.t, "further": training.further("test")}
        out["hashes"] = hashes(model)
        out["sparsity"] = sparsity = achieved(training, self.run.sparsity)
        empty = [layer.name for layer in model.layers if not layer.nnz()]
        if empty:
            return {"name": "collapsed", "reason": f"no weight left in {', '.join(empty)}"}
        if not sparsity["on_target"]:
            reason = f"{sparsity['active_weights']} weights are active, the target is {sparsity['target_weights']}"
            return {"name": "off_target", "reason": reason}
        return {"name": "ok", "reason": ""}

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
        out["flops"]["check"] = second_counts(training.task)  # last, so that it is in no other figure

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
        return [code["method_source"], code["task_source"], sources.suite_hash(), str(torch.__version__)]

    @property
    def _file(self) -> Path:
        return self.work / "checkpoint.pt"

    def _begun(self, training: Training) -> Training:
        """The training as its checkpoint left it, or a new one after its `setup`, where there is none to go on from."""
        self.saved_at, self.saving = time.monotonic(), 0.0
        saved, note = checkpoint.take(self._file, self.run.key)
        if saved and self._ended(saved["attempt"]):
            saved = None
        elif saved and saved["made_by"] != self._made_by():
            # Half of one version and half of another would be neither's result.
            saved, note = None, checkpoint.aside(self._file, "it was made by other code")
        if saved:
            try:
                training.load(saved["training"])
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as why:  # a network that makes parts of itself later may lack them now
                saved, note = None, checkpoint.aside(self._file, f"it cannot be loaded: {told(why)}")
                training = self._training(*build(self.run))  # this one may be half of each
        if note:
            self._note(f"{note}; the run began afresh")
        if saved is None:
            training.setup()
        else:
            self.resumed, self.used = saved["resumed"] + 1, saved["energy"]
        return training

    def _note(self, text: str) -> None:
        stamps = self.record["stamps"]
        if text not in (before := stamps.get("checkpoint") or ""):
            stamps["checkpoint"] = "; ".join(filter(None, (before, text)))

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
        started = time.monotonic()
        if forgotten := training.forgets():  # older checkpoints, before that, still hold all
            if "unsaved" not in self.record["stamps"]:
                self.record["stamps"]["unsaved"] = forgotten[:5]
                print(f"no checkpoint from step {training.t} on: {'; '.join(forgotten)}", file=sys.stderr)
        else:
            state = {"key": self.run.key, "made_by": self._made_by(), "attempt": self.attempt}
            state |= {"training": training.state(), "resumed": self.resumed}
            try:
                checkpoint.write(self._file, {**state, "energy": energy.state(self.meters, self.used)})
            except OSError as why:  # a run can do without
                self._note(f"one could not be written: {why.strerror or why}")
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - started
