"""Tasks that nobody wrote: any data set of images, or a folder of one's own, with any network.

A name `<data>/<model>` that no table has is such a task (`cifar10/timm:resnet26d`), and so is what a plan or a task
file defines. The recipe is ours where the user gives none, and is no published one. Nothing heavy is imported to tell
whether a name is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dstbench.suite.registry import Entry
from dstbench.suite.values import near

VERSION = 1  # raised when the default recipes, or what becomes of a definition, change
TARGET = "dstbench.tasks.composed:Composed"
TIMM = "timm:"


def by_name(name: str) -> Entry | None:
    """The task `<data>/<model>` of a registered data set and a registered model or `timm:NAME`.

    Args:
        name: Such as "cifar10/timm:resnet26d".

    Returns:
        Its entry; None where the name is of another form, or data set or model are unknown.

    Raises:
        ValueError: For a name that timm does not know, with near ones.
    """
    data, _, model = name.partition("/")
    if data not in data_sets() or not (model.startswith(TIMM) or model in models()):
        return None
    if model.startswith(TIMM):
        check_timm(model)
    return Entry(name, TARGET, family=data, version=VERSION, definition={"name": name, "data": data, "model": model})


def problems(definition: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], str]]:
    """What is wrong with a definition of the right form: (its place, the text)."""
    data, model = source(definition), definition["model"]
    name, folder = data.get("name"), data.get("folder")
    if name and name not in data_sets():
        yield ("data",), f"unknown data set {name!r}; {near(name, data_sets())}, or {{folder: PATH}}"
    if folder and not os.path.isdir(folder):
        yield ("data", "folder"), f"{folder}: {'it is no folder' if os.path.exists(folder) else 'no such folder'}"
    try:
        if model.startswith(TIMM):
            check_timm(model)
        elif model not in models():
            raise ValueError(f"unknown model {model!r}; {near(model, models())}, or {TIMM}NAME")
    except ValueError as error:
        yield ("model",), str(error)


def source(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Where the images of a definition come from, as a mapping with `folder` or `name`."""
    data = definition["data"]
    return {"name": data} if isinstance(data, str) else dict(data)


def look(folder: Path, size: int = 0) -> tuple[Any, dict[str, int]]:
    """The facts of a folder of images, and the number of images in each split; DataError as its reader has it."""
    from dstbench.tasks import composed

    return composed.look(folder, size)


def data_sets() -> list[str]:
    """The names of data sets."""
    from dstbench.tasks import data

    return data.names()


def models() -> list[str]:
    """The names of our own networks."""
    from dstbench.tasks import models

    return models.names()


def check_timm(model: str) -> None:
    """ValueError for a name, behind "timm:", that timm does not have."""
    import timm

    wanted = model.removeprefix(TIMM)
    if not timm.is_model(wanted):
        found = near(wanted, timm.list_models())
        text = found if found.startswith("did you mean") else "`timm.list_models()` names them all"
        raise ValueError(f"timm has no model {wanted!r}; {text}")
