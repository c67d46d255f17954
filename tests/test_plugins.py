import dataclasses
from pathlib import Path

import pytest

from dstbench.suite import plugins, registry
from dstbench.suite.registry import register


@pytest.mark.parametrize(
    ("name", "wanted"), [("MyMethod", "my_method"), ("RigL", "rigl"), ("SET", "set"), ("A2Method", "a2_method")]
)
def test_default_name(name: str, wanted: str) -> None:
    assert plugins.default_name(name) == wanted


def test_a_file_is_executed_once(tmp_path: Path) -> None:
    path = tmp_path / "once.py"
    path.write_text("from pathlib import Path\np = Path(__file__).with_suffix('.txt')\np.open('a').write('x')\n")
    assert plugins.load(path) is plugins.load(str(path))
    assert path.with_suffix(".txt").read_text() == "x"


def test_a_file_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "again.py"
    path.write_text("raise ValueError('first')\n")
    with pytest.raises(ValueError, match="first"):
        plugins.load(path)
    path.write_text("value = 'the second text has another length'\n")
    assert plugins.load(path).value.startswith("the second")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"where = {folder!r}\n")
    assert [plugins.load(tmp_path / f / "same.py").where for f in "ab"] == ["a", "b"]


def test_a_folder_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such plugin file"):
        plugins.load(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ImportError, match=r"ends in \.py"):
        plugins.load(tmp_path / "x.txt")


def test_register_makes_a_dataclass_and_names_it() -> None:
    class Hooks:
        def setup(self) -> None: ...
        def begin(self) -> None: ...
        def step(self) -> None: ...

    class SlowMethod(Hooks):
        rate: float = 0.5

    assert register(SlowMethod) is SlowMethod
    assert SlowMethod.name == "slow_method"  # type: ignore[attr-defined]
    assert [f.name for f in dataclasses.fields(SlowMethod)] == ["rate"]  # type: ignore[arg-type]

    @register(name="quick", family="f", citation="c")
    class Other(Hooks):
        pass

    assert (Other.name, Other.family, Other.citation) == ("quick", "f", "c")

    class Child(SlowMethod):
        pass

    assert register(Child).name == "child"  # not its base's


def test_register_refuses_what_is_neither() -> None:
    class Nothing:
        pass

    for thing in (Nothing, Nothing(), 3):
        with pytest.raises(TypeError, match="register"):
            register(thing)


def test_names_are_read_from_the_text(tmp_path: Path) -> None:
    path = tmp_path / "names.py"
    path.write_text("""
@register
class FirstOne(Method): pass
@suite.registry.register(name="second")
class X(Method): pass
@register()
class Y(Method):
    name = "third"
@register
class Z(Method):
    name: str = "fourth"
@other
class W: pass
register(Task(name="a/task"))
""")
    assert plugins.declared(path) == {"method": ["first_one", "second", "third", "fourth"], "task": ["a/task"]}
    path.write_text("class (")
    assert plugins.declared(path) == plugins.declared(tmp_path / "none.py") == {"method": [], "task": []}


def test_two_of_a_name_in_one_file_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    hooks = "    def setup(self): ...\n    begin = step = setup\n"
    classes = "".join(f"@register(name='same')\nclass {c}:\n{hooks}" for c in "AB")
    path.write_text(f"from dstbench.suite.registry import register\n{classes}")
    with pytest.raises(ValueError, match="registers 'same' twice"):
        plugins.registered(plugins.load(path))


def test_why_is_one_line() -> None:
    assert plugins.why(ValueError("a\nb")) == "ValueError: a"
    assert plugins.why(KeyError()) == "KeyError"


def test_a_contract_is_ours_unless_another_is_stated() -> None:
    class Thing:
        pass

    assert plugins.foreign(Thing) == plugins.foreign(Thing()) == ""
    Thing.contract = plugins.CONTRACT  # type: ignore[attr-defined]
    assert plugins.foreign(Thing()) == ""
    Thing.contract = plugins.CONTRACT + 1  # type: ignore[attr-defined]
    for thing in (Thing, Thing()):
        text = plugins.foreign(thing)
        assert f"contract {plugins.CONTRACT + 1}, this dstbench has contract {plugins.CONTRACT}: install" in text


MINE = """
from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.registry import register
from dstbench.suite.task import Task


@register
class MyMethod(Method):
    {stated}


class MyTask(Task):
    {stated}


register(MyTask(name="mine/task", recipe=Recipe(steps=10, batch=4, lr={{"sgd": 0.1, "adam": 1e-3}})))


@register
class Child(MyMethod):
    pass
"""


@pytest.mark.parametrize("stated", [0, 1, "1.5"])
def test_a_plugin_of_another_contract_is_broken_and_says_how_to_mend_it(tmp_path: Path, stated: object) -> None:
    path = tmp_path / "other.py"
    path.write_text(MINE.format(stated=f"contract = {stated!r}"))
    for name, build in (("my_method", registry.method), ("child", registry.method), ("mine/task", registry.task)):
        with pytest.raises(registry.Broken) as error:
            build(name, [path])  # type: ignore[operator]
        parts = (
            f"{name!r} of plugin {path} is broken: ",
            f"written for contract {stated}, this dstbench has contract {plugins.CONTRACT}",
            f"install a dstbench of contract {stated}, or port the plugin and let it state `contract = 2`",
        )
        assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("stated", [f"contract = {plugins.CONTRACT}", "pass"])
def test_our_contract_stated_or_not_is_well(tmp_path: Path, stated: str) -> None:
    path = tmp_path / "ours.py"
    path.write_text(MINE.format(stated=stated))
    assert "contract" not in registry.method("child", [path]).hyperparameters()
    assert registry.task("mine/task", [path]).name == "mine/task"
