"""Three small networks on scikit-learn's digits: real data on every machine, seconds a run."""

from __future__ import annotations

from dstbench.suite.recipe import Recipe
from dstbench.tasks import models
from dstbench.tasks.vision import VisionTask

SOURCE = "ours; learning rates by the grid of docs/tuning.md"

MLP = VisionTask(
    name="digits/mlp",
    model=models.mlp,
    arguments={"inputs": 64, "hidden": (100, 100), "outputs": 10},
    widths={"hidden": 1},
    recipe=Recipe(steps=480, batch=50, lr={"sgd": 0.1, "adam": 1e-2}),
    source=SOURCE,
    chance=0.1,
    target=0.95,
)

RESNET = VisionTask(
    name="digits/resnet",
    model=models.resnet,
    arguments={"channels": (8, 16, 32, 64), "layers": (1, 1, 1, 1), "in_chans": 1},
    widths={"channels": 2},
    images=300,
    recipe=Recipe(steps=480, batch=50, lr={"sgd": 0.1, "adam": 3e-2}, label_smoothing=0.1),
    source=SOURCE,
    chance=0.1,
    target=0.95,
)

VIT = VisionTask(
    name="digits/vit",
    model="vit_tiny_patch16_224",
    arguments={
        "img_size": 8,
        "patch_size": 4,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
    },
    widths={"embed_dim": 4},
    recipe=Recipe(steps=480, batch=50, lr={"sgd": 0.1, "adam": 3e-3}, plain_scale=0.3, optimizer="adam", warmup=0.1),
    source=SOURCE,
    chance=0.1,
    target=0.93,
)
