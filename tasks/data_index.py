"""Data sets that are no images, by name; nothing heavy is imported to list them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dstbench.suite.values import near

LOADERS: Mapping[str, str] = {
    "breast_cancer": "dstbench.tasks.data_tabular:breast_cancer",
    "wine": "dstbench.tasks.data_tabular:wine",
    "iris": "dstbench.tasks.data_tabular:iris",
    "diabetes": "dstbench.tasks.data_tabular:diabetes",
    "embedded_text": "dstbench.tasks.data_text:embedded",
    "tinyshakespeare": "dstbench.tasks.data_text:tinyshakespeare",
    "modular_addition": "dstbench.tasks.data_made:modular_addition",
    "digit_addition": "dstbench.tasks.data_made:digit_addition",
    "listops": "dstbench.tasks.data_made:listops",
    "sparse_parity": "dstbench.tasks.data_made:sparse_parity",
    "mnist1d": "dstbench.tasks.data_made:mnist1d",
}


def load(name: str, root: Path | None = None, download: bool = False) -> Any:
    """The data set `name` under `root` (default: the folder `data`), read once a process.

    Raises:
        DataError: If it is missing or corrupt.
        ValueError: For an unknown name.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; {near(name, [*LOADERS])}")
    return _load(name, Path(root or "data").absolute(), download)


@cache
def _load(name: str, root: Path, download: bool) -> Any:
    module, _, attribute = LOADERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(root, download)
