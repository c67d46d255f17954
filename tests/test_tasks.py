"""The tasks that ship: the registry's strings, sizes, costs beside ptflops, and that they learn."""

import hashlib
import importlib
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dstbench.suite import catalogue, registry, sizes
from dstbench.suite.meters.crosscheck import ptflops_macs
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.task import DataError
from dstbench.suite.train import Training
from dstbench.suite.values import plain
from dstbench.tasks import TASKS
from dstbench.tasks import data as sets
from dstbench.tasks.facts import published

SLOW = pytest.mark.slow
PINNED = Path(__file__).with_name("tasks.json")
NAMES = [entry.name for entry in TASKS]
SHAPES = {  # of data sets: images, and classes
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny_imagenet": ((3, 64, 64), 200),
}
DIGITS = [name for name in NAMES if name.startswith("digits/")]
# Parameters, maskable weights, forward multiply-adds; the ResNet-18 is the published CIFAR-10 net of 0.56 GMACs.
SIZES = {
    "digits/mlp": (17_610, 17_400, 17_400),
    "digits/resnet": (77_858, 77_128, 251_008),
    "digits/vit": (58_234, 56_544, 284_832),
    "cifar10/resnet18": (11_173_962, 11_164_352, 555_422_720),
    "cifar10/vit_tiny": (5_362_762, 12 * 12 * 192**2, 365_107_584),
}


def load(name):
    entry = next(entry for entry in TASKS if entry.name == name)
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture
def tasks(monkeypatch):
    """name -> task; those of images in memory see 300 random ones of the shape of their data set."""
    for data, (shape, classes) in SHAPES.items():
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(256, (300, *shape), generator=rng, dtype=torch.uint8)
        splits = dict(zip(("train", "valid", "test"), torch.arange(300).split([200, 40, 60]), strict=True))
        labels = torch.randint(classes, (300,), generator=rng)
        found = sets.Images(images, labels, splits, *sets.statistics(images, splits["train"]), "0" * 12)
        monkeypatch.setitem(sets.LOADERS, data, lambda root, download, found=found: found)
    sets._load.cache_clear()
    yield {name: load(name) for name in NAMES}
    sets._load.cache_clear()


def test_listing_imports_no_torch():
    code = "import sys; from dstbench import tasks; assert tasks.TASKS; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_entries_and_tasks_agree(name):
    task, entry = load(name), next(entry for entry in TASKS if entry.name == name)
    assert (task.name, task.version) == (entry.name, entry.version) and entry.family == name.split("/")[0]
    assert task.target is None or (task.target - task.chance) * (1 if task.higher_is_better else -1) > 0
    assert task.source
    assert set(task.recipe.lr) == set(task.recipe.weight_decay) == {"sgd", "adam"}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_docs_is_renewed_and_counts_are_the_published_ones(name):
    entry = next(entry for entry in TASKS if entry.name == name)
    row = sizes.row(entry)
    text = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    assert catalogue.task_line(name, row) in text, "renew its tables: dstbench list tasks --markdown"
    for count in ("parameters", "multiply_adds"):
        if theirs := published().get((name, count)):  # rounded, or with norms, or without positions
            assert row[count] / 1e6 == pytest.approx(theirs.millions, rel=0.015)


def pinned(name):
    """The version of a task, and a digest of what its runs depend on beside it."""
    task = load(name)
    kept = {key: value for key, value in task.describe().items() if key not in ("source", "version", "target", "dense")}
    text = json.dumps([plain(kept), list(task.dense), plain(asdict(task.recipe))], sort_keys=True)
    return [task.version, hashlib.sha256(text.encode()).hexdigest()[:12]]


def test_no_task_changes_under_its_version():
    """Records of before would be taken for records of now. Renew: python tests/test_tasks.py > tests/tasks.json"""
    assert json.loads(PINNED.read_text()) == {name: pinned(name) for name in NAMES}, "raise `version` of what changed"


def test_the_readme_says_how_many_there_are():
    assert f"Tasks: {len(NAMES)} by name" in (Path(__file__).parents[1] / "README.md").read_text()


def test_published_counts_are_of_tasks_that_there_are():
    assert {name for name, _ in published()} <= {*NAMES} and len(published()) >= 29
    assert {count for _, count in published()} == {"parameters", "multiply_adds"}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(tasks, name):
    task, (parameters, maskable, macs) = tasks[name], SIZES[name]
    net = task.build(0)
    assert sum(p.numel() for p in net.parameters()) == parameters
    model = SparseModel(net, task.example(), task.dense)
    assert model.maskable == maskable
    passes = model.dense_passes
    assert sum(passes.forward.values()) + passes.rest_forward == 2 * macs


@pytest.mark.parametrize("name", SIZES)
def test_forward_flops_agree_with_ptflops(tasks, name):
    assert ptflops_macs(tasks[name].build(0), tasks[name].example()) == pytest.approx(SIZES[name][2], rel=0.03)


def test_vit_flops_by_hand():
    """Patches, two blocks over five tokens (four patches and the class), products of activations, head."""
    block = 5 * (3 + 1 + 4 + 4) * 48**2 + 2 * 5 * 5 * 48
    assert 4 * 16 * 48 + 2 * block + 48 * 10 == SIZES["digits/vit"][2]


@pytest.mark.parametrize("name", SIZES)
def test_only_named_layers_are_dense(tasks, name):
    task = tasks[name]
    net = task.build(0)
    weights = {n for n, m in net.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    layers = {layer.name for layer in SparseModel(net, task.example(), task.dense).layers}
    assert weights - layers == set(task.dense)


@pytest.mark.parametrize("name", SIZES)
def test_first_batch_gives_a_finite_loss_near_chance(tasks, name):
    task = tasks[name]
    inputs, targets = next(task.batches("train", 0))
    assert len(targets) == task.recipe.batch and inputs.shape[1:] == task.example().shape[1:]
    with torch.no_grad():
        loss = task.loss(task.build(0).train(), (inputs[:16], targets[:16]))
    assert 0.3 * math.log(10) < float(loss) < 3 * math.log(10)


LARGE = ("wrn28_10", "resnet50", "resnet18", "set_mlp")
IMAGES = [name for name in NAMES if name.split("/")[0] in SHAPES and not name.endswith("autoencoder")]
SMALL = [name for name in IMAGES if name.split("/")[1] not in LARGE]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "name", [SMALL[0], *(pytest.param(n, marks=SLOW) for n in IMAGES if n not in SMALL), *SMALL[1:]]
)
def test_every_task_of_images_does_a_step_and_an_evaluation(tasks, name):
    """The classes that the network tells apart are those of the data, and every weight but those named is a Layer."""
    task = replace(tasks[name], recipe=replace(tasks[name].recipe, steps=1, batch=2, accumulate=1), images=4)
    training = Training(task, registry.method("set", sparsity=0.9))
    shape, classes = SHAPES[task.data]
    assert task.example().shape[1:] == shape and training.model(task.example()).shape == (2, classes)
    training.setup()
    training.run()
    assert training.t == 1 and 0 <= training.evaluate("valid") <= 1 and training.model.density < 0.2
    left = {*training.model.left_dense} - {f"{name}.weight" for name in task.dense}
    assert not left & {f"{n}.weight" for n, m in training.model.net.named_modules() if isinstance(m, torch.nn.Conv2d)}


def test_digits_resnet_sees_300_images():
    task = load("digits/resnet")
    batches = task.batches("train", 0)
    seen = torch.cat([next(batches)[0] for _ in range(24)]).flatten(1).unique(dim=0)
    assert len(seen) == 300


@pytest.mark.parametrize("name", ["cifar10/resnet18", "cifar10/vit_tiny"])
def test_missing_cifar10_is_one_clear_error(tmp_path, name):
    sets._load.cache_clear()
    with pytest.raises(DataError, match=r"cifar-10-batches-py.*no such file.*--data-root DIR.*--download"):
        replace(load(name), root=tmp_path).prepare()


@pytest.mark.parametrize("name", DIGITS)
def test_digits_are_learnt_in_a_few_steps(name):
    training = Training(load(name), Method(sparsity=0.0), budget=0.15)
    start = training.evaluate("valid")
    training.run()
    assert start < 0.4 and training.evaluate("valid") > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("name, least", [("digits/mlp", 0.95), ("digits/resnet", 0.95), ("digits/vit", 0.93)])
def test_dense_accuracy(name, least, kind):
    """The promise of the quick plan, mean of 3 seeds on the test split, with the tuned learning rates."""
    task, scores = load(name), []
    for seed in range(3):
        training = Training(replace(task, recipe=replace(task.recipe, optimizer=kind)), Method(sparsity=0.0), seed)
        training.run()
        scores.append(training.evaluate("test"))
    assert sum(scores) / 3 >= least


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(pinned(name))}" for name in NAMES]
    print("{", ",\n".join(lines), "}", sep="\n")
