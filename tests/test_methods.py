"""The registry's strings are those of the classes, and listing imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import is_dataclass

import pytest

from methods import METHODS
from suite.method import Method

QUICK = ("dense", "static", "magnitude", "set", "rigl", "linbreg", "adabreg", "ml_linbreg")
VARIANTS = ("dense:sgd", "dense:adam", "linbreg:ema", "linbreg:heavy_ball", "ml_linbreg:heavy_ball")
NAMES = QUICK + VARIANTS


def test_names() -> None:
    assert sorted(entry.name for entry in METHODS) == sorted(NAMES)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_strings_are_those_of_the_class(entry) -> None:
    kind = entry.load()
    assert issubclass(kind, Method) and is_dataclass(kind) and kind.__doc__
    assert (kind.name, kind.family) == (entry.name.partition(":")[0], entry.family)
    assert (kind.citation, kind.version, kind.sparse) == (entry.citation, entry.version, entry.sparse)
    assert "arXiv" in kind.citation or not kind.sparse


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_presets_make_an_instance_that_holds_them(entry) -> None:
    found = entry.load()(**entry.presets).hyperparameters()
    assert entry.presets.items() <= found.items()
    assert found["sparsity"] == 0.9 and found["budget"] == 1.0


def test_listing_imports_no_torch() -> None:
    code = "import sys, methods; assert 'torch' not in sys.modules, 'torch'; print(len(methods.METHODS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(len(NAMES))
