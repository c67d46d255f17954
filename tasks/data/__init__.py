"""Data sets by name: what there is, how one is added, and loading each once a process; listing imports nothing heavy.

A loader is `loader(root: Path, download: bool) -> Images` (or another kind of data). It raises DataError, before
anything runs, if the data is missing or broken. `@register("name")` adds one; installed packages add theirs as entry
points of the group `dstbench.data`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dstbench.tasks.data.images import Images as Images
    from dstbench.tasks.data.images import shuffled as shuffled
    from dstbench.tasks.data.images import statistics as statistics

Loader = Callable[[Path, bool], Any]
GROUP = "dstbench.data"
HERE = "dstbench.tasks.data"
LOADERS: dict[str, Loader | str] = {  # a loader, or where it is: "module:function"
    "digits": f"{HERE}.digits:digits",
    "mnist5k": f"{HERE}.digits:mnist5k",
    "mnist": f"{HERE}.idx:mnist",
    "fashion_mnist": f"{HERE}.idx:fashion_mnist",
    "kmnist": f"{HERE}.idx:kmnist",
    "cifar10": f"{HERE}.cifar:cifar10",
    "cifar100": f"{HERE}.cifar:cifar100",
    "svhn": f"{HERE}.svhn:svhn",
    "tiny_imagenet": f"{HERE}.tiny_imagenet:tiny_imagenet",
    "imagenet": f"{HERE}.stream:imagenet",
    "embedded_text": f"{HERE}.text:embedded",
    "tinyshakespeare": f"{HERE}.text:tinyshakespeare",
    "breast_cancer": f"{HERE}.tabular:breast_cancer",
    "wine": f"{HERE}.tabular:wine",
    "iris": f"{HERE}.tabular:iris",
    "diabetes": f"{HERE}.tabular:diabetes",
    "modular_addition": f"{HERE}.made:modular_addition",
    "digit_addition": f"{HERE}.made:digit_addition",
    "listops": f"{HERE}.made:listops",
    "sparse_parity": f"{HERE}.made:sparse_parity",
    "mnist1d": f"{HERE}.made:mnist1d",
}


def register(name: str, loader: Loader | str | None = None) -> Any:
    """Add a data set: `register("flowers", load)`, or `@register("flowers")` above its loader.

    Args:
        name: What tasks and plans call it.
        loader: `loader(root, download)`, or where it is, as "module:function".

    Returns:
        The loader; without one, a decorator.

    Raises:
        ValueError: Where another loader has the name.
    """
    if loader is None:
        return lambda found: register(name, found)
    if _place(there := LOADERS.get(name, loader)) != _place(loader):
        raise ValueError(f"register({name!r}): {_place(there)} has this name; give the data set another")
    LOADERS[name] = loader
    return loader


def names() -> list[str]:
    """The names of all data sets: built-in, registered, and of installed packages."""
    return list(dict.fromkeys([*LOADERS, *(point.name for point in importlib.metadata.entry_points(group=GROUP))]))


def load(name: str | Mapping[str, Any], root: Path | None = None, download: bool = False) -> Any:
    """A data set, read once a process.

    Args:
        name: One of `names()`; or, for a folder of your own images, `{"folder": path, "size": pixels}`.
        root: The folder of data sets; by default the folder `data`.
        download: Whether the network may be asked.

    Returns:
        What the loader gives: `Images`, for pictures in memory.

    Raises:
        DataError: If it is missing or corrupt; the text names folder, file and command.
        ValueError: For an unknown name.
    """
    if not isinstance(name, str):
        return _own(**name)
    if name not in LOADERS:
        known = names()
        if name not in known:
            from dstbench.suite.values import near

            raise ValueError(f"unknown data set {name!r}; {near(name, known)}")
    return _load(name, Path(root or "data").expanduser().absolute(), download)


@cache
def _load(name: str, root: Path, download: bool) -> Any:
    loader = LOADERS.get(name)
    if loader is None:
        loader = next(point.load() for point in importlib.metadata.entry_points(group=GROUP) if point.name == name)
    if isinstance(loader, str):
        module, _, function = loader.partition(":")
        loader = getattr(importlib.import_module(module), function)
    return loader(root, download)


def _own(folder: str | Path, size: int = 0) -> Any:
    return _folder(Path(folder).expanduser().absolute(), size)


@cache
def _folder(path: Path, size: int) -> Any:
    from dstbench.tasks.data import own

    return own.load(path, size)


def _place(loader: Loader | str) -> str:
    return loader if isinstance(loader, str) else f"{loader.__module__}:{loader.__qualname__}"


def __getattr__(name: str) -> Any:
    if name in ("Images", "shuffled", "statistics"):  # they load torch
        return getattr(importlib.import_module(f"{HERE}.images"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
