"""The embedded plans: they name what there is, and say what they cost, where, and whose protocol they are."""

from __future__ import annotations

import re

import pytest

from dstbench.suite import listing, planfile, plantext, registry

PLANS = sorted(path.stem for path in planfile.FOLDER.glob("*.yaml"))
OF_PAPERS = {
    "bregman2022", "granet", "hard", "lenet", "m_lambda", "ml_linbreg", "rigl_wrn", "text", "theory", "vit",
}  # fmt: skip


def comment(name: str) -> str:
    lines = planfile.locate(name).read_text("utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def size(name: str) -> int:
    plan = planfile.Plan.model_validate(plantext.load(planfile.locate(name)))
    known = registry.methods()
    levels = sum(len(plan.sparsity) if registry.sparse(known[m], given) else 1 for m, given in plan.chosen())
    return levels * len(plan.tasks) * len(plan.seeds)


@pytest.mark.parametrize("name", PLANS)
def test_every_embedded_plan_is_valid(name: str) -> None:
    given = planfile.Plan.model_validate(plantext.load(planfile.locate(name)))
    assert given.name == name
    assert planfile.read(name).tasks == given.tasks


def test_the_plans_of_the_papers_are_there_and_listed() -> None:
    assert set(PLANS) == OF_PAPERS | {"methods", "quick"}
    rows = {row["name"]: row for row in listing.rows("plans")}
    assert rows.keys() == set(PLANS) and rows["m_lambda"]["methods"] == 25 and rows["lenet"]["seeds"] == 3


@pytest.mark.parametrize("name", sorted(OF_PAPERS))
def test_a_plan_says_its_size_cost_and_source(name: str) -> None:
    text = comment(name)
    assert "Cost: " in text and re.search(r"Sources?: ", text)
    assert re.findall(r"(\d+) runs\b", text)[:1] == [str(size(name))]
