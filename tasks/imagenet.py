"""ImageNet from disk: ResNet-50 as RigL trains it, and the transformers of DeiT, SViTE and SRigL."""

from __future__ import annotations

from dataclasses import replace

from dstbench.suite.recipe import Recipe, in_epochs
from dstbench.tasks.streaming import StreamedImages

IMAGES = 1_268_356  # of the training split; 12,811 more are its valid split

RESNET50 = StreamedImages(
    name="imagenet/resnet50",
    data="imagenet",
    model="resnet50",
    arguments={"zero_init_last": False},
    flip=True,
    top5=True,
    recipe=in_epochs(
        100,
        IMAGES,
        4096,
        drop_at=(30, 70, 90),
        warmup_epochs=5,
        lr={"sgd": 1.6, "adam": 1e-3},
        weight_decay={"sgd": 1e-4, "adam": 0.05},
        label_smoothing=0.1,
        accumulate=16,  # so that one GPU holds a micro-batch
    ),
    source="Evci et al. 2020, RigL, arXiv 1911.11134, section 4.1",
    chance=0.001,
    target=0.75,
)

DEIT = in_epochs(
    300,
    IMAGES,
    1024,
    optimizer="adam",
    warmup_epochs=5,
    last=0.01,
    lr={"sgd": 0.1, "adam": 1e-3},
    weight_decay={"sgd": 1e-4, "adam": 0.05},
    label_smoothing=0.1,
    accumulate=4,
)
DEIT_SOURCE = (
    "Touvron et al. 2021, DeiT, arXiv 2012.12877, table 9, without repeated augmentation; RandAugment is "
    "torchvision's, with one operation an image where timm's applies each of two with a chance of a half; erased boxes "
    "are grey, not noise; SViTE, arXiv 2106.04533, trains twice as long"
)
DEIT_TINY = StreamedImages(
    name="imagenet/deit_tiny",
    data="imagenet",
    model="deit_tiny_patch16_224",
    arguments={"drop_path_rate": 0.1},
    dense=("patch_embed.proj", "head"),
    flip=True,
    randaugment=(1, 27),  # timm's 9 of 10 is torchvision's 27 of 30
    mixup=0.8,
    cutmix=1.0,
    erase=0.25,
    interpolation="bicubic",
    top5=True,
    recipe=DEIT,
    source=DEIT_SOURCE,
    chance=0.001,
    target=0.7,
)

DEIT_SMALL = replace(DEIT_TINY, name="imagenet/deit_small", model="deit_small_patch16_224", target=0.78)

VIT_BASE = StreamedImages(
    name="imagenet/vit_base",
    data="imagenet",
    model="vit_base_patch16_224",
    dense=("patch_embed.proj", "head"),
    flip=True,
    randaugment=(2, 9),
    mixup=0.2,
    cutmix=1.0,
    top5=True,
    recipe=Recipe(
        steps=46_918,
        batch=4096,
        optimizer="adam",
        warmup=16 / 150,
        lr={"sgd": 0.1, "adam": 3e-3},
        weight_decay={"sgd": 1e-4, "adam": 0.3},
        label_smoothing=0.11,
        clip=1.0,
        accumulate=32,
    ),
    source="Lasby et al. 2024, SRigL, arXiv 2305.02299, appendix; github.com/calgaryml/condensed-sparsity, vit.yaml",
    chance=0.001,
    target=0.75,
)
