"""CIFAR-10 from the user's data root: the networks and recipes on which sparse training is usually reported."""

from __future__ import annotations

from dstbench.suite.recipe import Recipe
from dstbench.tasks import models
from dstbench.tasks.vision import VisionTask

RESNET18 = VisionTask(
    name="cifar10/resnet18",
    data="cifar10",
    model=models.resnet,
    arguments={"channels": (64, 128, 256, 512), "layers": (2, 2, 2, 2)},
    widths={"channels": 2},
    pad=4,
    flip=True,
    recipe=Recipe(steps=75_000, batch=128, lr={"sgd": 0.1, "adam": 1e-3}),
    chance=0.1,
    target=0.94,
)

VIT_TINY = VisionTask(
    name="cifar10/vit_tiny",
    data="cifar10",
    model="vit_tiny_patch16_224",
    arguments={"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 192, "num_heads": 3},
    widths={"embed_dim": 3},
    dense=("patch_embed.proj", "head"),
    pad=4,
    flip=True,
    recipe=Recipe(
        steps=75_000,
        batch=128,
        lr={"sgd": 0.1, "adam": 1e-3},
        optimizer="adam",
        warmup=0.05,
        label_smoothing=0.1,
        clip=1.0,
    ),
    chance=0.1,
    target=0.85,
)
