"""Fashion-MNIST: the convolutional network of LinBreg's paper, SET's perceptron, and LeNet-300-100."""

from __future__ import annotations

from dstbench.suite.recipe import in_epochs
from dstbench.tasks import models
from dstbench.tasks.denoise import FASHION_MNIST as AUTOENCODER
from dstbench.tasks.mnist import DETTMERS, IMAGES
from dstbench.tasks.vision import VisionTask

__all__ = ["AUTOENCODER", "CNN2022", "LENET300", "SET_MLP"]
NO_DECAY = {"sgd": 0.0, "adam": 0.0}

CNN2022 = VisionTask(
    name="fashion_mnist/cnn2022",
    data="fashion_mnist",
    model=models.cnn2022,
    arguments={"channels": (64, 64, 128)},
    widths={"channels": 1},
    recipe=in_epochs(
        100,
        IMAGES,
        128,  # that of the repository's other notebooks; this run's is not stated
        schedule="constant",
        lr={"sgd": 0.07, "adam": 1e-3},
        weight_decay=NO_DECAY,
        momentum=0.0,
    ),
    source="Bungert et al. 2022, arXiv 2105.04319, table 1; github.com/TimRoith/BregmanLearning at 730a194, "
    "notebooks/ConvNet-Classification",
    chance=0.1,
    target=0.9,
)

SET_MLP = VisionTask(
    name="fashion_mnist/set_mlp",
    data="fashion_mnist",
    model=models.set_mlp,
    arguments={"hidden": (4000, 1000, 4000), "in_chans": 1, "img_size": 28},
    widths={"hidden": 1},
    dense=("fc4",),
    recipe=in_epochs(
        200,
        IMAGES,
        100,
        schedule="constant",
        lr={"sgd": 0.01, "adam": 1e-4},
        weight_decay=NO_DECAY,
    ),
    source="Mocanu et al. 2018, doi 10.1038/s41467-018-04316-3; settings of set_mlp_keras_fashionmnist.py in "
    "github.com/dcmocanu/sparse-evolutionary-artificial-neural-networks, widths and SReLU of its CIFAR-10 script",
    chance=0.1,
    target=0.88,
)

LENET300 = VisionTask(
    name="fashion_mnist/lenet300",
    data="fashion_mnist",
    model=models.lenet300,
    arguments={"hidden": (300, 100)},
    widths={"hidden": 1},
    recipe=DETTMERS,
    source="ours: the recipe of mnist/lenet300 on other data",
    chance=0.1,
    target=0.88,
)
