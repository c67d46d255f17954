"""Small perceptrons on scikit-learn's embedded tables: seconds a run, and hundreds of samples, not more."""

from __future__ import annotations

from dstbench.suite.recipe import Recipe
from dstbench.tasks.arrays import ArrayTask
from dstbench.tasks.models import mlp

RECIPE = Recipe(steps=400, batch=32, lr={"sgd": 0.03, "adam": 3e-3})

BREAST_CANCER = ArrayTask(
    name="tabular/breast_cancer",
    model=mlp,
    arguments={"inputs": 30, "hidden": (100, 100), "outputs": 2},
    widths={"hidden": 1},
    data="breast_cancer",
    recipe=RECIPE,
    source="ours; data of scikit-learn",
    chance=0.63,  # always the more frequent class
    target=0.95,
)

WINE = ArrayTask(
    name="tabular/wine",
    model=mlp,
    arguments={"inputs": 13, "hidden": (100, 100), "outputs": 3},
    widths={"hidden": 1},
    data="wine",
    recipe=RECIPE,
    source="ours; data of scikit-learn",
    chance=0.4,
    target=0.95,
)

IRIS = ArrayTask(
    name="tabular/iris",
    model=mlp,
    arguments={"inputs": 4, "hidden": (100, 100), "outputs": 3},
    widths={"hidden": 1},
    data="iris",
    recipe=RECIPE,
    source="ours; data of scikit-learn",
    chance=1 / 3,
    target=0.9,
)

DIABETES = ArrayTask(
    name="tabular/diabetes",
    metric="mse",
    model=mlp,
    arguments={"inputs": 10, "hidden": (100, 100), "outputs": 1},
    widths={"hidden": 1},
    data="diabetes",
    recipe=RECIPE,
    source="ours; data of scikit-learn",
    chance=1.0,  # always the mean
    target=0.6,
)
