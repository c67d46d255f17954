"""Augmentations of batches of images: each a function of the batch and a seeded generator alone, on any device.

All chance is drawn on the CPU, so that a batch is augmented alike wherever it lies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dstbench.tasks.seeded import generator


def crop_flip(images: Tensor, pad: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image (of N, C, H, W) gets its own crop of the zero-padded image and, if `flip`, its own coin for mirroring.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    n, c, h, w = images.shape
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=rng)
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=rng) < 0.5, columns.flip(1), columns)
    padded = nn.functional.pad(images, (pad,) * 4)
    rows, columns = rows.to(images.device), columns.to(images.device)
    batch, channels = (torch.arange(size, device=images.device) for size in (n, c))
    return padded[
        batch[:, None, None, None], channels[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def cutout(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Each image (of N, C, H, W) with a square of zeros around its own random pixel; what lies outside is cut off.

    Of images scaled to zero mean, zero is the mean colour.

    Reference: DeVries & Taylor 2017, arXiv 1708.04552, section 3.2.
    """
    n, _, h, w = images.shape
    holes = []
    for length in (h, w):
        centre = torch.randint(length, (n, 1), generator=rng)
        place = torch.arange(length)
        holes.append((place >= centre - side // 2) & (place < centre + side // 2 + side % 2))
    hole = holes[0][:, None, :, None] & holes[1][:, None, None, :]
    return images.masked_fill(hole.to(images.device), 0)


def mixed(
    images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float, share: float, key: tuple[int | str, ...]
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself in another order, by mixup or cutmix, and its soft targets.

    Args:
        images: (N, C, H, W), floating.
        labels: (N,) of `classes` classes.
        classes: Columns of the targets.
        mixup: α of Beta(α, α), from which the weight of the first image is drawn, once a batch; 0: no mixup.
        cutmix: The same for cutmix, which pastes a box of the other image; where both are given, a coin decides.
        share: Of batches that are mixed at all.
        key: All chance is a function of it.

    Returns:
        Images (N, C, H, W) and targets (N, classes) of rows that sum to 1.

    Reference: Zhang et al. 2018, arXiv 1710.09412, section 2; Yun et al. 2019, arXiv 1905.04899, equations 1 and 2.
    """
    rng = random.Random(repr(key))
    targets = nn.functional.one_hot(labels, classes).float()
    if rng.random() >= share:
        return images, targets
    paste = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if paste else mixup
    weight = rng.betavariate(alpha, alpha)
    order = torch.randperm(len(images), generator=generator(*key)).to(images.device)
    if paste:
        h, w = images.shape[-2:]
        rows, columns = (_span(rng.randrange(length), int(length * math.sqrt(1 - weight)), length) for length in (h, w))
        other = images[order][..., rows, columns]
        images = images.clone()
        images[..., rows, columns] = other
        weight = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (h * w)
    else:
        images = images.lerp(images[order], 1 - weight)
    return images, targets.lerp(targets[order], 1 - weight)


def _span(centre: int, length: int, limit: int) -> slice:
    return slice(max(0, centre - length // 2), min(limit, centre + length // 2))


BINS = 30  # magnitudes are 0 to 30
SIGNED = 9  # the first of OPERATIONS after the identity go either way
Operation = Callable[[Tensor, float], Tensor]


def rand_augment(images: Tensor, operations: int, magnitude: int, rng: torch.Generator) -> Tensor:
    """Each image (uint8, of N, C, H, W) goes through `operations` random ones of 14, all at `magnitude` of 0 to 30.

    The operations, their ranges and black fill are torchvision's; each image has its own draw.

    Reference: Cubuk et al. 2020, arXiv 1909.13719; torchvision.transforms.v2.RandAugment.
    """
    table = _operations(images.shape[-1], images.shape[-2])
    part = magnitude / BINS
    for _ in range(operations):
        chosen = torch.randint(len(table), (len(images),), generator=rng)
        sign = 1 - 2 * torch.randint(2, (len(images),), generator=rng)
        sign[(chosen == 0) | (chosen > SIGNED)] = 1
        images = images.clone()
        for number in chosen.unique().tolist():
            for way in (1, -1):
                index = ((chosen == number) & (sign == way)).nonzero()[:, 0].to(images.device)
                if number and len(index):
                    images[index] = table[number](images[index], way * part)
    return images


def _operations(width: int, height: int) -> list[Operation]:
    """The identity, nine signed operations and four others, as functions of a batch and a share of the range."""
    from torchvision.transforms.v2 import functional as F

    def affine(images: Tensor, shear: tuple[float, float] = (0, 0), move: tuple[float, float] = (0, 0)) -> Tensor:
        degrees = [math.degrees(math.atan(part)) for part in shear]
        centre = [0.0, 0.0] if any(shear) else None
        return F.affine(images, angle=0.0, translate=[int(m) for m in move], scale=1.0, shear=degrees, center=centre)

    return [
        lambda x, part: x,
        lambda x, part: affine(x, shear=(0.3 * part, 0)),
        lambda x, part: affine(x, shear=(0, 0.3 * part)),
        lambda x, part: affine(x, move=(150 / 331 * width * part, 0)),
        lambda x, part: affine(x, move=(0, 150 / 331 * height * part)),
        lambda x, part: F.rotate(x, 30 * part),
        lambda x, part: F.adjust_brightness(x, 1 + 0.9 * part),
        lambda x, part: F.adjust_saturation(x, 1 + 0.9 * part),
        lambda x, part: F.adjust_contrast(x, 1 + 0.9 * part),
        lambda x, part: F.adjust_sharpness(x, 1 + 0.9 * part),
        lambda x, part: F.posterize(x, 8 - round(4 * part)),
        lambda x, part: F.solarize(x, 255 * (1 - part)),
        lambda x, part: F.autocontrast(x),
        lambda x, part: F.equalize(x),
    ]
