"""Augmentations against NumPy, torchvision and the definitions of their papers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from dstbench.tasks import augment
from dstbench.tasks.augment import cutout, mixed, rand_augment
from dstbench.tasks.seeded import generator


def batch(n: int, size: tuple[int, int] = (8, 6), channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


# ---- cutout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_is_a_square_around_a_pixel_cut_off_at_the_border(side: int) -> None:
    images = torch.ones(200, 3, 8, 6)
    out = cutout(images, side, generator("x", side))
    rng = generator("x", side)
    centres = [torch.randint(length, (200, 1), generator=rng).flatten().tolist() for length in (8, 6)]
    for image, y, x in zip(out, *centres, strict=True):
        expected = np.ones((3, 8, 6))
        lower, upper = side // 2, side - side // 2
        expected[:, max(0, y - lower) : y + upper, max(0, x - lower) : x + upper] = 0
        np.testing.assert_array_equal(image, expected)
    assert len(Counter(centres[0])) == 8 and len(Counter(centres[1])) == 6 and images.min() == 1


# ---- mixup and cutmix ----------------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_targets_with_one_weight() -> None:
    images, labels = torch.randn(12, 2, 4, 4), torch.arange(12) % 5
    for step in range(20):
        out, targets = mixed(images, labels, 5, 0.4, 0.0, 1.0, (0, step))
        order = torch.randperm(12, generator=generator(0, step))
        own, other = torch.eye(5)[labels], torch.eye(5)[labels[order]]
        moved = (own != other).any(1)
        weight = targets[moved][0][labels[moved][0]]
        torch.testing.assert_close(targets, weight * own + (1 - weight) * other)
        torch.testing.assert_close(out, weight * images + (1 - weight) * images[order], atol=1e-5, rtol=1e-4)


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area() -> None:
    images = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 2, 16, 20).clone()
    labels, seen = torch.arange(12), set()
    for step in range(30):
        out, targets = mixed(images, labels, 12, 0.0, 1.0, 1.0, (1, step))
        order = torch.randperm(12, generator=generator(1, step))
        for i, j in enumerate(order.tolist()):
            if i == j:
                assert targets[i, i] == 1
                continue
            pasted = out[i, 0] == j
            assert (pasted | (out[i, 0] == i)).all() and torch.equal(pasted, out[i, 1] == j)
            rows, columns = pasted.any(1), pasted.any(0)
            assert torch.equal(pasted, rows[:, None] & columns[None]), "a box"
            assert float(targets[i, j]) == pytest.approx(float(pasted.float().mean()), abs=1e-6)
            seen.add((int(rows.sum()), int(columns.sum())))
    assert len(seen) > 10 and images[3, 0, 0, 0] == 3


def test_weights_follow_the_beta_distribution_and_the_share() -> None:
    images, labels = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    weights = []
    for step in range(1500):
        _, targets = mixed(images, labels, 2, 0.5, 0.0, 0.75, ("b", step))
        swapped = torch.randperm(2, generator=generator("b", step))[0] == 1
        if swapped:
            weights.append(float(targets[0, 0]))
    weights = np.array(weights)
    plain = (weights == 1).mean()
    assert plain == pytest.approx(0.25, abs=0.06)
    drawn = weights[weights < 1]
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.02)  # of Beta(α, α): 1 / (4 (2α + 1))


def test_a_coin_decides_between_the_two_and_all_is_of_the_key() -> None:
    images, labels = torch.randn(8, 1, 9, 9), torch.arange(8)
    kinds = Counter()
    for step in range(200):
        out, targets = mixed(images, labels, 8, 1.0, 1.0, 1.0, (step,))
        again = mixed(images, labels, 8, 1.0, 1.0, 1.0, (step,))
        assert torch.equal(out, again[0]) and torch.equal(targets, again[1])
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        kept = (out == images).flatten(1).any(1).float().mean()
        kinds["cutmix" if kept > 0.5 else "mixup"] += 1
    assert min(kinds.values()) > 60


# ---- RandAugment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_every_operation_is_torchvisions(channels: int, magnitude: int) -> None:
    theirs, images = v2.RandAugment(1, magnitude), batch(3, (12, 10), channels)
    table = augment._operations(10, 12)
    space = theirs._AUGMENTATION_SPACE
    assert len(table) == len(space) and [signed for _, signed in space.values()][1 : augment.SIGNED + 1] == [True] * 9
    for ours, (name, (levels, signed)) in zip(table, space.items(), strict=True):
        found = levels(31, 12, 10)
        level = float(found[magnitude]) if found is not None else 0.0
        for way in (1, -1) if signed else (1,):
            expected = theirs._apply_image_or_video_transform(
                images, name, way * level, interpolation=InterpolationMode.NEAREST, fill=theirs._fill
            )
            got = ours(images, way * magnitude / 30)
            assert (got.int() - expected.int()).abs().max() <= 1, (name, way)  # its levels are rounded to float32


def test_every_image_has_its_own_draw_and_others_do_not_change_it() -> None:
    images = batch(1, (12, 12)).expand(300, 3, 12, 12)
    out = rand_augment(images, 1, 9, generator(3))
    rng = generator(3)
    chosen, signs = torch.randint(14, (300,), generator=rng), 1 - 2 * torch.randint(2, (300,), generator=rng)
    table = augment._operations(12, 12)
    for i in range(40):
        way = int(signs[i]) if 0 < chosen[i] <= augment.SIGNED else 1
        assert torch.equal(out[i], table[chosen[i]](images[i : i + 1], way * 9 / 30)[0])
    assert len({*chosen.tolist()}) == 14 and torch.equal(images[0], images[1])
    assert torch.equal(rand_augment(images, 2, 9, generator(4)), rand_augment(images, 2, 9, generator(4)))
    assert torch.equal(rand_augment(images, 0, 9, generator(4)), images)


def test_generator_and_spans() -> None:
    assert augment._span(0, 4, 8) == slice(0, 2) and augment._span(7, 4, 8) == slice(5, 8)
    assert augment._span(4, int(8 * math.sqrt(0.5)), 8) == slice(2, 6)
