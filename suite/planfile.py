"""Plan files: YAML read with line numbers, validated at once, every mistake named with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dstbench.suite import registry
from dstbench.suite.registry import Broken, Entry
from dstbench.suite.values import near

FOLDER = Path(__file__).parent / "plans"
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
Where = Callable[[Sequence[Any]], str]


def seconds(text: Any) -> Any:
    """ "2h", "1h30m", "90s" or a number of seconds, as seconds; ValueError for anything else."""
    if text is None:
        return text
    parts = re.findall(r"([0-9.]+)\s*([smhd]?)", str(text).strip().lower())
    if not parts or re.sub(r"[0-9.]+\s*[smhd]?\s*", "", str(text).strip().lower()):
        raise ValueError("a time such as 90s, 15m, 2h or 1h30m is expected")
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise ValueError("a time above 0 is expected")
    return total


class PlanError(ValueError):
    """A plan is wrong; the text has one line for each mistake."""


class Plan(BaseModel):
    """What to run: every method × task × sparsity × seed; `set` overrides fields, `{"rigl.alpha": 0.1}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    methods: list[str | dict[str, dict[str, Any] | None]] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    sparsity: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9], min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    kernel: str = "masked"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    allocator: Literal["system", "tuned"] = "system"
    timeout: Annotated[float | None, BeforeValidator(seconds)] = 24 * 3600.0
    watts_per_core: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    set: dict[str, Any] = {}

    @field_validator("sparsity", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    def chosen(self) -> list[tuple[str, dict[str, Any]]]:
        """The methods as (name, hyper-parameters of the list)."""
        pairs: Iterator[list[tuple[str, Any]]] = (
            [(m, {})] if isinstance(m, str) else list(m.items()) for m in self.methods
        )
        return [(name, dict(given or {})) for pair in pairs for name, given in pair]


def read(plan: str | Path = "quick", options: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Plan:
    """The plan of a file, or an embedded one by name, with `options` in place of its keys.

    Options are those of the command line: key of the plan -> value; "set" adds to the plan's. PlanError names all
    mistakes.
    """
    path = locate(plan)
    data = _load(path)
    options = {k: v for k, v in (options or {}).items() if v is not None}
    where = _places(path, data, options)
    if "set" in options and isinstance(data.get("set"), Mapping | None):
        options["set"] = {**(data.get("set") or {}), **options["set"]}
    merged = {**data, **options}
    mistakes: list[str] = []
    try:
        found = Plan.model_validate(merged)
    except ValidationError as error:
        mistakes = [_line(e, where) for e in error.errors()]
        wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        parts = {k: [] if k in wrong else merged.get(k, []) for k in ("methods", "tasks", "set")}
        parts |= {"kernel": str(merged.get("kernel", "masked")), "allocator": "system"}
        found = Plan.model_construct(**{**parts, "set": dict(parts["set"] or {})})
    mistakes += _names(found, plugins, where)
    if mistakes:
        raise PlanError("\n".join(mistakes))
    return found


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


def target(key: str, entries: Mapping[str, Entry]) -> tuple[str, str]:
    """A key of `set` as (name, field): the longest name that it starts with; ("", "") if there is none."""
    name = max((n for n in entries if key.startswith(f"{n}.")), key=len, default="")
    return name, key[len(name) + 1 :] if name else ""


def _load(path: Path) -> Any:
    try:
        data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise PlanError(f"{path}{line}: {(error.problem or 'is no YAML').splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise PlanError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise PlanError(f"{path}: a plan is a mapping with the keys {', '.join(Plan.model_fields)}")
    return data


def _places(path: Path, data: Any, options: Mapping[str, Any]) -> Where:
    def where(location: Sequence[Any]) -> str:
        key = location[0] if location else None
        if key in options and not (key == "set" and location[-1] in (data.get("set") or {})):
            return f"--{key}"
        line = 1
        node: Any = data
        for step in location:
            try:
                positions: Any = node.lc
                line = 1 + (positions.key if hasattr(node, "keys") else positions.item)(step)[0]
                node = node[step]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return f"{path}:{line}"

    return where


def _line(error: Any, where: Where) -> str:
    """One mistake that pydantic found."""
    location = error["loc"]
    key = ".".join(str(part) for part in location if part not in ("str", "dict[str,nullable[dict[str,any]]]"))
    if error["type"] == "extra_forbidden":
        return f"{where(location)}: unknown key {key!r}; {near(str(location[-1]), list(Plan.model_fields))}"
    if error["type"] == "missing":
        return f"{where(())}: the key {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where(location)}: {key} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _names(plan: Plan, plugins: Sequence[str], where: Where) -> Iterator[str]:
    """Mistakes in the names of methods, tasks, hyper-parameters and recipe fields."""
    known = {"method": registry.methods(plugins), "task": registry.tasks(plugins)}
    for index, chosen in enumerate(plan.methods):
        for name, given in {chosen: None}.items() if isinstance(chosen, str) else chosen.items():
            if name not in known["method"]:
                yield f"{where(('methods', index))}: {registry.miss('method', name, known['method'])}"
            else:
                for field, text in _wrong(known["method"][name], given or {}):
                    yield f"{where(('methods', index, name, field))}: {text}"
    for index, name in enumerate(plan.tasks):
        if name not in known["task"]:
            yield f"{where(('tasks', index))}: {registry.miss('task', name, known['task'])}"
    if plan.kernel != "masked":  # to know the others takes torch
        from dstbench.suite import kernels

        try:
            kernels.get(plan.kernel)
        except ValueError as error:
            yield f"{where(('kernel',))}: {error}"
    if plan.allocator == "tuned":
        from dstbench.suite.kernels import allocator

        if why := allocator.unavailable():
            yield f"{where(('allocator',))}: {why}"
    both = {**known["method"], **known["task"]}
    used = {name for name, _ in plan.chosen()} | {*plan.tasks}
    for key, value in plan.set.items():
        name, field = target(key, both)
        place = where(("set", key))
        if not name:
            yield f"{place}: {key!r} names no METHOD_OR_TASK.FIELD; {near(key.partition('.')[0], list(both))}"
        elif name not in used:
            yield f"{place}: {key!r}: {name} is not in this plan, which has {', '.join(sorted(used))}"
        else:
            for _, text in _wrong(both[name], {field: value}):
                yield f"{place}: {text}"


def _wrong(entry: Entry, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not given:
        return []
    if "sparsity" in given:
        return [("sparsity", f"{entry.name}.sparsity: the sparsity is a key of the plan, or the option --sparsity")]
    try:
        values, errors = registry.check(entry, given)
        return list(errors.items()) or registry.refused(entry, values)
    except Broken:  # the run will say so
        return []
