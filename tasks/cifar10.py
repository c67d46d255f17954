"""CIFAR-10 from the user's data root: the networks and recipes on which sparse training is usually reported."""

from __future__ import annotations

from dstbench.suite.recipe import Recipe, in_epochs
from dstbench.tasks import models
from dstbench.tasks.vision import VisionTask

IMAGES = 45_000  # of the training split; 5,000 more are its valid split
ADAM = 1e-3  # the rate of methods of the other kind: ours, where papers train by SGD
DECAY = {"sgd": 5e-4, "adam": 0.05}

FOLLOW_UP = in_epochs(200, IMAGES, 128, lr={"sgd": 0.1, "adam": ADAM}, weight_decay=DECAY)
GRANET = in_epochs(
    160, IMAGES, 128, drop_at=(80, 120), lr={"sgd": 0.1, "adam": ADAM}, weight_decay=DECAY, nesterov=True
)
HE = Recipe(
    steps=64_000,
    batch=128,
    schedule="multistep",
    milestones=(0.5, 0.75),
    lr={"sgd": 0.1, "adam": ADAM},
    weight_decay={"sgd": 1e-4, "adam": 0.05},
)
MEST = in_epochs(
    160,
    IMAGES,
    64,
    last=4e-7,  # 4e-8 of 0.1
    lr={"sgd": 0.1, "adam": ADAM},
    weight_decay={"sgd": 1e-4, "adam": 0.05},
)
WIDE = in_epochs(
    200,
    IMAGES,
    128,
    drop_at=(60, 120, 160),
    gamma=0.2,
    lr={"sgd": 0.1, "adam": ADAM},
    weight_decay=DECAY,
    nesterov=True,
)
RIGL = in_epochs(
    250,
    IMAGES,
    128,
    drop_every=250 * 30_000 / 97_656,  # every 30,000 of 97,656 steps, at the same epochs
    gamma=0.2,
    lr={"sgd": 0.1, "adam": ADAM},
    weight_decay=DECAY,
    nesterov=True,
)
PATCHES = Recipe(
    steps=75_000,
    batch=128,
    lr={"sgd": 0.1, "adam": ADAM},
    optimizer="adam",
    warmup=0.05,
    label_smoothing=0.1,
    clip=1.0,
)

RESNET18 = VisionTask(
    name="cifar10/resnet18",
    data="cifar10",
    model=models.resnet,
    arguments={"channels": (64, 128, 256, 512), "layers": (2, 2, 2, 2)},
    widths={"channels": 2},
    pad=4,
    flip=True,
    recipe=FOLLOW_UP,
    source="epochs of ML LinBreg, arXiv 2602.03535; the other settings, which it does not give, of arXiv 2605.07892",
    version=2,  # 1 trained for 75,000 steps
    chance=0.1,
    target=0.94,
)

RESNET20 = VisionTask(
    name="cifar10/resnet20",
    data="cifar10",
    model=models.resnet20,
    arguments={"width": 16},
    widths={"width": 1},
    pad=4,
    flip=True,
    recipe=HE,
    source="He et al. 2016, arXiv 1512.03385, section 4.2",
    chance=0.1,
    target=0.91,
)

RESNET32 = VisionTask(
    name="cifar10/resnet32",
    data="cifar10",
    model=models.resnet32,
    arguments={"width": 32, "shortcut": "B"},
    widths={"width": 1},
    pad=4,
    flip=True,
    recipe=MEST,
    source="Yuan et al. 2021, MEST, arXiv 2110.14032; network of Wang et al. 2020, GraSP, arXiv 2002.07376",
    chance=0.1,
    target=0.94,
)

RESNET50 = VisionTask(
    name="cifar10/resnet50",
    data="cifar10",
    model=models.resnet50_small,
    arguments={"channels": (64, 128, 256, 512)},
    widths={"channels": 2},
    pad=4,
    flip=True,
    recipe=GRANET,
    source="Liu et al. 2021, GraNet, arXiv 2106.10404; github.com/VITA-Group/GraNet, CIFAR",
    chance=0.1,
    target=0.94,
)

RESNET56 = VisionTask(
    name="cifar10/resnet56",
    data="cifar10",
    model=models.resnet56,
    arguments={"width": 16},
    widths={"width": 1},
    pad=4,
    flip=True,
    recipe=HE,
    source="He et al. 2016, arXiv 1512.03385, section 4.2",
    chance=0.1,
    target=0.925,
)

VGG16 = VisionTask(
    name="cifar10/vgg16",
    data="cifar10",
    model=models.vgg16,
    arguments={"channels": (64, 128, 256, 512, 512)},
    widths={"channels": 1},
    pad=4,
    flip=True,
    recipe=FOLLOW_UP,
    source="epochs of ML LinBreg, arXiv 2602.03535; the other settings, which it does not give, of arXiv 2605.07892",
    chance=0.1,
    target=0.93,
)

VGG19 = VisionTask(
    name="cifar10/vgg19",
    data="cifar10",
    model=models.vgg19,
    arguments={"channels": (64, 128, 256, 512, 512)},
    widths={"channels": 1},
    pad=4,
    flip=True,
    recipe=GRANET,
    source="Liu et al. 2021, GraNet, arXiv 2106.10404; github.com/VITA-Group/GraNet, CIFAR",
    chance=0.1,
    target=0.93,
)

WRN28_10 = VisionTask(
    name="cifar10/wrn28_10",
    data="cifar10",
    model=models.wrn28_10,
    arguments={"channels": (16, 160, 320, 640)},
    widths={"channels": 1},
    pad=4,
    flip=True,
    recipe=WIDE,
    source="Zagoruyko & Komodakis 2016, arXiv 1605.07146, section 3",
    chance=0.1,
    target=0.95,
)

WRN22_2 = VisionTask(
    name="cifar10/wrn22_2",
    data="cifar10",
    model=models.wrn22_2,
    arguments={"channels": (16, 32, 64, 128)},
    widths={"channels": 1},
    pad=4,
    flip=True,
    recipe=RIGL,
    source="Evci et al. 2020, RigL, arXiv 1911.11134, section 4.3; github.com/google-research/rigl, issue 8",
    chance=0.1,
    target=0.93,
)

MLP1024 = VisionTask(
    name="cifar10/mlp1024",
    data="cifar10",
    model=models.mlp1024,
    arguments={"hidden": (1024, 512)},
    widths={"hidden": 1},
    pad=4,
    flip=True,
    recipe=in_epochs(
        100,
        IMAGES,
        100,
        drop_at=(50, 75),
        lr={"sgd": 0.01, "adam": ADAM},
        weight_decay={"sgd": 0.0, "adam": 0.0},
        nesterov=True,
    ),
    source="Wesselink et al. 2024, Nerva, arXiv 2407.17437: the rate of its dense runs; crops have a border of zeros "
    "here, a mirrored one there",
    chance=0.1,
)

SET_MLP = VisionTask(
    name="cifar10/set_mlp",
    data="cifar10",
    model=models.set_mlp,
    arguments={"hidden": (4000, 1000, 4000)},
    widths={"hidden": 1},
    dense=("fc4",),
    pad=3,
    flip=True,
    recipe=in_epochs(
        1000,
        IMAGES,
        100,
        schedule="constant",
        lr={"sgd": 0.01, "adam": 1e-4},
        weight_decay={"sgd": 0.0, "adam": 0.0},
    ),
    source="Mocanu et al. 2018, doi 10.1038/s41467-018-04316-3; set_mlp_keras_cifar10.py of "
    "github.com/dcmocanu/sparse-evolutionary-artificial-neural-networks, without its rotations",
    chance=0.1,
    target=0.7,
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
    recipe=PATCHES,
    source="ours; network of Dosovitskiy et al. 2021, arXiv 2010.11929",
    chance=0.1,
    target=0.85,
)

MIXER = VisionTask(
    name="cifar10/mixer",
    data="cifar10",
    model=models.mixer,
    arguments={"embed_dim": 128},
    widths={"embed_dim": 2},
    dense=("stem.proj", "head"),
    pad=4,
    flip=True,
    recipe=PATCHES,
    source="ours; network of Tolstikhin et al. 2021, arXiv 2105.01601",
    chance=0.1,
)

RESNET9_FAST = VisionTask(
    name="cifar10/resnet9_fast",
    data="cifar10",
    model=models.resnet9,
    arguments={"channels": (16, 64, 128, 256)},
    widths={"channels": 1},
    pad=2,
    flip=True,
    recipe=in_epochs(
        10,
        IMAGES,
        512,
        schedule="onecycle",
        peak=0.23,
        lr={"sgd": 0.4, "adam": 1e-2},
        weight_decay=DECAY,
        nesterov=True,
        label_smoothing=0.2,
    ),
    source="ours, after airbench, github.com/KellerJordan/cifar10-airbench, and DAWNBench's ResNet-9",
    chance=0.1,
    target=0.92,
)
