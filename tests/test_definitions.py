"""Tasks that a plan or a task file defines: read with lines, validated at once, known by name, and part of a run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import photos
from dstbench import cli
from dstbench.reports.load import frame
from dstbench.suite import definitions, plan, planfile, record, registry, sources
from dstbench.suite.plan import Run
from dstbench.suite.planfile import PlanError
from dstbench.suite.registry import RegistryError
from dstbench.suite.run import build
from records import ended, make

FILE = """\
name: mine/small
data: digits
model: mlp
arguments: {hidden: [12]}
recipe: {epochs: 2, batch: 50, lr: {sgd: 0.2}}
"""
PLAN = """\
methods: [dense, rigl]
device: cpu
tasks:
  - digits/mlp
  - name: mine/small
    data: {folder: photos, size: 16}
    model: timm:test_resnet
    recipe: {epochs: 2, batch: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "task.yaml").write_text(FILE)
    return tmp_path / "task.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos.made(tmp_path / "photos", 10)


def mistakes(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(RegistryError) as error:
        registry.tasks([path])
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_task_of_a_file_is_a_task_by_name(file: Path) -> None:
    entry = registry.find("task", "mine/small", [file])
    assert (entry.origin, entry.family) == (f"task file {file}", "mine")
    task = registry.task("mine/small", [file], {"lr.adam": 0.5})
    assert (task.recipe.steps, task.recipe.batch, task.recipe.lr) == (2 * 20, 50, {"sgd": 0.2, "adam": 0.5})
    assert [m.out_features for m in task.build(0) if hasattr(m, "out_features")] == [12, 10]
    assert task.judged()["chance"] == 0.1 and "not published; own: batch, epochs, lr.sgd" in task.source  # type: ignore


@pytest.mark.parametrize("form", ["- {}", "tasks:\n  - digits/mlp\n  - {}"])
def test_a_file_holds_one_or_several(file: Path, form: str) -> None:
    one = json.dumps({"name": "mine/a", "data": "digits", "model": "timm:resnet18"})
    file.write_text(form.format(one) + f"\n{form.splitlines()[-1].format(one.replace('/a', '/b'))}\n")
    assert [made.name for made in definitions.read(file)] == ["mine/a", "mine/b"]


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    assert "mine/small" in registry.tasks([file])
    file.write_text(FILE.replace("small", "other"))
    os.utime(file, ns=(1, 1))
    assert "mine/other" in registry.tasks([file]) and "mine/small" not in registry.tasks([file])


def test_all_mistakes_at_once_each_with_its_line(file: Path, tmp_path: Path) -> None:
    found = mistakes(
        file,
        """\
- name: mine/a
  data: {folder: gone, siez: 3}
  model: timm:resnet18
- name: "a b"
  data: digits
  modle: mlp
- name: mine/c
  data: digit
  model: timm:resnet26x
  recipe:
    bach: 3
    lr:
      sdg: 1
    warmup: 2
    epochs: -1
    steps: 3
- name: mine/d
  data: {folder: gone}
  model: lenet
- name: mine/d
  data: {folder: gone, name: digits}
  model: [1]
- text
""",
    )
    text = "\n".join(found)
    for line in (
        "2: unknown key 'data.siez'; did you mean size?",
        "6: unknown key 'modle'; did you mean model?",
        "4: the key 'model' is missing",
        "11: mine/c.recipe has no field 'bach' (given bach=3); did you mean batch?",
        "13: mine/c.recipe.lr has no entry 'sdg' (given 1); did you mean sgd?",
        "14: mine/c: recipe.warmup is 2.0; give a share of the steps in [0, 1)",
        "15: mine/c.recipe.epochs is -1: a number above 0 is expected",
        "16: mine/c.recipe has epochs and steps; give one of them",
        "8: mine/c: unknown data set 'digit'; did you mean digits?, or {folder: PATH}",
        "9: mine/c: timm has no model 'resnet26x'; did you mean resnet26",
        f"18: mine/d: {tmp_path}/gone: no such folder",
        "19: mine/d: unknown model 'lenet'; ",
        "21: data is {'folder': 'gone', 'name': 'digits'}: give {folder: PATH}, or the name of a data set",
        "22: model is [1]: a text is expected",
        "20: 'mine/d' is defined twice",
        "23: 'text': {name: …, data: …, model: …} is expected",
    ):
        assert line in text, f"{line}\n{text}"
    assert any(line.startswith("4: name is 'a b': ") for line in found)


@pytest.mark.parametrize(("text", "wrong"), [("", "no task is defined|is expected"), ("[]", "no task is defined")])
def test_a_file_without_a_task_is_said(file: Path, text: str, wrong: str) -> None:
    file.write_text(text)
    with pytest.raises(RegistryError, match=wrong):
        registry.tasks([file])


def test_a_file_that_takes_a_name_is_refused(file: Path) -> None:
    file.write_text(FILE.replace("mine/small", "digits/mlp"))
    with pytest.raises(RegistryError, match=r"built-in and task file .* both name a task 'digits/mlp'"):
        registry.tasks([file])


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_defines_a_task_beside_names(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN + "set: {mine/small.lr.sgd: 0.3}\n")
    found = planfile.read(tmp_path / "plan.yaml")
    assert found.names() == ["digits/mlp", "mine/small"]
    runs = plan.expand(found)
    own = [run for run in runs if run.task == "mine/small"]
    assert len(runs) == 4 and not runs[0].definition and len(own) == 2
    data = {"folder": str(folder), "size": 16}
    recipe = {"epochs": 2.0, "batch": 8}
    assert own[0].definition == {"name": "mine/small", "data": data, "model": "timm:test_resnet", "recipe": recipe}
    assert own[0].recipe == {"lr.sgd": 0.3} and not own[0].plugins and len(own[0].data) == 12
    task, _ = build(Run.from_json(json.loads(json.dumps(own[1].to_json()))))
    assert task.recipe.lr["sgd"] == 0.3 and task.recipe.steps == 2 * (30 // 8) and task.fingerprint() == own[0].data
    assert planfile.read(tmp_path / "plan.yaml", {"tasks": ["mine/small"]}).names() == ["mine/small"]


def test_the_path_of_the_folder_is_no_identity(folder: Path, tmp_path: Path) -> None:
    given = {"name": "mine/a", "data": {"folder": str(folder), "size": 16}, "model": "mlp"}
    run = Run("dense", "mine/a", data="0" * 12, definition=given)
    moved = replace(run, definition={**given, "data": {"folder": "/elsewhere", "size": 16}})
    assert run.key == moved.key
    assert run.identity()["definition"] == {**given, "data": {"folder": "0" * 12, "size": 16}}
    for other in ({"data": {"folder": "/a", "size": 32}}, {"model": "resnet"}, {"recipe": {"epochs": 1.0}}):
        assert replace(run, definition={**given, **other}).key != run.key
    record.write(ended(run), tmp_path)
    (found,), aside = record.load(tmp_path)
    assert not aside and found["id"]["definition"]["data"]["folder"] == "0" * 12


def test_mistakes_in_a_plan_have_its_lines(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        PLAN.replace("folder: photos", "folder: photo")
        + "  - {name: digits/vit, data: digits, model: mlp}\n  - 3\n  - cifar10/timm:resnet26x\n"
        "set:\n  mine/small.steps: 3\n  mine/smal.steps: 4\n"
    )
    with pytest.raises(PlanError) as error:
        planfile.read(path)
    text = str(error.value).replace(f"{path}:", "")
    for line in (
        f"6: mine/small: {tmp_path}/photo: no such folder",
        "9: 'digits/vit' is taken already (built-in): give the definition another name",
        "10: tasks is 3: a task's name is expected, or {name: …, data: …, model: …}",
        "14: 'mine/smal.steps' names no METHOD_OR_TASK.FIELD",
    ):
        assert line in text, text
    path.write_text(PLAN.replace("- digits/mlp", "- cifar10/timm:resnet26x").replace("model: timm", "# model: timm"))
    with pytest.raises(PlanError) as error:
        planfile.read(path)
    text = str(error.value).replace(f"{path}:", "")
    assert "4: cifar10/timm:resnet26x: timm has no model 'resnet26x'; did you mean" in text
    assert "5: the key 'model' is missing" in text and len(text.splitlines()) == 2, text


def test_a_schedule_and_its_milestones_go_together(tmp_path: Path, folder: Path) -> None:
    recipe = "{epochs: 4, batch: 8, schedule: multistep, milestones: [0.5, 0.75]}"
    path = tmp_path / "plan.yaml"
    plain = PLAN.replace("{epochs: 2, batch: 8}", recipe)
    path.write_text(plain + "set:\n  digits/mlp.schedule: multistep\n  digits/mlp.milestones: [0.5]\n")
    runs = plan.expand(planfile.read(path))
    assert runs[-1].definition["recipe"]["milestones"] == [0.5, 0.75]
    assert runs[0].recipe == {"schedule": "multistep", "milestones": [0.5]}
    path.write_text(
        PLAN.replace("{epochs: 2, batch: 8}", "\n      epochs: 4\n      schedule: step\n      milestones: [0.5, 0.75]")
        + "set:\n  digits/mlp.steps: 9\n  digits/mlp.schedule: multistep\n"
    )
    with pytest.raises(PlanError) as error:
        planfile.read(path)
    text = str(error.value).replace(f"{path}:", "")
    assert "11: mine/small: recipe.milestones is [0.5, 0.75]; step takes" in text
    assert "14: digits/mlp: recipe.milestones is []; multistep takes" in text and len(text.splitlines()) == 2, text


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "a\\0b", "a" * 5000])
def test_odd_folders_are_mistakes_with_their_line(folder: str, tmp_path: Path) -> None:
    text = f'name: mine/x\ndata:\n  folder: "{folder}"\nmodel: mlp\n'
    assert [line.partition(":")[0] for line in mistakes(tmp_path / "task.yaml", text)] == ["3"]


@pytest.mark.parametrize("name", ["rigl", "digits/timm:test_resnet"])
def test_names_of_methods_and_of_composed_tasks_are_taken(name: str, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace("mine/small", name))
    with pytest.raises(PlanError, match=f"'{name}' is taken already"):
        planfile.read(tmp_path / "plan.yaml")


def test_a_plan_takes_the_tasks_of_files(file: Path) -> None:
    files = [str(file)]
    assert planfile.read("quick", {}, files).names() == ["mine/small"]
    assert planfile.read("quick", {"tasks": ["digits/mlp"]}, files).names() == ["digits/mlp"]
    (run, *_) = plan.expand(planfile.read("quick", {"device": "cpu"}, files), files)
    assert run.definition["model"] == "mlp" and not run.plugins


def test_a_record_of_a_definition_has_a_source(file: Path) -> None:
    entry = registry.find("task", "mine/small", [file])
    named = {"method": "dense", "task": "digits/timm:resnet18", "key": "0"}
    own = {"method": "dense", "task": "gone/away", "key": "1", "definition": dict(entry.definition)}
    odd = {**own, "definition": {"name": 3}}
    found = sources.hashes([{"id": named}, {"id": own}, {"id": {**named, "task": "unknown"}}, {"id": odd}])["task"]
    assert found == dict.fromkeys(("digits/timm:resnet18", "gone/away"), sources.source_hash(entry))


def test_runs_of_definitions_that_differ_are_not_averaged() -> None:
    given = {"name": "mine/a", "data": {"folder": "d" * 12}, "model": "mlp"}
    many = [{"definition": given}, {"definition": given, "seed": 1}, {"definition": {**given, "model": "resnet"}}, {}]
    found = frame([make(task="mine/a", id=who) for who in many])["task"].tolist()
    assert found[0] == found[1] and len({*found}) == 3 and found[0].startswith("mine/a definition ")
    other = {"definition": {**given, "data": {"folder": "e" * 12}}, "data": "e" * 12}
    found = frame([make(task="mine/a", id=who) for who in (many[0], other)])["task"].tolist()
    assert found == ["mine/a v1 data dddddddddddd", "mine/a v1 data eeeeeeeeeeee"]
    assert frame([make(task="mine/a", id=many[0])])["task"].tolist() == ["mine/a"]


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["list", "tasks"], "mine/small"),
        (["explain", "rigl", "--task", "mine/small", "--kernel", "masked", "--device", "cpu"], "fc1"),
        (["run", "--methods", "dense", "--device", "cpu", "--dry-run"], "dense mine/small dense seed 0"),
        (["status", "quick"], "left of the plan"),
    ],
)
def test_commands_take_task_files(arguments: list[str], wanted: str, file: Path, tmp_path: Path) -> None:
    more = ["--results", str(tmp_path / "r")] if arguments[0] in ("run", "status") else []
    (tmp_path / "r").mkdir()
    result = CliRunner().invoke(cli.app, [*arguments, "--task-file", str(file), *more])
    assert result.exit_code == 0 and wanted in result.output, result.output


@pytest.mark.parametrize("target", ["mine/small", "FILE"])
def test_a_task_of_a_file_is_checked(target: str, file: Path) -> None:
    given = [str(file)] if target == "FILE" else [target, "--task-file", str(file)]
    result = CliRunner().invoke(cli.app, ["check", *given])
    assert result.exit_code == 0 and "mine/small: 9 of 9 ok" in result.output, result.output


@pytest.mark.slow
def test_what_is_listed_as_json_is_counted(file: Path) -> None:
    result = CliRunner().invoke(cli.app, ["list", "tasks", "--json", "--task-file", str(file)])
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert (rows["mine/small"]["data"], rows["mine/small"]["multiply_adds"]) == ("digits", 64 * 12 + 12 * 10)
    assert rows["mine/small"]["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert rows["cifar10/resnet18"]["parameters"] == 11_173_962  # github.com/kuangliu/pytorch-cifar
    assert 555e6 < rows["cifar10/resnet18"]["multiply_adds"] < 557e6  # 0.56 G, as published


def test_a_missing_task_file_is_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["list", "tasks", "--task-file", str(tmp_path / "gone.yaml")])
    assert result.exit_code == 2 and "--task-file: " in result.output and "no such file" in result.output
