"""The tutorial's own code: it is under 20 lines, passes the check from outside the repository, and trains."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from suite import record
from suite.check import check
from suite.plan import Run
from suite.run import execute

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    code = re.search(r"```python\n# (\w+\.py)\n(.*?)```", (DOCS / "add-a-method.md").read_text(), re.S)
    assert code is not None
    path = tmp_path / code[1]
    path.write_text(code[2])
    return path


def test_the_tutorials_method_is_one_class_under_twenty_lines(tutorial: Path) -> None:
    classes = [node for node in ast.parse(tutorial.read_text()).body if isinstance(node, ast.ClassDef)]
    assert len(classes) == 1 and classes[0].end_lineno - classes[0].lineno < 20


def test_the_tutorials_method_passes_the_check(tutorial: Path) -> None:
    verdicts = check(str(tutorial))
    assert len(verdicts) > 4 and all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]


def test_the_tutorials_method_trains_to_its_target(tutorial: Path, tmp_path: Path) -> None:
    run = Run("prune_once", "digits/mlp", 0.9, budget=0.5, plugins=(str(tutorial),), hyperparameters={"at": 0.5})
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    (found,), _ = record.load(tmp_path)
    assert found["sparsity"]["active_weights"] == 1740 and found["score"]["test"] > 0.8
    assert found["code"]["distribution"].endswith("prune_once.py")


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), f"{page} links to {target}"
