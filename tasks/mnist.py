"""MNIST: LeNet-300-100 and LeNet-5 by the protocol of sparse momentum, and the perceptron of LinBreg's paper."""

from __future__ import annotations

from dstbench.suite.recipe import in_epochs
from dstbench.tasks import models
from dstbench.tasks.vision import VisionTask

IMAGES = 55_000  # of the training split; 5,000 more are its valid split
DETTMERS = in_epochs(
    100,
    IMAGES,
    100,
    drop_every=25_000 / 550,  # at steps 25,000 and 50,000
    lr={"sgd": 0.1, "adam": 1e-3},
    weight_decay={"sgd": 5e-4, "adam": 0.0},
    nesterov=True,
)

LENET300 = VisionTask(
    name="mnist/lenet300",
    data="mnist",
    model=models.lenet300,
    arguments={"hidden": (300, 100)},
    widths={"hidden": 1},
    recipe=DETTMERS,
    source="Dettmers & Zettlemoyer 2019, arXiv 1907.04840; github.com/TimDettmers/sparse_learning, mnist_cifar/main.py",
    chance=0.1,
    target=0.98,
)

LENET5 = VisionTask(
    name="mnist/lenet5",
    data="mnist",
    model=models.lenet5,
    arguments={"channels": (20, 50, 500)},
    widths={"channels": 1},
    recipe=DETTMERS,
    source="Dettmers & Zettlemoyer 2019, arXiv 1907.04840; github.com/TimDettmers/sparse_learning, mnist_cifar/main.py",
    chance=0.1,
    target=0.99,
)

MLP2022 = VisionTask(
    name="mnist/mlp2022",
    data="mnist",
    model=models.mlp2022,
    arguments={"hidden": (200, 80)},
    widths={"hidden": 1},
    recipe=in_epochs(
        30,
        IMAGES,
        128,
        schedule="constant",
        lr={"sgd": 0.1, "adam": 1e-3},
        weight_decay={"sgd": 0.0, "adam": 0.0},
        momentum=0.0,
    ),
    source="Bungert et al. 2022, arXiv 2105.04319; github.com/TimRoith/BregmanLearning, notebooks/MLP-Classification",
    chance=0.1,
    target=0.97,
)
