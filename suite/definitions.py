"""Definitions: tasks described in a plan or a task file, data, network and recipe, in place of a name.

    name: flowers/resnet18
    data: {folder: flowers, size: 64}
    model: timm:resnet18
    recipe: {epochs: 10, batch: 64}

What becomes of one is the business of `dstbench.tasks.compose`, which is known here by name alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dstbench.suite import plantext, values
from dstbench.suite.plantext import PlanError, Where
from dstbench.suite.plugins import FAILURES, why
from dstbench.suite.registry import Broken, Entry, Files, RegistryError, find, nested
from dstbench.suite.words import shown

NAMED = r"^[A-Za-z0-9][\w.:+-]*(/[\w.:+-]+)*$"
ORIGIN = "task file "
FORM = "{name: …, data: …, model: …}"
FAULTY = "faulty"  # the target of the entry of a definition with mistakes
COMPOSER = "dstbench.tasks.compose"  # what makes tasks of definitions, and of names that no table has


class Source(BaseModel):
    """Where images come from: a folder or a data set by name; their size (0: their own) and classes (0: any number)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = ""
    name: str = ""
    size: Annotated[int, Field(ge=4, le=4096)] = 0
    classes: Annotated[int, Field(ge=2, le=10**6)] = 0

    @model_validator(mode="after")
    def _one(self) -> Source:
        if bool(self.folder) == bool(self.name):
            raise ValueError("give {folder: PATH}, or the name of a data set")
        return self


def _source(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


class Definition(BaseModel):
    """A task: `arguments` go to the model, `recipe` holds fields of Recipe, and `epochs`; others as in VisionTask.

    Without `pad` and `flip` images are augmented as is usual for the data set, those of a folder not at all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=NAMED)]
    data: Annotated[Source, BeforeValidator(_source)]
    model: Annotated[str, Field(min_length=1)]
    recipe: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    dense: list[str] = []
    pad: Annotated[int | None, Field(ge=0, le=512)] = None
    flip: bool | None = None
    target: Annotated[float | None, Field(allow_inf_nan=False)] = None

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it: a default that is added later changes no identity."""
        found = self.model_dump(exclude_defaults=True)
        data = found["data"]
        return values.plain(found | {"data": data["name"] if data.keys() == {"name"} else data})

    def entry(self, origin: str) -> Entry:
        """Its entry for the registry."""
        return entry(self.plain(), origin) if self.model else Entry(self.name, FAULTY, origin=origin)


def entry(definition: Mapping[str, Any], origin: str = "definition") -> Entry:
    """The entry of a definition in plain values, as a Run carries it."""
    name, made = definition["name"], composer()
    given = {"version": made.VERSION, "origin": origin, "definition": dict(definition)}
    return Entry(name, made.TARGET, name.partition("/")[0], **given)


def by_name(name: str) -> Entry | None:
    """The task `<data>/<model>` that no table has, or None; RegistryError where its model is a slip."""
    try:
        return composer().by_name(name)
    except ValueError as error:
        raise RegistryError(f"{name}: {error}") from None


def found(name: str, plugins: Files = (), definition: Mapping[str, Any] = MappingProxyType({})) -> Entry:
    """The entry of a task by its definition where there is one, else by its name as in `registry.find`."""
    return entry(definition) if definition else find("task", name, plugins)


def composer() -> Any:
    """The module `COMPOSER`."""
    return importlib.import_module(COMPOSER)


def load(entry: Entry) -> Any:
    """The task of an entry that has a definition; Broken says what does not fit, DataError what is not there."""
    from dstbench.suite.task import DataError

    module, _, attribute = entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute).of(entry.definition)
    except DataError:
        raise
    except FAILURES as error:
        text = str(error) if isinstance(error, ValueError | TypeError) else why(error)
        raise Broken(text if text.startswith(entry.name) else f"{entry.name}: {text}") from error


def read(path: Path) -> list[Definition]:
    """The definitions of a task file; PlanError names all mistakes.

    A file holds one definition, a list of them, or a mapping with the key `tasks`, as a plan does.
    """
    data = plantext.load(path)
    items: dict[tuple[Any, ...], Any] = {(): data}
    if isinstance(data, Mapping) and "tasks" in data:
        listed = data["tasks"] if isinstance(data["tasks"], list) else [data["tasks"]]
        items = {("tasks", i): item for i, item in enumerate(listed) if not isinstance(item, str)}
    elif isinstance(data, list):
        items = {(i,): item for i, item in enumerate(data)}
    found, mistakes = _parsed(items, path, plantext.places(path, data))
    if mistakes or not items:
        raise PlanError("\n".join(mistakes) or f"{path}: no task is defined in it; {FORM}")
    return [*found.values()]


def within(path: Path, tasks: Any, known: Mapping[str, Entry]) -> tuple[dict[str, Definition], list[str]]:
    """Name -> definition of those in a plan's list of tasks, and a line for each mistake; `known`: names taken.

    A definition with mistakes is there too, so that nothing else is said of its name: its entry's target is `FAULTY`.
    """
    listed = tasks if isinstance(tasks, list) else []
    items = {(i,): item for i, item in enumerate(listed) if isinstance(item, Mapping)}
    where = plantext.places(path, tasks)
    found, mistakes = _parsed(items, path, where)
    for name, entry in {**composed([*found.values()], {}), **known}.items():
        if name not in found:
            continue
        place = next(place for place, item in items.items() if named(item) == name)
        text = f"{name!r} is taken already ({entry.origin}): give the definition another name"
        mistakes.append(f"{where(place)}: {text}")
    return found, mistakes


def named(task: Any) -> str:
    """The name of a task: itself, or that of its definition."""
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", task)
    return name if isinstance(name, str) else ""


def item(task: Any) -> Any:
    """A task of a plan's list: a name, or a definition that was read."""
    if isinstance(task, str | Definition):
        return task
    raise ValueError(f"a task's name is expected, or {FORM}")


def composed(tasks: Sequence[Any], known: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of names `<data>/<model>` among these that no table has; broken where the model is a slip."""
    found: dict[str, Entry] = {}
    for name in {named(task) for task in tasks} - known.keys():
        try:
            entry = by_name(name)
        except RegistryError as error:
            entry = Entry(name, "", broken=str(error))
        found |= {name: entry} if entry else {}
    return found


def _parsed(items: Mapping[tuple[Any, ...], Any], path: Path, where: Where) -> tuple[dict[str, Definition], list[str]]:
    """Name -> definition, and a line for each mistake; `items`: place in the file -> what stands there."""
    found: dict[str, Definition] = {}
    mistakes: list[str] = []
    for place, given in items.items():
        if not isinstance(given, Mapping):
            mistakes.append(f"{where(place)}: {shown(given)}: {FORM} is expected")
            continue
        made, wrong = _parse(given, path.absolute().parent, partial(_below, where, place))
        mistakes += wrong
        made = made or Definition.model_construct(name=named(given), model="")
        if made.name and made.name in found:
            mistakes.append(f"{where(place)}: {made.name!r} is defined twice")
        found[made.name] = made
    return found, mistakes


def _parse(given: Any, base: Path, where: Where) -> tuple[Definition | None, list[str]]:
    """A definition, its folder made absolute from `base`, or None; and a line for each mistake."""
    try:
        found = Definition.model_validate(given)
    except ValidationError as error:
        return None, plantext.lines(error, where, _choices)
    if found.data.folder:
        try:
            folder = str((base / Path(found.data.folder).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            return None, [f"{where(('data', 'folder'))}: {shown(found.data.folder)}: {error}"]
        found = found.model_copy(update={"data": found.data.model_copy(update={"folder": folder})})
    recipe, mistakes = _recipe(found.name, found.recipe, where)
    found = found.model_copy(update={"recipe": recipe})
    mistakes += [f"{where(place)}: {found.name}: {text}" for place, text in composer().problems(found.plain())]
    return (None if mistakes else found), mistakes


def entries(path: Path) -> list[Entry]:
    """The entries of a task file; RegistryError names all mistakes."""
    try:
        now = path.stat()
        return [*_entries(path, now.st_mtime_ns, now.st_size)]
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from None


@lru_cache(maxsize=64)
def _entries(path: Path, *changed: int) -> tuple[Entry, ...]:
    try:
        return tuple(made.entry(f"{ORIGIN}{path}") for made in read(path))
    except PlanError as error:
        raise RegistryError(str(error)) from None


def _below(where: Where, place: Sequence[Any], location: Sequence[Any]) -> str:
    return where((*place, *location))


def _choices(location: Sequence[Any]) -> list[str]:
    return list(Source.model_fields if location[0] == "data" else Definition.model_fields)


def _recipe(name: str, given: Mapping[str, Any], where: Where) -> tuple[dict[str, Any], list[str]]:
    """The recipe flat, with checked values, and mistakes."""
    from dstbench.suite.recipe import Recipe

    flat = dict(_flat(given))
    some = Recipe(steps=1, batch=1, lr={"sgd": 0.1, "adam": 0.1})
    places = {key: place for key, (place, _) in flat.items()}
    wanted = {key: value for key, (_, value) in flat.items()}
    epochs = wanted.pop("epochs", None)
    good, errors = values.check(f"{name}.recipe", some, wanted)
    mistakes = [f"{where(('recipe', *places[key]))}: {text}" for key, text in errors.items()]
    if epochs is not None:
        try:
            good["epochs"] = values.coerce(Annotated[float, Field(gt=0, le=1e6)], epochs)
        except ValueError as error:
            mistakes.append(f"{where(('recipe', 'epochs'))}: {name}.recipe.epochs is {epochs}: {error}")
        if "steps" in wanted:
            mistakes.append(f"{where(('recipe', 'steps'))}: {name}.recipe has epochs and steps; give one of them")
    # Schedule and milestones go together, others alone: what they make of each other is seen where the task is made.
    pair: dict[str, Any] = {key: good[key] for key in ("schedule", "milestones") if key in good}
    alone = [{key: value} for key, value in good.items() if key not in (*pair, "epochs", "accumulate")]
    for part in [pair, *alone]:
        try:
            replace(some, **nested(some, part))
        except ValueError as error:
            key, *_ = [key for key in part if f"recipe.{key}" in str(error)] or part
            mistakes.append(f"{where(('recipe', *places[key]))}: {name}: {error}")
    return {key: values.plain(value) for key, value in good.items()}, mistakes


def _flat(given: Mapping[Any, Any], above: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[tuple[Any, ...], Any]]]:
    """Dotted key -> (its place, its value)."""
    for key, value in given.items():
        if isinstance(value, Mapping) and not above:
            yield from _flat(value, (key,))
        else:
            yield ".".join(map(str, (*above, key))), ((*above, key), value)
