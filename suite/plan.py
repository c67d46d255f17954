"""Plan: methods × tasks × sparsities × seeds, expanded into content-addressed runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dstbench.suite import registry
from dstbench.suite.plugins import FAILURES, why
from dstbench.suite.words import shown

if TYPE_CHECKING:
    from dstbench.suite.planfile import Plan
    from dstbench.suite.task import Task

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One training run, and all that its result depends on.

    `hyperparameters` and `recipe` (overrides, dotted into mappings: "lr.sgd") hold what differs from the defaults;
    `sparsity` is None for methods that train every weight; `precision` None is the recipe's; `data` is the fingerprint;
    `allocator` is "system" or "tuned". `wrapped_versions`: those of the methods that this one wraps, but for 1.
    `definition` is that of a task that no name stands for, see `definitions`: the path of its folder is no part of what
    the run is, its fingerprint is.
    `plugins`, `data_root`, `timeout` (seconds), `watts_per_core` (None: the meter's default), `download` and
    `save_models` say how to run it, not what it is.
    """

    method: str
    task: str
    sparsity: float | None = None
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    budget: float = 1.0
    precision: str | None = None
    kernel: str = "masked"
    device: str = "cpu"
    threads: int = 1
    allocator: str = "system"
    data: str = ""
    task_version: int = 1
    method_version: int = 1
    wrapped_versions: Mapping[str, int] = field(default_factory=dict)
    definition: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    data_root: str | None = None
    timeout: float | None = None
    watts_per_core: float | None = None
    download: bool = False
    save_models: bool = False

    def identity(self) -> dict[str, Any]:
        """What the result depends on, as the record's block `id` has it."""
        names = ("task", "task_version", "method", "method_version", "hyperparameters", "sparsity", "seed", "budget")
        out = {name: getattr(self, name) for name in (*names, "precision", "kernel")}
        out["hyperparameters"] = dict(self.hyperparameters)
        out |= {"device": self.device.split(":")[0], "threads": self.threads, "data": self.data}
        out |= {"recipe": dict(self.recipe)} if self.recipe else {}
        out |= {"wrapped_versions": dict(self.wrapped_versions)} if self.wrapped_versions else {}
        out |= {"definition": defined(self.definition, self.data)} if self.definition else {}
        return out | ({} if self.allocator == "system" else {"allocator": self.allocator})

    @property
    def key(self) -> str:
        """The first 12 hex digits of the sha256 of schema and identity in canonical JSON."""
        return key_of(self.identity())

    def to_json(self) -> dict[str, Any]:
        """A plain dict that JSON carries unchanged."""
        return asdict(self) | {"plugins": list(self.plugins)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Run:
        """The run of a `to_json`; TypeError for unknown fields."""
        return cls(**{**plain, "plugins": tuple(plain.get("plugins", ()))})

    def __str__(self) -> str:
        sparsity = "dense" if self.sparsity is None else f"{self.sparsity:g}"
        return f"{self.key} {self.method} {self.task} {sparsity} seed {self.seed}"


def key_of(identity: Mapping[str, Any]) -> str:
    """The key of an identity; ValueError for numbers that are not finite."""
    text = json.dumps({"schema": SCHEMA, **identity}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def defined(definition: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What of a definition the result depends on: in place of the folder's path stands the data's fingerprint."""
    source = definition["data"]
    if isinstance(source, Mapping) and "folder" in source:
        source = {**source, "folder": data}
    return {**definition, "data": source}


def expand(
    plan: Plan,
    plugins: Sequence[str] = (),
    data_root: str | None = None,
    download: bool = False,
    save_models: bool = False,
    absent: bool = False,
) -> list[Run]:
    """The runs of a plan, each once, seed by seed; a method that trains every weight runs once per task and seed.

    Prepares the data of every task: DataError where it is missing, or, if it may be `absent`, runs whose `data` is "",
    which say what a plan costs and have no key of a record. Broken for a method or a task that cannot be loaded,
    and for a method that wraps such a one; PlanError for a run that no record can hold.
    """
    from dstbench.suite import record
    from dstbench.suite.planfile import PlanError

    shared = Run("", "", budget=plan.budget, kernel=plan.kernel, device=resolve(plan.device), threads=plan.threads)
    data_root = None if data_root is None else str(Path(data_root).absolute())
    shared = replace(shared, allocator=plan.allocator, data_root=data_root, download=download)
    shared = replace(shared, timeout=plan.timeout, watts_per_core=plan.watts_per_core, save_models=save_models)
    methods = [_with_method(plan, name, given, plugins) for name, given in plan.chosen()]
    tasks = [_with_task(plan, entry, plugins, data_root, download, absent) for entry in plan.entries(plugins).values()]
    runs: dict[str, Run] = {}
    for seed in dict.fromkeys(plan.seeds):
        for task in tasks:
            for sparse, method in methods:
                for sparsity in plan.sparsity if sparse else (None,):
                    files = tuple(dict.fromkeys((*method["plugins"], *task["plugins"])))
                    run = replace(shared, **{**task, **method, "plugins": files}, sparsity=sparsity, seed=seed)
                    if run.key not in runs and run.data and (reason := record.refused(record.empty(run))):
                        raise PlanError(f"{run.method} on {run.task} cannot be run, as no record can hold it: {reason}")
                    runs.setdefault(run.key, run)
    return list(runs.values())


def resolve(device: str) -> str:
    """The device that "auto" means here: cuda where there is one, else cpu; PlanError for one that is not there."""
    if device == "cpu":
        return device
    import torch

    from dstbench.suite.planfile import PlanError

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if cuda else "cpu"
    kind, _, number = device.partition(":")
    if (kind == "mps" and torch.backends.mps.is_available()) or (kind == "cuda" and int(number or 0) < cuda):
        return device
    there = f"cuda:0 to cuda:{cuda - 1} alone" if cuda and kind == "cuda" else "none"
    raise PlanError(f"device {device!r}: torch finds {there} on this machine; take cpu or auto")


def own_data(task: Task, data_root: str | None, download: bool) -> Task:
    """The task with the user's data folder."""
    return replace(task, root=Path(data_root) if data_root else None, download=download)


def _with_method(
    plan: Plan, name: str, given: Mapping[str, Any], plugins: Sequence[str]
) -> tuple[bool, dict[str, Any]]:
    entry = registry.find("method", name, plugins)
    given = registry.nondefault(entry, {**given, **_set(plan, name, plugins)})
    wrapped = registry.wrapped(entry, given)
    for inner in wrapped:
        inner.load()
    versions = {inner.name: inner.version for inner in wrapped if inner.version != 1}
    found = {"method": name, "method_version": entry.version, "wrapped_versions": versions, "hyperparameters": given}
    return registry.sparse(entry, given), {**found, "plugins": _file(entry, plugins)}


def _with_task(
    plan: Plan, entry: registry.Entry, plugins: Sequence[str], root: str | None, download: bool, absent: bool
) -> dict[str, Any]:
    name, definition = entry.name, {} if entry.origin == "built-in" else dict(entry.definition)
    recipe = registry.nondefault(entry, _set(plan, name, plugins))
    task = own_data(registry.task(name, plugins, recipe, definition), root, download)
    version, data = task.version, _fingerprint(name, task, absent)
    recipe.pop("precision", None)  # has a place of its own
    precision = plan.precision or task.recipe.precision
    found = {"task": name, "task_version": version, "recipe": recipe, "precision": precision, "data": data}
    found |= {"definition": definition} if definition else {}
    return {**found, "plugins": _file(entry, plugins)}


def _file(entry: registry.Entry, plugins: Sequence[str]) -> list[str]:
    """The plugin file that an entry is of, if it is of one: no run executes others."""
    return [file for file in plugins if entry.origin == f"plugin {Path(file).resolve()}"]


def _fingerprint(name: str, task: Task, absent: bool) -> str:
    """That of the task's data, made sure to be there; RegistryError for an error of the task's own, and for no text.

    "" where the data is missing and may be `absent`.
    """
    from dstbench.suite.task import DataError

    try:
        task.prepare()
        found = task.fingerprint()
    except DataError:
        if absent:
            return ""
        raise
    except registry.RegistryError:
        raise
    except FAILURES as error:
        raise registry.RegistryError(f"{name}: its data cannot be had: {why(error)}") from error
    if not isinstance(found, str):
        raise registry.RegistryError(f"{name}: fingerprint() returned {shown(found)}; 12 hex digits are expected")
    return str(found)


def _set(plan: Plan, name: str, plugins: Sequence[str]) -> dict[str, Any]:
    from dstbench.suite.planfile import target

    both = {
        **registry.methods(plugins),
        **registry.tasks(plugins),
        **{named: registry.Entry(named, "") for named in plan.names()},
    }
    pairs = ((target(key, both), value) for key, value in plan.set.items())
    return {field: value for (owner, field), value in pairs if owner == name}
