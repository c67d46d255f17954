"""Tasks of any data set, or a folder of one's own, and any network: by name, by definition, and up to a leaderboard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import photos
from dstbench import cli
from dstbench.reports import boards, costs, sections
from dstbench.reports.load import frame
from dstbench.suite import catalogue, definitions, planfile, record, registry, scaffold, sizes
from dstbench.suite import plan as plans
from dstbench.suite.run import execute
from dstbench.suite.task import DataError
from dstbench.tasks import compose, composed, fitting
from dstbench.tasks import data as sets
from dstbench.tasks.facts import FACTS, Facts

DATA = Path(__file__).parents[2] / "shared" / "data"
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos.made(tmp_path / "flowers")


def defined(folder: Path, **fields: Any) -> Any:
    given = {"name": "flowers/net", "data": {"folder": str(folder)}, "model": "timm:test_resnet", **fields}
    return registry.task("flowers/net", definition=given)


# ---- by name ---------------------------------------------------------------------------------------------------------


def test_any_data_set_goes_with_any_network() -> None:
    task: Any = registry.task("digits/timm:test_resnet", recipe={"steps": 3})
    assert (task.version, task.recipe.steps, task.data) == (compose.VERSION, 3, "digits")
    net = task.build(0)
    inputs, labels = next(task.batches("train", 0))
    assert net(inputs).shape == (32, 10) and inputs.shape == (32, 1, 8, 8) and labels.max() < 10
    data = sets.load("digits")
    index = data.splits["train"][:2]
    assert torch.equal(task.example(), data.scaled(data.images[index])) and task.judged()["chance"] == 0.1
    assert task.describe()["model"] == "timm:test_resnet" and task.source.startswith("ours for 1,000 training images")


@pytest.mark.parametrize("name", ["digits", "digits/", "digit/timm:resnet18", "digits/resnet1", "a/b/c", "rigl", "/"])
def test_other_names_are_none(name: str) -> None:
    assert compose.by_name(name) is None
    with pytest.raises(registry.RegistryError, match=f"unknown task '{name}'"):
        registry.find("task", name)


def test_a_slip_in_a_name_of_timm_gets_a_suggestion() -> None:
    with pytest.raises(
        registry.RegistryError, match="timm has no model 'vit_tny_patch16_224'; did you mean vit_tiny_p"
    ):
        registry.find("task", "cifar10/timm:vit_tny_patch16_224")
    with pytest.raises(registry.RegistryError, match=r"'zzz'; `timm.list_models\(\)` names them all"):
        registry.find("task", "cifar10/timm:zzz")


def test_a_table_goes_before_names_that_are_composed() -> None:
    assert registry.find("task", "cifar10/resnet18").target == "dstbench.tasks.cifar10:RESNET18"
    assert registry.find("task", "cifar10/timm:resnet18").target == compose.TARGET


def test_a_named_task_runs_without_a_definition(tmp_path: Path) -> None:
    plan = {"methods": ["static"], "tasks": ["digits/timm:test_resnet"], "device": "cpu", "budget": 0.002}
    (run,) = plans.expand(planfile.read("quick", {**plan, "sparsity": [0.9], "seeds": 1}))
    assert not run.definition and "definition" not in run.identity()
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    (found,), _ = record.load(tmp_path)
    assert found["id"]["task"] == "digits/timm:test_resnet" and found["score"]["chance"] == 0.1


@pytest.mark.parametrize(("images", "batch"), [(500, 32), (1_000, 32), (4_000, 64), (45_000, 128), (1_281_167, 256)])
def test_the_default_recipe_follows_the_number_of_images(images: int, batch: int) -> None:
    recipe = composed.default(images)
    epochs = recipe.steps * recipe.batch / images
    assert recipe.batch == batch and 40 <= epochs <= 120, epochs
    assert composed.default(20).batch == 20


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.train])
def test_facts_are_those_of_the_data(name: str) -> None:
    from dstbench.tasks import data

    if name not in compose.data_sets() or name not in ("digits", "mnist5k", "mnist", "fashion_mnist"):
        pytest.skip(f"{name}: not there, or long to read")
    try:
        images: Any = data.load(name, DATA)
    except DataError as error:
        pytest.skip(str(error))
    assert composed._facts(images) == FACTS[name]


# ---- what fits -------------------------------------------------------------------------------------------------------


VIT = "vit_tiny_patch16_224"


def test_a_network_of_fixed_size_is_built_for_the_images() -> None:
    given = {"depth": 1}
    small = fitting.fitted(VIT, given, Facts((3, 32, 32), 7))
    assert small == {"depth": 1, "in_chans": 3, "num_classes": 7, "img_size": 32}
    assert "img_size" not in fitting.fitted(VIT, given, Facts((3, 224, 224), 7))
    assert fitting.kind(VIT, given) == "adam" and fitting.kind("test_resnet", {}) == "sgd"


def test_a_size_that_does_not_fit_is_said_with_those_that_do() -> None:
    given = {"name": "a/b", "data": "digits", "model": f"timm:{VIT}", "arguments": {"depth": 1}}
    text = rf"a/b: timm:{VIT} does not take images of 1x8x8 \(.*\); it takes 32x32, 64x64, 96x96: .*size: 32}}$"
    with pytest.raises(registry.RegistryError, match=text):
        registry.task("a/b", definition=given)
    task = registry.task("a/b", definition={**given, "data": {"name": "digits", "size": 32}})
    inputs, _ = next(task.batches("valid", 0))
    assert inputs.shape == (200, 1, 32, 32) and task.example().shape[1:] == (1, 32, 32)
    assert task.build(0)(inputs[:2]).shape == (2, 10) and task.recipe.optimizer == "adam"


def test_a_factory_takes_what_it_can() -> None:
    with pytest.raises(registry.RegistryError, match=r"mlp does not take .*hidden"):
        registry.task("a/b", definition={"name": "a/b", "data": "digits", "model": "mlp"})


def test_epochs_need_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTS, "digits", Facts((1, 8, 8), 10))
    given = {"name": "a/unknown", "data": "digits", "model": "timm:test_resnet", "recipe": {"epochs": 3.0}}
    with pytest.raises(
        registry.RegistryError,
        match="a/unknown: how many images an epoch has is not known before the data is read: give steps",
    ):
        registry.task("a/unknown", definition=given)
    task = registry.task("a/unknown", definition={**given, "recipe": {"steps": 3}})
    task.prepare()
    assert task.build(0)(task.example()).shape == (2, 10) and task.judged()["chance"] == 0.1


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_task(folder: Path) -> None:
    task = defined(folder, recipe={"epochs": 3.0, "batch": 8}, flip=True, target=0.9)
    task.prepare()
    assert task.recipe.steps == 3 * (48 // 8) and task.flip and task.judged()["chance"] == 1 / 3
    assert task.build(0)(task.example()).shape == (2, 3) and task.describe()["data"] == "flowers"
    assert sum(len(labels) for _, labels in task.batches("test", 0)) == 6
    assert defined(folder, data={"folder": str(folder), "size": 12}).example().shape == (2, 3, 12, 12)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"data": {"classes": 4}}, r"flowers/net: .*flowers has 3 classes where data.classes says 4: mend"),
        ({"recipe": {"batch": 64}}, "flowers/net: recipe.batch 64 is larger than the 48 training images"),
        (
            {"model": f"timm:{VIT}", "arguments": {"depth": 1}},
            "timm:vit_tiny_p.* does not take images of 3x24x24 .*it takes",
        ),
        ({"arguments": {"dapth": 3}}, "flowers/net: timm:test_resnet does not take .*dapth"),
        ({"recipe": {"batch": 9, "accumulate": 2}}, "flowers/net: recipe.batch 9 does not split into 2"),
    ],
)
def test_what_does_not_go_together_is_said(fields: dict[str, Any], text: str, folder: Path) -> None:
    if "data" in fields:
        fields = {"data": {"folder": str(folder), **fields["data"]}}
    with pytest.raises(registry.RegistryError, match=text):
        defined(folder, **fields)


def test_a_folder_without_images_is_the_readers_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        defined(tmp_path / "empty")


def test_a_folder_gets_a_definition(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "tasks"
    arguments = ["new", "task", "flowers/small", "--from-folder", str(folder), "--folder", str(there)]
    result = CliRunner().invoke(cli.app, [*arguments, "--model", "timm:test_resnet"], prog_name="dstbench")
    file = there / "flowers_small.yaml"
    assert (
        result.exit_code == 0 and f"wrote {file}: 3 classes, 48 train, 6 valid, 6 test images of 24x24" in result.output
    )
    assert len(file.read_text().splitlines()) < 12 and 'folder: "../flowers"' in file.read_text()
    task: Any = registry.task("flowers/small", [file])
    assert (Path(task.data["folder"]).resolve(), task.size, task.classes, task.pad, task.flip) == (
        folder,
        24,
        3,
        3,
        True,
    )
    assert (task.recipe.batch, task.recipe.steps) == (8, 60)
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 2 and "there already" in again.output
    for line in result.output.splitlines()[2:]:
        assert str(file) in line and line.strip().startswith("dstbench ")


@pytest.mark.parametrize(
    ("name", "model", "text"),
    [
        ("a b", "timm:test_resnet", "'a b' cannot name a task"),
        ("digits/mlp", "timm:test_resnet", "'digits/mlp' is the name of a task already"),
        ("mine", "timm:test_resnt", "timm has no model 'test_resnt'; did you mean test_resnet"),
        ("mine", "timm:vit_tiny_patch16_224", "it takes 32x32"),
    ],
)
def test_a_definition_that_will_not_do_is_not_written(
    name: str, model: str, text: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(scaffold.Refused, match=text):
        scaffold.defined(name, folder, model, tmp_path / "new")
    assert not [*tmp_path.glob("new/*")]


@pytest.mark.parametrize("name", ["true", "123", "1e3", "null", "2020-01-01"])
def test_names_that_yaml_would_take_for_something_else(name: str, folder: Path, tmp_path: Path) -> None:
    scaffold.defined(name, folder, "timm:test_resnet", tmp_path / "new")
    assert registry.task(name, [tmp_path / "new" / f"{name}.yaml"]).name == name


def test_a_folder_whose_name_cannot_be_written_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    odd = folder.rename(folder.with_name(os.fsdecode(b"bl\xfcten")))
    with pytest.raises(scaffold.Refused, match="no UTF-8"):
        scaffold.defined("mine/x", odd, "timm:test_resnet", tmp_path / "new")
    assert not [*tmp_path.glob("new/*")]


def test_mirroring_of_streamed_images_may_be_switched_off() -> None:
    given = {"name": "mine", "data": "imagenet", "model": "timm:test_resnet"}
    plain, still = (registry.task("mine", definition={**given, **more}) for more in ({}, {"flip": False}))
    assert plain.flip and not still.flip


@pytest.mark.parametrize("kind", ["folder", "broken", "without a rate", "no data"])
def test_any_task_is_a_line_of_the_list(kind: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    rates = "lr={'adam': 0.1}, weight_decay={'adam': 0.0}"
    file.write_text(
        "from dstbench import Recipe, Task, register\n"
        f"register(Task(name='mine/x', recipe=Recipe(steps=1, batch=2, {rates})))\n"
        if kind == "without a rate"
        else "1 / 0\n"
    )
    entry = {
        "folder": lambda: definitions.entry(
            {"name": "a/b", "data": {"folder": str(folder)}, "model": "timm:test_resnet"}
        ),
        "broken": lambda: registry.Entry("a/b", "nowhere:task", broken="it is"),
        "without a rate": lambda: registry.tasks([str(file)])["mine/x"],
        "no data": lambda: registry.find("task", "tiny_imagenet/timm:test_resnet"),
    }[kind]()
    line = catalogue.task_line(entry.name, sizes.row(entry))
    assert line.count(" | ") == 6 and line.startswith(f"| `{entry.name}` |")
    assert ("sgd nan" in line) == (kind == "without a rate") and ("epochs" in line) == (kind == "folder")


def test_the_cost_of_tiny_imagenet_is_known_without_it(tmp_path: Path) -> None:
    command = ["run", "--dry-run", "--methods", "dense", "--tasks", "tiny_imagenet/timm:test_resnet", "--seeds", "1"]
    result = CliRunner().invoke(cli.app, [*command, "--device", "cpu", "--data-root", str(tmp_path)])
    assert result.exit_code == 0 and "the data of tiny_imagenet/timm:test_resnet is missing" in result.output


@pytest.mark.parametrize("network", ["timm:test_resnet", pytest.param("timm:resnet18", marks=pytest.mark.slow)])
def test_the_yaml_of_the_readme_leads_from_a_folder_to_a_leaderboard(
    network: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.read_text("utf-8").partition("## Your own images in one file")[2]
    text = section.partition("```yaml\n")[2].partition("```")[0]
    assert 0 < len(text.splitlines()) < 12 and "model: timm:resnet18" in text
    (tmp_path / "flowers.yaml").write_text(text.replace("timm:resnet18", network))
    monkeypatch.chdir(tmp_path)
    plan = planfile.read("flowers.yaml", {"device": "cpu", "seeds": 1, "budget": 0.2})
    runs = plans.expand(plan)
    assert {run.definition["data"]["folder"] for run in runs} == {str(folder)} and len(runs) == len(plan.methods) > 2
    assert all(execute(json.loads(json.dumps(run.to_json())), "results") == "ok" for run in runs[:2])
    found, aside = record.load(Path("results"))
    assert len(found) == 2 and not aside and found[0]["id"]["definition"]["data"]["size"] == 64
    runs_of = frame(found)
    cells = boards.cells(runs_of)
    assert {*cells["task"]} == {"flowers/resnet18"} and {*cells["method"]} == {"dense", "static"}
    assert "static" in str(sections.leaderboard(cells, costs.flops(runs_of), "").rows)
    if network == "timm:resnet18":
        result = CliRunner().invoke(cli.app, ["report"])
        assert result.exit_code == 0 and "static" in result.output and "dense" in result.output, result.output
        assert "flowers/resnet18" in Path("report/index.html").read_text("utf-8")
