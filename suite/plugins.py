"""Plugin files: loading them by path, and what they registered."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from dstbench import MOVED, ROOMS
from dstbench.suite import settings
from dstbench.suite.words import told

CONTRACT = 2  # version of what plugins are written against: Method, Layer, Task, and when the suite calls what
MARK = "__dstbench__"
DEFINED = (".yaml", ".yml")  # suffixes of files that define tasks without Python
FAILURES = (Exception, SystemExit)  # what a broken plugin may raise without harm to anything else


def load(path: str | Path) -> ModuleType:
    """The module of a plugin file, executed once a process; raises what the file raises.

    What it sets for the whole process (threads, types, chance, signals, the working directory) is set back.
    """
    path = Path(path).resolve()
    name = f"dstbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"no such plugin file: {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file; a plugin is a file that ends in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with settings.kept(), redirect_stdout(sys.stderr):  # what it prints is no output of the command
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def registered(module: ModuleType) -> dict[str, Any]:
    """What a plugin marked by `register`, by name; ValueError if a name is taken twice or nothing is marked."""
    found: dict[str, Any] = {}
    for thing in getattr(module, MARK, []):
        if thing.name in found:
            raise ValueError(f"{module.__file__} registers {thing.name!r} twice")
        found[thing.name] = thing
    if not found:
        raise ValueError(f"{module.__file__} registers nothing; put @register above the class")
    return found


def declared(path: Path) -> dict[str, list[str]]:
    """The names that a file seems to register, read from its text: for files that cannot be executed."""
    names: dict[str, list[str]] = {"method": [], "task": []}
    try:
        tree = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (marks := [d for d in node.decorator_list if _is_register(d)]):
            name = _keyword(marks[0]) or _attribute(node) or default_name(node.name)
            names["method"].append(name)
        elif isinstance(node, ast.Call) and _is_register(node) and node.args and (given := _keyword(node.args[0])):
            names["task"].append(given)
    return names


def mark_class(kind: type, name: str | None, family: str | None, citation: str | None) -> None:
    """Make a class a method: a dataclass with a name; TypeError if it lacks the hooks."""
    if not all(hasattr(kind, hook) for hook in ("setup", "begin", "step")):
        raise TypeError(f"register({kind.__name__}): give a subclass of dstbench.Method, or an instance of a Task")
    given = {"name": name or kind.__dict__.get("name") or default_name(kind.__name__)}
    for key, value in (("family", family), ("citation", citation)):
        if value is not None:
            given[key] = value
    for key, value in given.items():
        setattr(kind, key, value)
    if "__dataclass_fields__" not in kind.__dict__:
        dataclasses.dataclass(kind)


def foreign(thing: Any) -> str:
    """Why a method's class or a task that states another `contract` than ours cannot be used; "" for all others."""
    stated = getattr(thing, "contract", CONTRACT)
    if stated == CONTRACT:
        return ""
    mend = f"install a dstbench of contract {stated}, or port the plugin and let it state `contract = {CONTRACT}`"
    return f"it is written for contract {stated}, this dstbench has contract {CONTRACT}: {mend}"


def default_name(name: str) -> str:
    """MyMethod -> my_method, RigL -> rigl."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def why(error: BaseException) -> str:
    """The kind and the first line of an error; for modules that have moved, also where to."""
    text = told(error).splitlines()[0].strip().removesuffix(":")
    room = str(getattr(error, "name", None) or "").split(".")[0]
    return f"{text}; {MOVED.format(room)}" if isinstance(error, ModuleNotFoundError) and room in ROOMS else text


def _is_register(node: ast.AST) -> bool:
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "id", getattr(node, "attr", None)) == "register"


def _keyword(node: ast.AST) -> str | None:
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((_text(k.value) for k in keywords if k.arg == "name"), None)


def _attribute(node: ast.ClassDef) -> str | None:
    for line in node.body:
        targets = getattr(line, "targets", [getattr(line, "target", None)])
        value = getattr(line, "value", None)
        if value is not None and any(getattr(t, "id", None) == "name" for t in targets):
            return _text(value)
    return None


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
