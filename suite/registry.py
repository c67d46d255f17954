"""Registry: which methods and tasks there are, by name, without importing them.

Built-ins are the tuples `METHODS` and `TASKS` of the packages `methods` and `tasks`; installed packages add entry
points in the groups `dstbench.methods` and `dstbench.tasks`; files given as plugins add what they mark by `@register`.
No source may take a name that another has.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dstbench.suite import plugins as files
from dstbench.suite import settings
from dstbench.suite.values import near
from dstbench.suite.words import shown, told

if TYPE_CHECKING:
    from dstbench.suite.method import Method
    from dstbench.suite.task import Task

T = TypeVar("T")
Files = Iterable[str | Path]
SAID = {"family": str, "citation": str, "version": int, "sparse": bool}  # what a class or task says of itself
KINDS = {"method": ("dstbench.methods", "METHODS"), "task": ("dstbench.tasks", "TASKS")}


class RegistryError(ValueError):
    """A name is unknown, claimed twice or broken, or a hyper-parameter is wrong; the text says how to mend it."""


class Broken(RegistryError):
    """What the name stands for cannot be imported."""


@dataclass(frozen=True)
class Entry:
    """A method (a class) or a task (an instance) by name: light data, `load()` imports it.

    `target` is "module:attribute", or "file.py:name" for a plugin file; `presets` are hyper-parameters that the name
    stands for; `sparse` is False for methods that train every weight; `broken` says why it cannot be loaded;
    `definition` is what a task is made of that no module holds.
    """

    name: str
    target: str
    family: str = ""
    citation: str = ""
    version: int = 1
    presets: Mapping[str, Any] = field(default_factory=dict)
    sparse: bool = True
    origin: str = "built-in"
    broken: str = ""
    definition: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The class or the task; Broken if it cannot be had."""
        if self.broken:
            raise Broken(f"{self.name!r} of {self.origin} is broken: {self.broken}")
        if self.definition:
            from dstbench.suite import definitions

            return definitions.load(self)
        try:
            if ".py:" in self.target:
                path, _, key = self.target.partition(".py:")
                return files.registered(files.load(path + ".py"))[key]
            module, _, attribute = self.target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        except files.FAILURES as error:
            raise Broken(f"{self.name!r} of {self.origin} cannot be loaded: {files.why(error)}") from error


def register(
    thing: T | None = None, /, *, name: str | None = None, family: str | None = None, citation: str | None = None
) -> Any:
    """Mark a method's class, or a task, of a plugin: `@register`, `@register(family="mine")`, `register(task)`.

    A method's name is its attribute `name`, else its class name in lower case with underscores. The class is made a
    dataclass, so that its annotated attributes are hyper-parameters. TypeError for what is neither.
    """
    space = sys._getframe(1).f_globals

    def mark(thing: T) -> T:
        if isinstance(thing, type):
            files.mark_class(thing, name, family, citation)
        elif not isinstance(getattr(thing, "name", None), str) or not hasattr(thing, "recipe"):
            raise TypeError(f"register({thing!r}): give a subclass of dstbench.Method or an instance of a Task")
        space.setdefault(files.MARK, []).append(thing)
        return thing

    return mark if thing is None else mark(thing)


def methods(plugins: Files = ()) -> dict[str, Entry]:
    """Every method, name -> Entry: built-ins, then entry points, then plugin files; RegistryError where names clash."""
    return _entries("method", plugins)


def tasks(plugins: Files = ()) -> dict[str, Entry]:
    """Every task, name -> Entry, as in `methods`."""
    return _entries("task", plugins)


def method(name: str, /, plugins: Files = (), **hyperparameters: Any) -> Method:
    """A new instance of the method; values may come as strings; RegistryError for a wrong name, field or value."""
    return _made(find("method", name, plugins), hyperparameters)


def task(
    name: str,
    /,
    plugins: Files = (),
    recipe: Mapping[str, Any] | None = None,
    definition: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """The task, with recipe fields overridden (`{"steps": 100, "lr.sgd": 0.1}`); RegistryError as in `method`.

    `definition` is that of a task that a plan or a task file defines.
    """
    from dstbench.suite import definitions

    return _made(definitions.found(name, plugins, definition), recipe or {})


def _made(entry: Entry, given: Mapping[str, Any]) -> Any:
    values, errors = check(entry, given)
    if errors := errors or dict(refused(entry, values)):
        raise RegistryError("\n".join(errors.values()))
    return _build(entry, values)


def _build(entry: Entry, values: Mapping[str, Any]) -> Any:
    found = entry.load()
    if isinstance(found, type):
        return found(**{**entry.presets, **values})
    return replace(found, recipe=replace(found.recipe, **nested(found.recipe, values))) if values else found


def refused(entry: Entry, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a method or recipe itself says against values of the right types: (the first field, its text)."""
    try:
        _build(entry, values)
    except files.FAILURES as error:
        text = str(error) if isinstance(error, TypeError | ValueError) else told(error)
        return [(next(iter(values), ""), text if text.startswith(entry.name) else f"{entry.name}: {text}")]
    return []


def find(kind: str, name: str, plugins: Files = ()) -> Entry:
    """The entry of that name; RegistryError suggests near names and names broken plugins.

    Of installed packages, those alone that have the name are loaded.
    """
    if entry := _entries(kind, plugins, name).get(name):
        return entry
    if kind == "task" and "/" in name:
        from dstbench.suite import definitions

        if entry := definitions.by_name(name):
            return entry
    raise RegistryError(miss(kind, name, _entries(kind, plugins)))


def miss(kind: str, name: str, entries: Mapping[str, Entry]) -> str:
    """The text for a name that is not there."""
    text = f"unknown {kind} {name!r}; {near(name, [n for n, e in entries.items() if not e.broken])}"
    for entry in entries.values():
        if entry.broken:
            text += f"; {entry.origin} is broken ({entry.broken})"
    return text


def check(entry: Entry, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Hyper-parameters (of a task: recipe fields, dotted into mappings) as (values, error texts by field)."""
    from dstbench.suite import values

    found = entry.load()
    owner = found if isinstance(found, type) else found.recipe
    return values.check(entry.name, owner, given)


def nondefault(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked values that differ from defaults and presets, as JSON has them; RegistryError for wrong ones."""
    from dstbench.suite import values

    checked, errors = check(entry, given)
    if errors:
        raise RegistryError("\n".join(errors.values()))
    found = entry.load()
    defaults = {**values.defaults(found if isinstance(found, type) else found.recipe), **entry.presets}
    given = {name: values.plain(value) for name, value in checked.items()}
    return {k: v for k, v in given.items() if k not in defaults or values.plain(defaults[k]) != v}


def nested(recipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted overrides as fields: {"lr.sgd": 0.1} -> {"lr": {**recipe.lr, "sgd": 0.1}}."""
    out: dict[str, Any] = {}
    for key, value in sorted(given.items()):
        name, _, part = key.partition(".")
        out[name] = {**out.get(name, getattr(recipe, name)), part: value} if part else value
    return out


def wrapped(entry: Entry, given: Mapping[str, Any] = MappingProxyType({})) -> list[Entry]:
    """The methods that this one runs with these hyper-parameters, as its `names_methods` has it; unknown ones apart."""
    from dstbench.suite import values

    found = entry.load()
    fields = getattr(found, "names_methods", ())
    names = {**values.defaults(found), **entry.presets, **given} if fields else {}
    inner = (_entries("method", (), names[f]).get(names[f]) for f in fields if isinstance(names.get(f), str))
    return [e for e in inner if e]


def sparse(entry: Entry, given: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether sparsity applies to the method with these hyper-parameters, and to those that it wraps."""
    return all(e.sparse for e in (entry, *wrapped(entry, given)))


def _entries(kind: str, plugins: Files, only: str | None = None) -> dict[str, Entry]:
    """Every entry; `only`: of installed packages, those of this name."""
    package, attribute = KINDS[kind]
    found: dict[str, Entry] = {}
    of_files = (entry for path in plugins for entry in _of_file(kind, Path(path)))
    for entry in chain(_built_in(package, attribute), _installed(package, only), of_files):
        first = found.setdefault(entry.name, entry)
        if first.origin != entry.origin:
            both = f"{first.origin} and {entry.origin} both name a {kind} {entry.name!r}"
            raise RegistryError(f"{both}: give one of them another name, or leave it out")
    return found


def _built_in(package: str, attribute: str) -> Sequence[Entry]:
    try:
        return getattr(importlib.import_module(package), attribute)
    except files.FAILURES as error:
        return [Entry(package, package, origin=f"package {package}", broken=files.why(error))]


def _installed(package: str, only: str | None = None) -> Iterator[Entry]:
    for point in importlib.metadata.entry_points(group=package):
        if only not in (None, point.name):
            continue
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        entry = Entry(point.name, point.value, origin=origin)
        try:
            with settings.kept(), redirect_stdout(sys.stderr):  # what it prints is no output of the command
                found = described(entry, point.load())
        except files.FAILURES as error:
            found = replace(entry, broken=files.why(error))
        yield found


def _of_file(kind: str, path: Path) -> list[Entry]:
    path = path.resolve()
    if path.suffix in files.DEFINED:
        from dstbench.suite import definitions

        return definitions.entries(path) if kind == "task" else []
    origin = f"plugin {path}"
    try:
        things = files.registered(files.load(path)).items()
        wanted = [(name, thing) for name, thing in things if isinstance(thing, type) == (kind == "method")]
        return [described(Entry(name, f"{path}:{name}", origin=origin), thing) for name, thing in wanted]
    except files.FAILURES as error:
        seen = files.declared(path)
        names = seen[kind] if any(seen.values()) else [str(path)]
        return [Entry(n, f"{path}:{n}", origin=origin, broken=files.why(error)) for n in names]


def described(entry: Entry, thing: Any) -> Entry:
    """The entry with what the loaded class or task says of itself; broken where it is written for another contract."""
    if not ("__dataclass_fields__" in vars(thing) if isinstance(thing, type) else is_dataclass(thing)):
        raise TypeError(
            f"{entry.target} is no dataclass: give a subclass of Method under @register, or a Task's instance"
        )
    said = {f: getattr(thing, f) for f in SAID if hasattr(thing, f)}
    for name, value in said.items():
        if type(value) is not SAID[name]:
            raise TypeError(f"{entry.target}: {name} is {shown(value)}; {SAID[name].__name__} is expected")
    return replace(entry, **said, broken=files.foreign(thing))
