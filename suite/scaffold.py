"""Scaffold: a plugin file and its test to start from, written from the templates of this package."""

from __future__ import annotations

import importlib.util
import json
import keyword
import os
import re
import shlex
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template

from dstbench.suite import definitions, registry
from dstbench.suite.plugins import CONTRACT
from dstbench.suite.values import near

NAME = "dstbench"
KINDS = ("method", "task")
RUNS = {
    "method": "--methods dense,rigl,{name} --tasks digits/mlp --sparsity 0.9 --seeds 0,1",
    "task": "--methods dense,rigl --tasks {name} --sparsity 0.9 --seeds 0,1",
}


class Refused(ValueError):
    """Nothing was written; the text says why, and how to mend it."""


def write(kind: str, name: str, folder: str | Path = ".", me: str = NAME) -> list[Path]:
    """Write NAME.py and test_NAME.py of a method or task, which say `me` of this program.

    Refused for a name that will not do; nothing is overwritten.
    """
    if kind not in KINDS:
        raise Refused(f"nothing to make as {kind!r}; {near(kind, KINDS)}")
    paths = {Path(folder) / f"{prefix}{name}.py": f"{prefix}{kind}.py.txt" for prefix in ("", "test_")}
    names = {"name": name, "Class": "".join(map(str.capitalize, name.split("_"))), "contract": str(CONTRACT), "me": me}
    templates = {
        path: (resources.files("dstbench.suite") / "templates" / file).read_text("utf-8")
        for path, file in paths.items()
    }
    _check(name, names["Class"], "".join(templates.values()))
    if there := [str(path) for path in paths if path.exists()]:
        raise Refused(f"{' and '.join(there)}: there already; give another name, or another folder by --folder DIR")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, text in templates.items():
            path.write_text(Template(text).substitute(names), encoding="utf-8")
    except OSError as error:
        raise Refused(f"{folder} cannot be written: {error.strerror}; give another folder by --folder DIR") from None
    return list(paths)


def defined(name: str, images: Path, model: str = "timm:resnet18", folder: str | Path = ".", me: str = NAME) -> str:
    """Write the definition of a task on a folder of images, with its sizes and classes, and say what to do with it.

    Args:
        name: Of the task, such as "flowers/resnet18"; the file is flowers_resnet18.yaml.
        images: A folder of class folders, or of splits of them.
        model: Of `dstbench.tasks.models`, or "timm:NAME".
        folder: Where the file goes.
        me: This program, as it was called.

    Returns:
        The file, what is in the folder, and commands.

    Raises:
        Refused: For a name or a model that will not do; nothing is overwritten.
        DataError: Where the folder holds no such images.
    """
    if not re.fullmatch(definitions.NAMED, name):
        raise Refused(
            f"{name!r} cannot name a task: letters, digits and _ will do, parted by /, as in flowers/resnet18"
        )
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.yaml"
    if path.exists():
        raise Refused(f"{path}: there already; give another name, or another folder by --folder DIR")
    if name in registry.tasks() or definitions.by_name(name):
        raise Refused(f"{name!r} is the name of a task already; try my_{name}")
    facts, counts = definitions.composer().look(images.absolute())
    side, batch = max(facts.shape[1:]), next(b for b in (64, 32, 16, 8, 4, 2, 1) if b * 4 <= max(4, facts.train))
    said = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    there = os.path.relpath(images.absolute(), path.absolute().parent)
    text = (
        f"# {said} images; written by `{me} new task {name} --from-folder`\n"
        f"name: {json.dumps(name)}\n"
        "data:\n"
        f"  folder: {json.dumps(there, ensure_ascii=False)}\n"
        f"  size: {side}\n"
        f"  classes: {facts.classes}\n"
        f"model: {json.dumps(model)}\n"
        f"recipe: {{epochs: 10, batch: {batch}}}\n"
        f"pad: {side // 8}  # pixels of zeros around, for random crops\n"
        "flip: true  # mirror at random: not for letters, digits or sides of a body\n"
    )
    done = False
    try:
        content = text.encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        registry.task(name, [path])
        done = True
    except registry.RegistryError as error:
        raise Refused(str(error)) from None
    except UnicodeEncodeError:
        raise Refused(f"{images}: its path is no UTF-8, and a file of YAML cannot name it; rename the folder") from None
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}; give another folder by --folder DIR") from None
    finally:
        if not done:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    file = shlex.quote(str(path))
    return "\n".join(
        [
            f"wrote {file}: {facts.classes} classes, {said} images of {side}x{side}; make it yours, then:\n",
            f"  {me} check {file}",
            f"  {me} --task-file {file} --methods dense,rigl,ml_linbreg --sparsity 0.9 --seeds 0,1,2",
        ]
    )


def advice(kind: str, name: str, paths: list[Path], me: str = NAME) -> str:
    """What to do with the files of `write`, as commands of `me`, the program as it was called."""
    file, test = (shlex.quote(str(path)) for path in paths)
    check = f"{me} check {file}"
    lines = [
        f"pytest {test}  # begins with the whole of: {check}" if kind == "method" else f"{check} && pytest {test}",
        f"{me} run --plugin {file} {RUNS[kind].format(name=name)}",
        f"{me} report --plugin {file}",
    ]
    return "\n".join([f"wrote {file} and {test}; make it yours, then:", "", *(f"  {line}" for line in lines)])


def _check(name: str, kind: str, templates: str) -> None:
    """Refuse a name that is none in Python, or that something else has."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        other = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
        other = other if re.match("[a-z]", other) and not keyword.iskeyword(other) else f"my_{other}".strip("_")
        raise Refused(f"{name!r} cannot name a file and a class: small letters, digits and _ will do, such as {other}")
    for what, entries in (("method", registry.methods()), ("task", registry.tasks())):
        if name in entries:
            raise Refused(f"{name!r} is the name of a {what} already ({entries[name].origin}); try my_{name}")
    if importlib.util.find_spec(name) is not None:
        raise Refused(f"{name!r} is the name of a module that {name}.py would hide; try my_{name}")
    if re.search(rf"import .*\b{kind}\b", templates):
        raise Refused(f"{name!r} would make a class {kind}, a name that the file imports; try my_{name}")
