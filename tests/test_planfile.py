from pathlib import Path
from typing import Any

import pytest

from dstbench.suite import fields, planfile, record, schema
from dstbench.suite import plan as plans
from dstbench.suite.planfile import PlanError

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
        ":9: sparsity is 1.0: a share of zero weights from 0 up to 1 is expected, without 1 itself",
        ":10: sparsity is -0.1: a share of zero weights",
        ":11: sparsity is 'high': a share of zero weights",
        ":12: seeds is [0, -1]: -1 is no seed and no range",
        ":13: unknown key 'buget'; did you mean budget?",
        ":14: budget is 0: a number from 1e-12 up is expected",
        ":15: timeout is 'soon': a time such as",
        ":16: threads is 0: a number from 1 up is expected",
        ":17: precision is 'fp8': 'fp32', 'bf16' or 'fp16' is expected",
        ":18: unknown device 'gpu'; choose auto, cpu, mps, cuda or cuda:N",
        ":19: unknown kernel 'fast'; there are: masked, compact, sparse",
        ":4: unknown method 'lin_breg'; did you mean linbreg",
        ":6: unknown task 'digits/mpl'; did you mean digits/mlp",
        ":21: digits/mlp.lr has no entry 'sdg' (given 0.1); did you mean sgd?",
        ":22: digits/mlp.steps is 'many': a whole number is expected",
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
    with pytest.raises(PlanError, match=r"plan 'quik': no such file, and the embedded plans are bregman2022, granet, "):
        planfile.read("quik")
    with pytest.raises(PlanError, match="it is a folder"):
        planfile.read(tmp_path)


def test_options_replace_keys_and_mistakes_name_the_option(file: Path) -> None:
    file.write_text(GOOD + "seeds: 5\nset: {rigl.budget: 2}\n")
    plan = planfile.read(file, {"seeds": "3,", "sparsity": ["0.5"], "kernel": None, "set": {"digits/mlp.steps": "3"}})
    assert (plan.seeds, plan.sparsity, plan.kernel) == ([3], [0.5], "masked")
    assert plan.set == {"rigl.budget": 2, "digits/mlp.steps": "3"}
    found = mistakes(file, GOOD, seeds=["x"], methods=["foo"], set={"bar.x": "1"})
    assert [line.replace(":", " ").split()[0] for line in found] == ["--seeds", "--methods", "--set"]


NESTED = """\
set:
  rigl: {alpha: 0.1}
  rigl:itop:
    alpha: 0.2
  digits/mlp: {steps: 7, lr: {sgd: 0.5}}
  digits/mlp.batch: 3
"""


def test_set_may_be_nested(file: Path) -> None:
    file.write_text(GOOD.replace("dense", "rigl:itop") + NESTED)
    assert planfile.read(file, {"set": {"rigl.alpha": "0.3"}}).set == {
        "rigl.alpha": "0.3",
        "rigl:itop.alpha": 0.2,
        "digits/mlp.steps": 7,
        "digits/mlp.lr.sgd": 0.5,
        "digits/mlp.batch": 3,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("{rigl: {alpha: 0.2}, rigl.alpha: 0.4}", "set: rigl.alpha is given twice"), ("[1]", "a mapping is expected")],
)
def test_a_wrong_set_is_refused_whatever_is_added_to_it(file: Path, text: str, message: str) -> None:
    file.write_text(f"{GOOD}set: {text}\n")
    for options in ({}, {"set": {"rigl.alpha": 0.1}}):
        with pytest.raises(planfile.PlanError, match=message):
            planfile.read(file, options)


def test_mistakes_in_a_nested_set_name_their_lines(file: Path) -> None:
    text = (
        GOOD + "set:\n  rigl:\n    alpha: x\n    alhpa: 1\n  digits/mlp:\n    lr: {sdg: 1}\n  dense: 3\n  foo: {x: 1}\n"
    )
    found = mistakes(file, text)
    for line, part in zip(
        found,
        (
            ":8: rigl.alpha is 'x': a number is expected",
            ":9: rigl has no field 'alhpa'",
            ":11: digits/mlp.lr has no entry 'sdg'",
            ":12: 'dense' is 3: write dense.FIELD=VALUE, or in a plan dense: {FIELD: VALUE}",
            ":13: 'foo.x' names no METHOD_OR_TASK.FIELD",
        ),
        strict=True,
    ):
        assert line.startswith(part), (line, part)


def test_a_number_alone_is_the_same_in_a_plan_and_as_an_option(file: Path) -> None:
    for text, wanted in {"3": [0, 1, 2], "0": [0], "'3,'": [3], "0-3": [0, 1, 2, 3], "[3]": [3]}.items():
        file.write_text(f"{GOOD}seeds: {text}\n")
        assert planfile.read(file).seeds == wanted
        file.write_text(GOOD)
        assert planfile.read(file, {"seeds": text.strip("[']")}).seeds == wanted or text == "[3]"


def test_what_a_plan_asks_of_a_broken_plugin_is_refused_with_its_line(tmp_path: Path, file: Path) -> None:
    torn = tmp_path / "torn.py"
    torn.write_text("from dstbench import register\n@register\nclass Torn: pass\nregister(Task(name='bad'))\n")
    file.write_text("methods:\n  - dense\n  - torn\ntasks: [digits/mlp, bad]\n")
    with pytest.raises(PlanError) as error:
        planfile.read(file, plugins=[str(torn)])
    for line, start in zip(str(error.value).splitlines(), (":3: 'torn'", ":4: 'bad'"), strict=True):
        assert line.startswith(f"{file}{start} cannot run: plugin {torn} is broken: TypeError: register(Torn)")
    file.write_text(GOOD)
    assert planfile.read(file, plugins=[str(torn)]).tasks == ["digits/mlp"], "no harm to others"


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


@pytest.mark.parametrize("edge", [{"budget": 1e-12}, {"budget": 1e6}, {"threads": 1}, {"threads": 1024}, {"seeds": [0]},
                                  {"seeds": [2**32 - 1]}, {"sparsity": [0.0]}, {"sparsity": [1 - 2**-53]}])  # fmt: skip
def test_a_record_can_hold_what_a_plan_may_ask_for(edge: dict[str, Any], tmp_path: Path) -> None:
    plan = planfile.Plan(methods=["static"], tasks=["digits/mlp"], device="cpu", **edge)
    (run,) = plans.expand(plan)
    assert record.read(record.write(record.empty(run), tmp_path))["id"]["key"] == run.key


def test_every_bound_of_a_plan_is_within_that_of_a_record() -> None:
    seen = 0
    for name, field in planfile.Plan.model_fields.items():
        low, high = schema.RANGES.get(f"id.{name}", (-schema.LARGEST, schema.LARGEST))
        for bound in field.metadata:
            assert not (f"id.{name}" in schema.RANGES and hasattr(bound, "gt")), "an open bound has no least number"
            seen += hasattr(bound, "ge") + hasattr(bound, "le")
            assert low <= getattr(bound, "ge", low) and getattr(bound, "le", high) <= high, name
    assert seen == 5 and schema.RANGES["id.seed"][1] >= fields.LARGEST


def test_a_run_that_no_record_can_hold_is_refused_before_it_trains(tmp_path: Path) -> None:
    plugin = tmp_path / "deep.py"
    plugin.write_text(
        "from dataclasses import field\nfrom dstbench import Method, register\n"
        "@register\nclass Deep(Method):\n    table: dict = field(default_factory=dict)\n"
    )
    table: Any = 1
    for _ in range(20):
        table = {"a": table}
    plan = planfile.Plan(methods=[{"deep": {"table": table}}], tasks=["digits/mlp"], device="cpu")
    with pytest.raises(planfile.PlanError, match=r"deep on digits/mlp cannot be run.* id is nested deeper than 20"):
        plans.expand(plan, [str(plugin)])
