"""The denoising autoencoder of the LinBreg paper, whose row groups find an hourglass, on MNIST and on smaller images.

Seven layers of 784 units, six weight matrices: the authors' logs list six row densities. Batch 128, 100 epochs.
"""

from __future__ import annotations

from dataclasses import replace

from dstbench.suite.recipe import Recipe, in_epochs
from dstbench.tasks.denoising import DenoisingTask
from dstbench.tasks.models import autoencoder2022

FASHION_MNIST = DenoisingTask(
    name="fashion_mnist/autoencoder",
    model=autoencoder2022,
    arguments={"hidden": 784},
    widths={"hidden": 1},
    data="fashion_mnist",
    recipe=in_epochs(
        100,
        55_000,
        128,
        schedule="constant",
        optimizer="adam",
        lr={"sgd": 0.1, "adam": 1e-3},
        weight_decay={"sgd": 0.0, "adam": 0.0},
    ),
    source="Bungert et al. 2022, arXiv 2105.04319; github.com/TimRoith/BregmanLearning, notebooks/Skip-Encoder, "
    "which is on MNIST",
    chance=10.8,  # the mean image
    target=28.0,
)

MNIST = replace(FASHION_MNIST, name="denoise/mnist", data="mnist", chance=11.7, target=30.0)

DIGITS = replace(
    FASHION_MNIST,
    name="denoise/digits",
    data="digits",
    arguments={"img_size": 8, "hidden": 64},
    recipe=Recipe(steps=1000, batch=50, lr={"sgd": 0.1, "adam": 3e-3}, optimizer="adam"),
    source="ours: the same network on images that ship with scikit-learn",
    chance=11.3,
    target=16.0,
)
