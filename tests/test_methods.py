"""The registry's strings are those of the classes, and listing imports nothing heavy."""

from __future__ import annotations

import ast
import inspect
import statistics
import subprocess
import sys
import textwrap
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from dstbench.methods import METHODS
from dstbench.suite import registry
from dstbench.suite.catalogue import markdown, sections
from dstbench.suite.method import Method

EXPECTED = """
dense dense:sgd dense:adam small_dense small_dense:flops prox_sgd masked_sgd
static static:erk_plus snip grasp synflow
magnitude oneshot oneshot:180_20 imp imp:lr ste str granet granet:dense wanda woodfisher
set set:itop rigl rigl:itop rigl:svite rigl:ml_linbreg snfs mest mest:em_s topkast acdc
dsr deep_rewiring gse cht cht:s cht:ss chase
linbreg linbreg:ema linbreg:heavy_ball linbreg:layer adabreg ml_linbreg ml_linbreg:heavy_ball ml_linbreg:layer
rmda dessilbi nuclear_linbreg spred spred:gradual
srigl nm linbreg:row linbreg:kernel linbreg:head depgraph
block_rigl block_rigl:2 block_rigl:4 linbreg:block8 ml_linbreg:block8 s2vite
sign_in sign_in:rigl sign_in:acdc ham ham:static ham:acdc sam sam:static sam:dense sam:s2
"""


def test_names() -> None:
    assert sorted(entry.name for entry in METHODS) == sorted(EXPECTED.split())


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_strings_are_those_of_the_class(entry) -> None:
    kind = entry.load()
    assert issubclass(kind, Method) and is_dataclass(kind) and kind.__doc__
    assert kind.name == entry.name.partition(":")[0]
    assert kind.family == entry.family or (entry.presets and entry.family == "structured")
    assert (kind.citation, kind.sparse) == (entry.citation, entry.sparse)
    assert kind.version == entry.version or (entry.presets and kind.version < entry.version)
    assert "arXiv" in kind.citation or not kind.sparse


def test_methods_whose_results_changed_have_new_versions() -> None:
    """Of CHANGELOG.md: the runs of these differ from those that older records hold."""
    changed = (
        "snip grasp synflow mest mest:em_s topkast srigl s2vite granet granet:dense snfs deep_rewiring chase dessilbi"
    )
    changed += " set:itop rigl:itop rigl:svite dsr sign_in sign_in:rigl sign_in:acdc"
    assert {entry.name for entry in METHODS if entry.version > 1} == set(changed.split())


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_presets_make_an_instance_that_holds_them(entry) -> None:
    found = entry.load()(**entry.presets).hyperparameters()
    assert entry.presets.items() <= found.items()
    assert found["sparsity"] == 0.9 and found["budget"] == 1.0


def test_listing_imports_no_torch() -> None:
    code = "import sys; from dstbench import methods\n"
    code += "assert 'torch' not in sys.modules, 'torch'; print(len(methods.METHODS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(len(METHODS))


@pytest.mark.parametrize("entry", [e for e in METHODS if not e.presets], ids=lambda entry: entry.name)
def test_docstrings_say_what_the_catalogue_needs(entry) -> None:
    prose, said = sections(entry.load())
    assert prose and {"Passes", "FLOPs"} <= said.keys()
    assert "Reference" in said or entry.family == "dense"


def test_the_catalogue_in_docs_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_installed", lambda package: ())
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    assert text == markdown() + "\n", "renew it: python run_all.py list methods --markdown > docs/methods.md"


def test_methods_are_short() -> None:
    """Lines of code of each class, docstring and blank lines aside: the median is below 30."""
    lengths = {}
    for kind in {entry.load() for entry in METHODS}:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        lengths[kind.__name__] = sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())
    assert statistics.median(lengths.values()) < 30, lengths
