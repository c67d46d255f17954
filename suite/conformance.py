"""Conformance: what `dstbench check` looks at, methods and tasks; and the checks of a task."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import torch
from torch import Tensor

from dstbench.suite import check, definitions, registry
from dstbench.suite.check import Result
from dstbench.suite.checks.resume import differences, frozen, thawed
from dstbench.suite.lasting import content
from dstbench.suite.model import SparseModel
from dstbench.suite.plan import own_data
from dstbench.suite.plugins import DEFINED, FAILURES
from dstbench.suite.registry import Entry
from dstbench.suite.task import SPLITS, Batch, Task
from dstbench.suite.train import Training

ENDLESS, WHOLE = SPLITS[:2], SPLITS[2:]
BATCHES, STEPS = 100, 20  # of the endless splits: enough to see most rows of a small data set; of a training
SHARED = 0.01  # of a split's inputs may be in another: texts repeat passages, and data sets of images hold duplicates


def results(
    target: str,
    beds: Sequence[str],
    kernel: str,
    jobs: int = 1,
    plugins: Sequence[str] = (),
    data_root: str | None = None,
) -> Iterator[Result]:
    """(name, verdicts, seconds) of the method or task `target`, of all that a file has, or of all methods ("").

    A file is a plugin, or defines tasks.

    A method is checked on the first of the tasks `beds` that it does not skip.
    RegistryError for an unknown name and for a file that is broken, DataError where a task's data is missing.
    """
    own = [str(Path(target).resolve())] if target.endswith((".py", *DEFINED)) else []
    files = [*own, *plugins]
    entries = registry.methods(files), registry.tasks(files)
    if own:
        methods, tasks = (_own(found, own[0]) for found in entries)
    elif target in entries[1] or (target not in entries[0] and definitions.by_name(target)):
        methods, tasks = [], [target]
    else:
        methods, tasks = [registry.find("method", target, files).name] if target else list(entries[0]), []
    found = check.check_all(methods, beds, kernel, jobs, files, data_root) if methods else ()
    for name in tasks:
        yield _task(name, files, data_root)
    yield from found


def _own(entries: Mapping[str, Entry], path: str) -> list[str]:
    """The names that a file has; Broken if it cannot be loaded."""
    own = [entry for entry in entries.values() if entry.origin in (f"plugin {path}", f"{definitions.ORIGIN}{path}")]
    for entry in own:
        entry.load()
    return [entry.name for entry in own]


def _task(name: str, plugins: Sequence[str], data_root: str | None) -> Result:
    started = time.monotonic()
    task = own_data(registry.task(name, plugins), data_root, download=False)
    task.prepare()
    tests = {title: partial(test, task) for title, test in CHECKS.items()}
    return name, check.judge(name, tests, check.files_of(type(task)), FAILURES), time.monotonic() - started


# ---- the checks: each returns what is wrong, or "" ----


def fingerprint_is_steady(task: Task) -> str:
    found = task.fingerprint()
    if len(found) != 12 or set(found) - set("0123456789abcdef"):
        return f"fingerprint() is {found!r}; give 12 hex digits that change whenever the data does"
    return "" if found == task.fingerprint() else "fingerprint() gives another value when asked again"


def network_is_of_the_seed_alone(task: Task) -> str:
    before = torch.get_rng_state()
    one, other = (list(task.build(seed).state_dict().values()) for seed in (0, 1))
    torch.rand(1)
    again = list(task.build(0).state_dict().values())
    if not all(map(torch.equal, one, again)):
        return "build(0) gives other weights when called again: seed the generator in it"
    torch.set_rng_state(before)
    task.build(0)
    if not torch.equal(torch.get_rng_state(), before):
        return "build(seed) moves the global generator: use torch.random.fork_rng(devices=[])"
    return "build(0) and build(1) give the same weights" if all(map(torch.equal, one, other)) else ""


def width_scales_the_network(task: Task) -> str:
    try:
        wide = _size(task.build(0, width=2.0))
    except ValueError:  # the contract's word for a network of one width
        return ""
    return "" if wide > _size(task.build(0)) else "build(0, width=2.0) has no more weights than build(0)"


def example_fits_the_batches(task: Task) -> str:
    batch, shape = next(task.batches("train", 0)), task.example().shape[1:]
    if batch[0].shape[1:] != shape:
        return f"an input of train has shape {tuple(batch[0].shape[1:])}, one of example() {tuple(shape)}"
    model = SparseModel(task.build(0), task.example(), task.dense)
    loss = task.loss(model, batch)
    if not model.layers:
        return "no Layer is found: every weight is left dense"
    return "" if loss.dim() == 0 and loss.isfinite() else f"the loss of the first batch is {loss}"


def batches_are_of_seed_and_step(task: Task) -> str:
    for split in ENDLESS:
        found = list(islice(task.batches(split, 0), 6))
        if len(found) < 6:
            return f"batches({split!r}, 0) end after {len(found)}: they are to have no end"
        if not _same(next(task.batches(split, 0, start=5)), found[5]):
            return f"batches({split!r}, 0, start=5) begin with another batch than the sixth: a run could not resume"
        if not task.one_split and all(_same(a, b) for a, b in pairwise(found)):
            return f"batches({split!r}, 0) repeat one batch"
    return ""


def judging_splits_are_whole_and_fixed(task: Task) -> str:
    for split in WHOLE:
        one, other = list(task.batches(split, 0)), list(task.batches(split, 1))
        if not one:
            return f"batches({split!r}, 0) are empty"
        if len(one) != len(other) or not all(map(_same, one, other)):
            return f"the batches of {split!r} depend on the seed: all runs are judged on the same data"
    return ""


def splits_share_no_input(task: Task) -> str:
    if task.one_split:
        return ""
    seen = {split: _rows(task, split) for split in SPLITS}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test"), ("calibration", "test")):
        shared, least = len(seen[one] & seen[other]), min(len(seen[one]), len(seen[other]))
        if shared > SHARED * least:
            return f"{shared} inputs of {one} are in {other} too, of {least}"
    return ""


def short_training_is_finite(task: Task) -> str:
    method = registry.method("dense")
    training = Training(replace(task, recipe=replace(task.recipe, steps=STEPS)), method)
    training.setup()
    training.run()
    score, again = training.evaluate("valid"), training.evaluate("valid")
    return "" if math.isfinite(score) and score == again else f"the metric on valid is {score}, then {again}"


def resuming_is_exact(task: Task) -> str:
    """Stopped in the middle, and gone on with on a network built anew."""
    short = replace(task, recipe=replace(task.recipe, steps=STEPS))
    whole, again = (Training(short, registry.method("dense")) for _ in range(2))
    whole.setup()
    whole.run(until=STEPS // 2)
    if forgotten := whole.forgets():
        return f"a run cannot be resumed: {forgotten[0]}: keep it in a buffer, or in numbers, texts and tensors"
    saved = frozen(whole.state())
    whole.run()
    again.load(thawed(saved))
    again.run()
    found = ", ".join(differences(thawed(frozen(whole.state())), thawed(frozen(again.state()))))
    return f"resumed after step {STEPS // 2}, {found} differ at the end" if found else ""


CHECKS: dict[str, Callable[[Task], str]] = {
    "fingerprint is steady": fingerprint_is_steady,
    "network is of the seed alone": network_is_of_the_seed_alone,
    "width scales the network": width_scales_the_network,
    "example fits the batches": example_fits_the_batches,
    "batches are of seed and step": batches_are_of_seed_and_step,
    "judging splits are whole and fixed": judging_splits_are_whole_and_fixed,
    "splits share no input": splits_share_no_input,
    "a short training is finite": short_training_is_finite,
    "resuming is exact": resuming_is_exact,
}


def _same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _size(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _rows(task: Task, split: str) -> set[bytes]:
    """The inputs that a split shows, hashed."""
    batches = islice(task.batches(split, 0), BATCHES if split in ENDLESS else None)
    return {_hash(row) for inputs, _ in batches for row in inputs}


def _hash(row: Tensor) -> bytes:
    return hashlib.sha256(content(row)).digest()
