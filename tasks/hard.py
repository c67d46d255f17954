"""Where sparse training fails: arithmetic, reasoning and parity, on data made by code (all of it synthetic).

Stand-ins, at the size of a CPU, for SMC-Bench: Liu et al. 2023, "Sparsity May Cry", arXiv 2303.02141.
"""

from __future__ import annotations

from dstbench.suite.recipe import Recipe
from dstbench.tasks.arrays import ArrayTask
from dstbench.tasks.models import gpt, mlp, token_mlp

MODULAR_ADDITION = ArrayTask(
    name="hard/modular_addition",
    model=token_mlp,
    arguments={"vocab": 97, "length": 2, "hidden": (256, 256), "outputs": 97},
    widths={"hidden": 1},
    data="modular_addition",
    recipe=Recipe(
        steps=4000, batch=256, lr={"sgd": 0.3, "adam": 3e-3}, weight_decay={"sgd": 5e-4, "adam": 1.0}, optimizer="adam"
    ),
    source="ours, after SMC-Bench, arXiv 2303.02141; synthetic data",
    chance=1 / 97,
    target=0.9,
)

ADDITION = ArrayTask(
    name="hard/addition",
    model=gpt,
    arguments={"vocab": 10, "block": 9, "depth": 2, "heads": 4, "width": 128},
    widths={"width": 4},
    data="digit_addition",
    recipe=Recipe(steps=4000, batch=128, lr={"sgd": 0.1, "adam": 1e-3}, optimizer="adam", warmup=0.05, clip=1.0),
    source="ours, after SMC-Bench, arXiv 2303.02141; synthetic data",
    chance=1e-4,
    target=0.9,
)

LISTOPS = ArrayTask(
    name="hard/listops",
    model=gpt,
    arguments={"vocab": 16, "block": 32, "depth": 2, "heads": 4, "width": 64},
    widths={"width": 4},
    data="listops",
    recipe=Recipe(steps=4000, batch=64, lr={"sgd": 0.1, "adam": 1e-3}, optimizer="adam", warmup=0.05, clip=1.0),
    source="ours, after SMC-Bench, arXiv 2303.02141; synthetic data",
    chance=0.1,
    target=0.6,
)

SPARSE_PARITY = ArrayTask(
    name="hard/sparse_parity",
    model=mlp,
    arguments={"inputs": 30, "hidden": (256,), "outputs": 2},
    widths={"hidden": 1},
    data="sparse_parity",
    recipe=Recipe(steps=2000, batch=64, lr={"sgd": 0.1, "adam": 3e-3}),
    source="ours, after SMC-Bench, arXiv 2303.02141; synthetic data",
    chance=0.5,
    target=0.95,
)

MNIST1D = ArrayTask(
    name="hard/mnist1d",
    model=mlp,
    arguments={"inputs": 40, "hidden": (100, 100), "outputs": 10},
    widths={"hidden": 1},
    data="mnist1d",
    recipe=Recipe(steps=3000, batch=100, lr={"sgd": 0.1, "adam": 3e-3}),
    source="ours, after SMC-Bench, arXiv 2303.02141; synthetic data",
    chance=0.1,
    target=0.6,
)
