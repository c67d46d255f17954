from pathlib import Path

import pytest

from dstbench.suite import planfile
from dstbench.suite.planfile import Plan, PlanError

GOOD = """\
name: good
methods:
  - rigl
  - dense
tasks: [digits/mlp]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plan.yaml"


def mistakes(file: Path, text: str, **options: object) -> list[str]:
    file.write_text(text)
    with pytest.raises(PlanError) as error:
        planfile.read(file, options)
    return [line.removeprefix(str(file)) for line in str(error.value).splitlines()]


def test_the_embedded_plan() -> None:
    plan = planfile.read()
    assert plan.name == "quick" and len(plan.methods) == 8 and plan.seeds == [0, 1, 2] and plan.sparsity == [0.9, 0.95]


def test_defaults(file: Path) -> None:
    file.write_text(GOOD)
    plan = planfile.read(file)
    assert (plan.sparsity, plan.seeds, plan.budget, plan.kernel, plan.threads) == ([0.9], [0], 1.0, "masked", 1)
    assert plan.chosen() == [("rigl", {}), ("dense", {})]


def test_all_mistakes_at_once_each_with_its_line(file: Path) -> None:
    found = mistakes(
        file,
        """\
name: bad
methods:
  - rigl
  - lin_breg
tasks: [digits/mlp,
  digits/mpl]
sparsity:
  - 0.9
  - 1.0
  - -0.1
  - high
seeds: [0, -1]
buget: 3
budget: 0
timeout: soon
threads: 0
precision: fp8
device: gpu
kernel: fast
set:
  digits/mlp.lr.sdg: 0.1
  digits/mlp.steps: many
  digits/vit.steps: 3
  foo.x: 1
""",
    )
    wanted = [
        ":9: sparsity.1 is 1.0: input should be less than 1",
        ":10: sparsity.2 is -0.1: input should be greater than or equal to 0",
        ":11: sparsity.3 is 'high': input should be a valid number",
        ":12: seeds.1 is -1: input should be greater than or equal to 0",
        ":13: unknown key 'buget'; did you mean budget?",
        ":14: budget is 0: input should be greater than 0",
        ":15: timeout is 'soon': a time such as",
        ":16: threads is 0",
        ":17: precision is 'fp8': input should be 'fp32', 'bf16' or 'fp16'",
        ":18: device is 'gpu'",
        ":19: unknown kernel 'fast'; choose one of masked, compact, sparse",
        ":4: unknown method 'lin_breg'; did you mean linbreg",
        ":6: unknown task 'digits/mpl'; did you mean digits/mlp",
        ":21: digits/mlp.lr has no entry 'sdg' (given 0.1); did you mean sgd?",
        ":22: digits/mlp.steps is 'many'",
        ":23: 'digits/vit.steps': digits/vit is not in this plan",
        ":24: 'foo.x' names no METHOD_OR_TASK.FIELD",
    ]
    for text in wanted:
        assert any(line.startswith(text) for line in found), (text, found)
    assert len(found) == len(wanted)


def test_hyperparameters_in_the_list_of_methods(file: Path) -> None:
    found = mistakes(file, GOOD + "sparsity: 0.5\n", methods=[{"rigl": {"alhpa": 0.1, "sparsity": 0.3}}, "dense"])
    assert found == ["--methods: rigl.sparsity: the sparsity is a key of the plan, or the option --sparsity"]
    found = mistakes(file, "tasks: [digits/mlp]\nmethods:\n  - rigl:\n      fraction_: 0.1\n")
    assert found[0].startswith(":4: rigl has no field 'fraction_'")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("methods: [rigl]\n", ":1: the key 'tasks' is missing"),
        ("methods: [rigl]\ntasks: []\n", ":2: tasks is []"),
        ("methods: rigl\ntasks: [digits/mlp]\n", ":1: methods is 'rigl'"),
        ("- rigl\n", ": a plan is a mapping"),
        ("", ": a plan is a mapping"),
        ("methods: [rigl\ntasks: 3\n", ":"),
        ("name: a\nname: b\n", ":2: found duplicate key"),
    ],
)
def test_files_that_are_no_plan(file: Path, text: str, part: str) -> None:
    assert mistakes(file, text)[0].startswith(part)


def test_no_such_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan 'quik': no such file, and the embedded plans are methods, quick"):
        planfile.read("quik")
    with pytest.raises(PlanError, match="it is a folder"):
        planfile.read(tmp_path)


def test_options_replace_keys_and_mistakes_name_the_option(file: Path) -> None:
    file.write_text(GOOD + "seeds: 5\nset: {rigl.budget: 2}\n")
    plan = planfile.read(file, {"seeds": ["3"], "sparsity": ["0.5"], "kernel": None, "set": {"digits/mlp.steps": "3"}})
    assert (plan.seeds, plan.sparsity, plan.kernel) == ([3], [0.5], "masked")
    assert plan.set == {"rigl.budget": 2, "digits/mlp.steps": "3"}
    found = mistakes(file, GOOD, seeds=["x"], methods=["foo"], set={"bar.x": "1"})
    assert [line.split(":")[0] for line in found] == ["--seeds", "--methods", "--set"]


def test_seeds_are_a_list_or_a_count() -> None:
    both = {"methods": ["a"], "tasks": ["b"]}
    assert Plan.model_validate({**both, "seeds": 3}).seeds == [0, 1, 2]
    assert Plan.model_validate({**both, "seeds": [3]}).seeds == [3]
    with pytest.raises(ValueError, match="seeds"):
        Plan.model_validate({**both, "seeds": 0})
    assert Plan.model_validate({**both, "sparsity": 0.5}).sparsity == [0.5]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2h", 7200), ("1h30m", 5400), ("90s", 90), ("90", 90), (15, 15), ("1.5m", 90), ("1 d", 86400), (None, None)],
)
def test_times(text: object, wanted: float | None) -> None:
    assert planfile.seconds(text) == wanted


@pytest.mark.parametrize("text", ["soon", "", "2x", "-3", "0", "h", "1h of rest"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="a time"):
        planfile.seconds(text)


def test_target_takes_the_longest_name() -> None:
    names = dict.fromkeys(["dense", "dense:adam", "digits/mlp", "a", "a.b"])
    for key, wanted in {
        "dense:adam.x": ("dense:adam", "x"),
        "digits/mlp.lr.sgd": ("digits/mlp", "lr.sgd"),
        "a.b.c": ("a.b", "c"),
        "none.x": ("", ""),
        "dense": ("", ""),
    }.items():
        assert planfile.target(key, names) == wanted  # type: ignore[arg-type]
