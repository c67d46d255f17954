"""Rows and groups of a table without pandas' union types: each column's type is fixed where the table is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd


def each(table: pd.DataFrame) -> Iterator[Any]:
    """A named tuple a row."""
    return iter(table.itertuples(index=False))


def split(table: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Key and rows of each group, missing values being a key of their own."""
    return iter(table.groupby(by, dropna=False))
