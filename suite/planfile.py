"""Plan files: YAML read with line numbers, validated at once, every mistake named with its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, field_validator

from dstbench.suite import definitions, fields, kernels, plantext, registry
from dstbench.suite.definitions import Definition
from dstbench.suite.plantext import PlanError as PlanError
from dstbench.suite.plantext import Where
from dstbench.suite.registry import Broken, Entry
from dstbench.suite.values import near
from dstbench.suite.words import shown

FOLDER = Path(__file__).parent / "plans"
Share = Annotated[float, BeforeValidator(fields.sparsity)]
Named = Annotated[str | Definition, PlainValidator(definitions.item)]
Chosen = Annotated[str | dict[str, dict[str, Any] | None], BeforeValidator(fields.method)]


class Plan(BaseModel):
    """What to run: every method × task × sparsity × seed; `set` overrides fields, `{"rigl.alpha": 0.1}`.

    A task is a name, or a definition, see `definitions`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    methods: list[Chosen] = Field(min_length=1)
    tasks: list[Named] = Field(min_length=1)
    sparsity: list[Share] = Field(default=[0.9], min_length=1)
    seeds: Annotated[list[int], BeforeValidator(fields.seeds)] = Field(default=[0], min_length=1)
    budget: Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False)] = 1.0
    kernel: str = "masked"
    device: Annotated[str, BeforeValidator(fields.device)] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    allocator: Literal["system", "tuned"] = "system"
    timeout: Annotated[float | None, BeforeValidator(fields.seconds)] = 24 * 3600.0
    watts_per_core: Annotated[float | None, Field(gt=0, le=1e4, allow_inf_nan=False)] = None
    set: dict[str, Any] = {}

    @field_validator("sparsity", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value

    def chosen(self) -> list[tuple[str, dict[str, Any]]]:
        """The methods as (name, hyper-parameters of the list)."""
        pairs: Iterator[list[tuple[str, Any]]] = (
            [(m, {})] if isinstance(m, str) else list(m.items()) for m in self.methods
        )
        return [(name, dict(given or {})) for pair in pairs for name, given in pair]

    def names(self) -> list[str]:
        """The names of the tasks, each once."""
        return list(dict.fromkeys(definitions.named(task) for task in self.tasks))

    def entries(self, plugins: Sequence[str] = ()) -> dict[str, Entry]:
        """Name -> entry of the tasks; RegistryError for a name that nothing has."""
        own = {task.name: task.entry("plan") for task in self.tasks if isinstance(task, Definition)}
        return {name: own.get(name) or registry.find("task", name, plugins) for name in self.names()}


def read(plan: str | Path = "quick", options: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Plan:
    """The plan of a file, or an embedded one by name, with `options` in place of its keys.

    Options are those of the command line: key of the plan -> value; "set" adds to the plan's. PlanError names all
    mistakes.
    """
    path = locate(plan)
    data = _load(path)
    methods, tasks = registry.methods(plugins), registry.tasks(plugins)
    options = {k: v for k, v in (options or {}).items() if v is not None}
    own, mistakes = definitions.within(path, data.get("tasks"), {**methods, **tasks})
    given = [name for name, entry in tasks.items() if entry.origin.startswith(definitions.ORIGIN)]
    if given and "tasks" not in options and not {*given} & {*map(definitions.named, _list(data.get("tasks")))}:
        options["tasks"] = given  # of the files that were given: none is named, so that all are meant
    merged: dict[str, Any] = {**data, **options}
    if _list(merged.get("tasks")):
        merged["tasks"] = [own.get(definitions.named(task), task) for task in merged["tasks"]]
        tasks |= {name: made.entry(f"plan {path}") for name, made in own.items()}
        tasks |= definitions.composed(merged["tasks"], tasks)
    places: dict[str, tuple[tuple[Any, ...], Any]] = {}
    if not isinstance(data.get("set"), Mapping | None):
        merged["set"] = data["set"]  # refused below, whatever the command line adds
    else:
        places = _flat(data.get("set") or {}, methods, tasks)
        merged["set"] = {key: value for key, (_, value) in places.items()} | options.get("set", {})
    where = _places(path, data, options, {key: location for key, (location, _) in places.items()})
    try:
        found = Plan.model_validate(merged)
    except ValidationError as error:
        mistakes += plantext.lines(error, where, lambda _: list(Plan.model_fields))
        wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        parts = {k: [] if k in wrong else merged.get(k, []) for k in ("methods", "tasks", "set")}
        parts |= {"kernel": str(merged.get("kernel", "masked")), "allocator": "system"}
        found = Plan.model_construct(**{**parts, "set": dict(parts["set"] or {})})
    mistakes += _names(found, {"method": methods, "task": tasks}, where)
    if mistakes:
        raise PlanError("\n".join(mistakes))
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def locate(plan: str | Path) -> Path:
    """The file of a plan, given by path or by the name of an embedded one; PlanError if there is none."""
    embedded = {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}
    if str(plan) in embedded:
        return embedded[str(plan)]
    path = Path(plan)
    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else "no such file"
        raise PlanError(f"plan {str(plan)!r}: {reason}, and the embedded plans are {', '.join(embedded)}")
    return path


def target(key: str, names: Iterable[str]) -> tuple[str, str]:
    """A key of `set` as (name, field): the longest name that it starts with; ("", "") if there is none."""
    name = max((n for n in names if key.startswith(f"{n}.")), key=len, default="")
    return name, key[len(name) + 1 :] if name else ""


def _load(path: Path) -> Any:
    data = plantext.load(path)
    if not isinstance(data, dict):
        raise PlanError(f"{path}: a plan is a mapping with the keys {', '.join(Plan.model_fields)}")
    return data


def _flat(
    given: Mapping[Any, Any], methods: Mapping[str, Entry], tasks: Mapping[str, Entry], above: tuple[Any, ...] = ()
) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Key of `set` -> (its place in the file, its value): a mapping under a name, or under a task's field, is nested.

    `{rigl: {alpha: 0.1}}` is `{rigl.alpha: 0.1}`. A mapping under a method's field is that field's value.
    """
    found: dict[str, tuple[tuple[Any, ...], Any]] = {}
    for key, value in given.items():
        path = (*above, key)
        whole = ".".join(map(str, path))
        name, field = target(whole, {**methods, **tasks})
        nested = isinstance(value, Mapping) and value and (not field or name in tasks)
        new = _flat(value, methods, tasks, path) if nested else {whole: (("set", *path), value)}
        if twice := sorted(found.keys() & new.keys()):
            raise PlanError(f"set: {', '.join(twice)} is given twice, nested and by its whole name; give it once")
        found |= new
    return found


def _places(path: Path, data: Any, options: Mapping[str, Any], flat: Mapping[str, Sequence[Any]]) -> Where:
    """Where a key of the plan stands: the option, or the file and its line; `flat`: the paths of the keys of `set`."""
    inside = plantext.places(path, data)

    def where(location: Sequence[Any]) -> str:
        key = location[0] if location else None
        if key in options and not (key == "set" and location[-1] in flat and location[-1] not in options["set"]):
            return f"--{key}".replace("_", "-")
        return inside(flat.get(location[-1], location) if key == "set" else location)

    return where


def _names(plan: Plan, known: Mapping[str, Mapping[str, Entry]], where: Where) -> Iterator[str]:
    """Mistakes in the names of methods, tasks, hyper-parameters and recipe fields."""
    for index, chosen in enumerate(plan.methods):
        for name, given in {chosen: None}.items() if isinstance(chosen, str) else chosen.items():
            if name not in known["method"]:
                yield f"{where(('methods', index))}: {registry.miss('method', name, known['method'])}"
            elif broken := known["method"][name].broken:
                yield f"{where(('methods', index))}: {_refusal(known['method'][name], broken)}"
            else:
                for field, text in _wrong(known["method"][name], given or {}):
                    yield f"{where(('methods', index, name, field))}: {text}"
    for index, name in enumerate(definitions.named(task) for task in plan.tasks):
        if name in known["task"] and known["task"][name].target == definitions.FAULTY:
            continue  # said already
        if name not in known["task"]:
            yield f"{where(('tasks', index))}: {registry.miss('task', name, known['task'])}"
        elif broken := known["task"][name].broken:
            yield f"{where(('tasks', index))}: {_refusal(known['task'][name], broken)}"
    try:
        kernels.known(plan.kernel)
        if plan.kernel == "sparseprop":  # to know whether it is installed takes torch
            kernels.get(plan.kernel)
    except ValueError as error:
        yield f"{where(('kernel',))}: {error}"
    if plan.allocator == "tuned":
        from dstbench.suite.kernels import allocator

        if why := allocator.unavailable():
            yield f"{where(('allocator',))}: {why}"
    both = {**known["method"], **known["task"]}
    used = {name for name, _ in plan.chosen()} | {*plan.names()}
    owned: dict[str, dict[str, Any]] = {}
    for (name, field), value in ((target(key, both), value) for key, value in plan.set.items() if key not in both):
        if name in used and not both[name].broken:
            owned.setdefault(name, {})[field] = value
    # What is wrong alone may be right together, as a schedule and its milestones.
    amiss = {name: wrong for name, given in owned.items() if (wrong := _wrong(both[name], given))}
    for key, value in plan.set.items():
        name, field = target(key, both)
        place = where(("set", key))
        if key in both:
            yield f"{place}: {key!r} is {shown(value)}: write {key}.FIELD=VALUE, or in a plan {key}: {{FIELD: VALUE}}"
        elif not name:
            yield f"{place}: {key!r} names no METHOD_OR_TASK.FIELD; {near(key.partition('.')[0], list(both))}"
        elif name not in used and plan.methods and plan.tasks:
            yield f"{place}: {key!r}: {name} is not in this plan, which has {', '.join(sorted(used))}"
        elif name in amiss:
            given = owned[name]
            texts = [text for _, text in _wrong(both[name], {field: value})]
            if field == next(iter(given)) and not any(_wrong(both[name], {f: v}) for f, v in given.items()):
                texts = [amiss[name][0][1]]
            yield from (f"{place}: {text}" for text in texts)


def _wrong(entry: Entry, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not given:
        return []
    if "sparsity" in given:
        return [("sparsity", f"{entry.name}.sparsity: the sparsity is a key of the plan, or the option --sparsity")]
    from dstbench.suite.task import DataError

    try:
        values, errors = registry.check(entry, given)
        return list(errors.items()) or registry.refused(entry, values)
    except (Broken, DataError) as error:
        return [("", str(error))]


def _refusal(entry: Entry, why: str) -> str:
    if why.startswith(entry.name):
        return why
    return f"{entry.name!r} cannot run: {entry.origin} is broken: {why}"
