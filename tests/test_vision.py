"""VisionTask: batches as a function of (seed, step), augmentation image by image, evaluation, seeding."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.suite.recipe import Recipe
from dstbench.suite.task import SPLITS
from dstbench.tasks import data as sets
from dstbench.tasks.augment import crop_flip
from dstbench.tasks.seeded import generator
from dstbench.tasks.vision import VisionTask


def linear(width: int = 3 * 8 * 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 10))


@pytest.fixture
def coloured(monkeypatch):
    """A data set of 130 coloured uint8 images in which every pixel tells its place and image."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (130, 3, 8, 8), generator=rng, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(130, dtype=torch.uint8)
    labels, order = torch.randint(10, (130,), generator=rng), torch.randperm(130, generator=rng)
    splits = dict(zip(("train", "valid", "test"), order.split([70, 23, 37]), strict=True))
    found = sets.Images(images, labels, splits, *sets.statistics(images, splits["train"]), "c0ffee" * 2)
    monkeypatch.setitem(sets.LOADERS, "coloured", lambda root, download: found)
    yield found
    sets._load.cache_clear()


@pytest.fixture
def task(coloured):
    recipe = Recipe(steps=30, batch=16, lr={"sgd": 0.1, "adam": 1e-3})
    return VisionTask(name="test/coloured", recipe=recipe, model=linear, data="coloured", pad=2, flip=True)


def take(task, split, seed, number, start=0):
    return list(itertools.islice(task.batches(split, seed, start), number))


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(left, right, strict=True)
    )


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "calibration"])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 11])
def test_starting_at_k_equals_skipping_k(task, split, start):
    assert same(take(task, split, 7, 15)[start:], take(task, split, 7, 15 - start, start))


def test_batches_ignore_and_leave_the_global_generators(task):
    torch.manual_seed(1)
    first = take(task, "train", 0, 6)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, take(task, "train", 0, 6))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_and_splits_differ(task):
    train, other = take(task, "train", 0, 4), take(task, "train", 1, 4)
    assert not same(train, other)
    assert not torch.equal(take(task, "calibration", 0, 1)[0][1], train[0][1])


def images_of(batch, found):
    """The indices of unaugmented images, by the pixel that holds the number."""
    x = batch[0] * found.std + found.mean
    return x[:, 0, 0, 0].round().long().tolist()


def test_an_epoch_shows_no_image_twice_and_leaves_out_the_ragged_rest(task, coloured):
    plain, pool = replace(task, pad=0, flip=False), set(coloured.splits["train"].tolist())
    batches = take(plain, "train", 3, 12)
    epochs = [[i for b in batches[e : e + 4] for i in images_of(b, coloured)] for e in (0, 4, 8)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 64 and set(epoch) <= pool
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(len(y) == 16 for _, y in batches)


def test_batches_are_scaled_images_with_their_labels(task, coloured):
    x, y = take(replace(task, pad=0, flip=False), "train", 5, 1)[0]
    index = images_of((x, y), coloured)
    assert torch.equal(y, coloured.labels[index])
    expected = (coloured.images[index].numpy() - coloured.mean.numpy()) / coloured.std.numpy()
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    assert x.dtype == torch.float32


def test_calibration_is_not_augmented(task, coloured):
    pool = coloured.scaled(coloured.images[coloured.splits["train"]])
    for x, _ in take(task, "calibration", 0, 5):
        assert all((pool == image).flatten(1).all(1).any() for image in x)


@pytest.mark.parametrize("split, size", [("valid", 23), ("test", 37)])
def test_evaluation_splits_are_whole_in_order_and_plain(task, coloured, split, size):
    batches = list(replace(task, evaluation_batch=10).batches(split, seed=3))
    index = coloured.splits[split]
    assert sum(len(y) for _, y in batches) == size and len(batches[0][1]) == 10
    assert torch.equal(torch.cat([y for _, y in batches]), coloured.labels[index])
    assert torch.equal(torch.cat([x for x, _ in batches]), coloured.scaled(coloured.images[index]))
    assert same(batches[1:], list(replace(task, evaluation_batch=10).batches(split, seed=0, start=1)))


def test_fewer_training_images_are_the_same_for_every_seed(task, coloured):
    small = replace(task, images=20, pad=0, flip=False)
    pool = set(coloured.splits["train"][:20].tolist())
    for seed in range(4):
        assert {i for b in take(small, "train", seed, 8) for i in images_of(b, coloured)} <= pool


def test_bad_split_and_too_large_batch_are_errors(task):
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of train, calibration, valid, test"):
        task.batches("dev", 0)
    with pytest.raises(ValueError, match=r"test/coloured: recipe.batch 16 is larger than the 9 training samples"):
        next(replace(task, images=9).batches("train", 0))


# ---- augmentation --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 3), st.booleans(), st.integers(0, 2**40), st.sampled_from(["uint8", "float"]))
def test_every_image_gets_its_own_crop_and_flip(n, pad, flip, seed, kind):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (n, 2, 5, 7), generator=rng, dtype=torch.uint8)
    images = images if kind == "uint8" else images.float()
    out = crop_flip(images, pad, flip, torch.Generator().manual_seed(seed))
    rng = torch.Generator().manual_seed(seed)
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=rng).flatten(1).tolist()
    coins = (torch.rand(n, 1, generator=rng).flatten() < 0.5).tolist() if flip else [False] * n
    for i in range(n):
        padded = np.pad(images[i].numpy(), ((0, 0), (pad, pad), (pad, pad)))
        crop = padded[:, top[i] : top[i] + 5, left[i] : left[i] + 7]
        np.testing.assert_array_equal(out[i], crop[:, :, ::-1] if coins[i] else crop)


def test_crops_and_flips_within_a_batch_differ():
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(400, 1, 1, 1)
    out = crop_flip(image, 2, True, torch.Generator().manual_seed(0))
    seen = out.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(seen) == 5 * 5 * 2  # all offsets, mirrored or not
    assert seen.max() < 25  # and none much above its share of 8


def test_no_augmentation_is_the_identity():
    image = torch.rand(3, 1, 4, 4)
    assert torch.equal(crop_flip(image, 0, False, torch.Generator()), image)


def test_generator_is_a_function_of_its_key():
    def draw(*key):
        return torch.rand(4, generator=generator(*key)).tolist()

    assert draw(0, "train", 1) == draw(0, "train", 1)
    assert len({tuple(draw(a, b, c)) for a in (0, 1) for b in ("x", "y") for c in range(20)}) == 80


# ---- networks and evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, arguments",
    [
        (linear, {}),
        ("resnet18", {"num_classes": 10}),
    ],
)
def test_build_depends_on_the_seed_alone(task, model, arguments):
    task = replace(task, model=model, arguments=arguments)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, other = task.build(0), task.build(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12)
    again = task.build(0)
    same_as = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    differ = [not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
    assert all(same_as) and any(differ)


def test_build_restores_the_generator_after_a_failure(task):
    before = torch.get_rng_state()
    with pytest.raises(TypeError):
        replace(task, arguments={"depth": 3}).build(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("batch", [1, 7, 37, 500])
def test_evaluate_equals_a_count_by_hand_at_any_batch(task, coloured, batch):
    net = task.build(0).eval()
    weight, bias = (p.detach().numpy() for p in net[1].parameters())
    index = coloured.splits["test"].numpy()
    x = (coloured.images[index].numpy() - coloured.mean.numpy()) / coloured.std.numpy()
    right = ((x.reshape(len(x), -1) @ weight.T + bias).argmax(1) == coloured.labels[index].numpy()).mean()
    found = replace(task, evaluation_batch=batch).evaluate(net, "test", torch.device("cpu"))
    assert found == pytest.approx(right)


def test_example_describe_and_fingerprint(task, coloured):
    assert task.example().shape == (2, 3, 8, 8) and task.fingerprint() == "c0ffee" * 2
    said = task.describe()
    assert said["model"].endswith(":linear") and said["pad"] == 2 and said["name"] == "test/coloured"
    assert replace(task, model="resnet18").describe()["model"] == "resnet18"
    assert set(SPLITS) == {"train", "calibration", "valid", "test"}


# ---- mixing, operations, second metric, devices --------------------------------------------------------------------


FULL = {"randaugment": (2, 9), "mixup": 0.4, "cutmix": 1.0, "cutout": 3}


def test_every_augmentation_is_a_function_of_seed_and_step(task, coloured):
    full = replace(task, **FULL)
    found = take(full, "train", 7, 9)
    assert same(found[4:], take(full, "train", 7, 5, 4)) and not same(found, take(full, "train", 8, 9))
    assert all(y.shape == (16, 10) and torch.allclose(y.sum(1), torch.ones(16)) for _, y in found)
    assert all(y.dim() == 1 for _, y in [*full.batches("valid", 0), *take(full, "calibration", 7, 2)])
    assert same(take(full, "calibration", 7, 3), take(task, "calibration", 7, 3))


def test_soft_targets_go_through_the_loss_of_every_task(task, coloured):
    smooth = replace(task, mixup=0.4, recipe=replace(task.recipe, label_smoothing=0.1))
    x, y = take(smooth, "train", 0, 1)[0]
    net = task.build(0)
    log = net(x).log_softmax(-1).detach().numpy()
    expected = -((0.9 * y.numpy() + 0.01) * log).sum(1).mean()
    assert float(smooth.loss(net, (x, y)).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_task_with_mixing_trains(task, coloured):
    from dstbench.suite.method import Method
    from dstbench.suite.train import Training

    training = Training(replace(task, **FULL), Method(sparsity=0.0))
    training.run(until=3)
    assert np.isfinite(training.curve["loss"]).all()


def test_top5_is_a_second_metric_where_asked(task, coloured):
    net, device = task.build(0).eval(), torch.device("cpu")
    assert task.further(net, "test", device) == {}
    found = replace(task, top5=True).further(net, "test", device) | {"accuracy": task.evaluate(net, "test", device)}
    index = coloured.splits["test"]
    ranks = net(coloured.scaled(coloured.images[index])).detach().argsort(-1, descending=True).numpy()
    labels = coloured.labels[index].numpy()
    assert found["top5"] == pytest.approx((ranks[:, :5] == labels[:, None]).any(1).mean())
    assert found["accuracy"] == pytest.approx((ranks[:, 0] == labels).mean())
    assert task.evaluate(net, "test", device) == found["accuracy"]


def test_a_task_on_its_device_gives_the_same_batches(task, coloured):
    full = replace(task, **FULL)
    assert full.on(torch.device("meta"))._data().images.is_meta and not full._data().images.is_meta
    assert same(take(full.on(torch.device("cpu")), "train", 0, 3), take(full, "train", 0, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_live_on_the_gpu_and_are_augmented_there(task, coloured):
    full = replace(task, **FULL)
    there, here = take(full.on(torch.device("cuda", 0)), "train", 0, 3), take(full, "train", 0, 3)
    for (x, y), (a, b) in zip(there, here, strict=True):
        assert x.is_cuda and y.is_cuda
        torch.testing.assert_close((x.cpu(), y.cpu()), (a, b), atol=0.05, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mixing": 1.5}, "mixing is 1.5; give a share"),
        ({"mixup": -1.0}, "mixup is -1.0; give an α"),
        ({"randaugment": (2, 31)}, r"randaugment is \(2, 31\); give \(operations, magnitude of 0 to 30\)"),
    ],
)
def test_wrong_fields_are_refused(task, fields, text):
    with pytest.raises(ValueError, match=f"test/coloured: {text}"):
        replace(task, **fields)


def test_operations_on_floating_images_are_refused_before_training(task):
    with pytest.raises(ValueError, match="randaugment needs 8-bit images; those of 'digits' are floating ones"):
        replace(task, data="digits", randaugment=(1, 5)).prepare()


def test_what_a_task_has_not_is_left_out_of_its_description(task):
    assert {"mixup", "cutmix", "cutout", "randaugment", "top5", "mixing"}.isdisjoint(task.describe())
    assert FULL.items() <= replace(task, **FULL).describe().items()
