"""The tutorial's own code: it is under 20 lines, passes the check from outside the repository, and trains."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dstbench.suite import record, registry
from dstbench.suite.check import check
from dstbench.suite.plan import Run
from dstbench.suite.run import execute
from pruning import trained

DOCS = Path(__file__).parents[1] / "docs"


def written(folder: Path, name: str) -> Path:
    """The file of that name in the tutorial."""
    code = re.search(rf"```python\n# {name}\n(.*?)```", (DOCS / "add-a-method.md").read_text(), re.S)
    assert code is not None
    path = folder / name
    path.write_text(code[1])
    return path


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    return written(tmp_path, "prune_once.py")


def test_the_tutorials_method_is_one_class_under_twenty_lines(tutorial: Path) -> None:
    classes = [node for node in ast.parse(tutorial.read_text()).body if isinstance(node, ast.ClassDef)]
    assert len(classes) == 1 and classes[0].end_lineno - classes[0].lineno < 20


@pytest.mark.slow
def test_the_tutorials_method_passes_the_check(tutorial: Path) -> None:
    verdicts = check(str(tutorial))
    assert len(verdicts) > 4 and all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]


def test_the_tutorials_method_trains_to_its_target(tutorial: Path, tmp_path: Path) -> None:
    run = Run("prune_once", "digits/mlp", 0.9, budget=0.5, plugins=(str(tutorial),), hyperparameters={"at": 0.5})
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    (found,), _ = record.load(tmp_path)
    assert found["sparsity"]["active_weights"] == 1740 and found["score"]["test"] > 0.8
    assert found["code"]["distribution"].endswith("prune_once.py")


def test_the_tutorials_composer_adds_a_penalty_and_nothing_else(images, tmp_path: Path) -> None:
    file = written(tmp_path, "l1_penalty.py")
    plain = trained(images, registry.method("rigl:itop", sparsity=0.8))
    options = {"on": "rigl:itop", "sparsity": 0.8}
    same, small = (trained(images, registry.method("l1_penalty", [file], l1=l1, **options)) for l1 in (0.0, 0.1))
    assert same.curve == plain.curve and same.book == plain.book == small.book
    sizes = [sum(float(y.weight.abs().sum()) for y in run.model.layers) for run in (small, plain)]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), f"{page} links to {target}"
