"""Tiny ImageNet, of 64x64 pixels: the networks of ML LinBreg's paper, with as many classes as the folder holds."""

from __future__ import annotations

from dstbench.suite.recipe import in_epochs
from dstbench.tasks import models
from dstbench.tasks.cifar10 import ADAM, DECAY
from dstbench.tasks.vision import VisionTask

# 90,000 training images of 200 classes. With fewer classes the run has as many steps, and so more epochs: `--budget`.
RECIPE = in_epochs(200, 90_000, 128, lr={"sgd": 0.1, "adam": ADAM}, weight_decay=DECAY)
SOURCE = "network and data of ML LinBreg, arXiv 2602.03535; the settings, which it does not give, of arXiv 2605.07892"

RESNET18 = VisionTask(
    name="tiny_imagenet/resnet18",
    data="tiny_imagenet",
    model=models.resnet18_small,
    arguments={"channels": (64, 128, 256, 512), "num_classes": 200},
    widths={"channels": 2},
    pad=8,
    flip=True,
    recipe=RECIPE,
    source=SOURCE,
    chance=0.005,
    target=0.58,
)

VGG16 = VisionTask(
    name="tiny_imagenet/vgg16",
    data="tiny_imagenet",
    model=models.vgg16,
    arguments={"channels": (64, 128, 256, 512, 512), "num_classes": 200, "img_size": 64},
    widths={"channels": 1},
    pad=8,
    flip=True,
    recipe=RECIPE,
    source=SOURCE,
    chance=0.005,
)

WRN28_10 = VisionTask(
    name="tiny_imagenet/wrn28_10",
    data="tiny_imagenet",
    model=models.wrn28_10,
    arguments={"channels": (16, 160, 320, 640), "num_classes": 200},
    widths={"channels": 1},
    pad=8,
    flip=True,
    recipe=RECIPE,
    source=SOURCE,
    chance=0.005,
)
