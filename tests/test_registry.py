import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dstbench.suite import registry, sources
from dstbench.suite.registry import Broken, Entry, RegistryError

MINE = """
from typing import Literal

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.registry import register
from dstbench.suite.task import Task


@register(family="mine", citation="Me 2026")
class MyMethod(Method):
    version = 3
    alpha: float = 0.3
    score: Literal["magnitude", "gradient"] = "magnitude"
    widths: tuple[int, ...] = (1, 2)


register(Task(name="mine/task", version=2, recipe=Recipe(steps=10, batch=4, lr={"sgd": 0.1, "adam": 1e-3})))
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_import_and_listing_load_no_torch() -> None:
    code = (
        "import sys; from dstbench.suite import registry; assert 'dstbench.methods' not in sys.modules;"
        "n = len(registry.methods()) + len(registry.tasks()); assert n >= 15, n; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_built_ins_come_in_natural_order_and_are_what_they_say() -> None:
    assert list(registry.methods())[:1] == ["dense"]
    assert {"static", "magnitude", "set", "rigl", "linbreg", "adabreg", "ml_linbreg"} <= registry.methods().keys()
    for entry in registry.methods().values():
        loaded = registry.described(entry, entry.load())
        assert loaded.sparse == entry.sparse, entry.name
        assert (loaded.family, loaded.version) == (entry.family, entry.version) or entry.presets, entry.name
    for name, entry in registry.tasks().items():
        task = entry.load()
        assert (task.name, task.version) == (name, entry.version)


def test_plugin_file_adds_a_method_and_a_task(mine: Path) -> None:
    entry = registry.methods([mine])["my_method"]
    assert (entry.family, entry.citation, entry.version, entry.sparse) == ("mine", "Me 2026", 3, True)
    assert entry.origin == f"plugin {mine}" and not entry.broken
    assert list(registry.methods([mine]))[-1] == "my_method"
    assert registry.tasks([mine])["mine/task"].version == 2
    assert "mine/task" not in registry.methods([mine]) and "my_method" not in registry.tasks([mine])
    assert "my_method" not in registry.methods()


def test_method_is_built_with_values_of_the_right_type(mine: Path) -> None:
    built = registry.method("my_method", [mine], alpha="1e-1", widths="[3, 4]", sparsity="0.5")
    assert (built.alpha, built.widths, built.sparsity) == (0.1, (3, 4), 0.5)  # type: ignore[attr-defined]


def test_wrong_hyperparameters_are_all_named(mine: Path) -> None:
    with pytest.raises(RegistryError) as error:
        registry.method("my_method", [mine], alfa=1, score="random", alpha="high")
    text = str(error.value)
    assert "no field 'alfa' (given alfa=1); did you mean alpha" in text
    assert "my_method.score is 'random': 'magnitude' or 'gradient' is expected" in text
    assert "my_method.alpha is 'high'" in text


def test_the_method_s_own_objection_is_passed_on(mine: Path) -> None:
    with pytest.raises(RegistryError, match=r"sparsity is 1\.0"):
        registry.method("my_method", [mine], sparsity=1)


def test_presets_apply_and_yield_to_what_is_given(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("my:fast", f"{mine}:my_method", presets={"alpha": 0.9}, origin="test")
    monkeypatch.setattr(registry, "find", lambda *_: entry)
    assert registry.method("my:fast").alpha == 0.9  # type: ignore[attr-defined]
    assert registry.method("my:fast", alpha=0.1).alpha == 0.1  # type: ignore[attr-defined]
    assert registry.nondefault(entry, {"alpha": "0.9"}) == {}
    assert registry.nondefault(entry, {"alpha": 0.3}) == {"alpha": 0.3}


def test_nondefault_drops_defaults_and_is_plain(mine: Path) -> None:
    entry = registry.find("method", "my_method", [mine])
    assert registry.nondefault(entry, {"alpha": "0.3", "widths": [1, 2]}) == {}
    assert registry.nondefault(entry, {"widths": "[1, 3]"}) == {"widths": [1, 3]}
    with pytest.raises(RegistryError, match="alpha"):
        registry.nondefault(entry, {"alpha": "x"})


def test_task_takes_overrides_of_its_recipe(mine: Path) -> None:
    task = registry.task("mine/task", [mine], {"steps": "20", "lr.sgd": "0.5"})
    assert (task.recipe.steps, dict(task.recipe.lr)) == (20, {"sgd": 0.5, "adam": 1e-3})
    assert registry.task("mine/task", [mine]).recipe.steps == 10
    with pytest.raises(RegistryError, match=r"no entry 'sdg'.*did you mean sgd"):
        registry.task("mine/task", [mine], {"lr.sdg": 1})
    with pytest.raises(RegistryError, match="at least 1 is needed"):
        registry.task("mine/task", [mine], {"steps": 0})


def test_a_miss_suggests_near_names(mine: Path) -> None:
    with pytest.raises(RegistryError, match=r"unknown method 'my_methd'; did you mean my_method"):
        registry.method("my_methd", [mine])
    with pytest.raises(RegistryError, match="there are: digits/mlp"):
        registry.task("zzzz")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('boom')\n", "RuntimeError: boom"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
        ("def (\n", "SyntaxError"),
        ("x = 1\n", "registers nothing"),
    ],
)
def test_a_broken_file_is_listed_and_harms_nothing(mine: Path, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    for found in (registry.methods([path, mine]), registry.tasks([path, mine])):
        assert reason in found[str(path)].broken
    assert registry.method("my_method", [path, mine])
    with pytest.raises(RegistryError, match=r"unknown method 'other'.*broken\.py is broken"):
        registry.method("other", [path])


def test_a_name_in_a_broken_file_is_known_as_broken(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text(MINE + "\nraise RuntimeError('boom')\n")
    entry = registry.methods([path])["my_method"]
    assert entry.broken == "RuntimeError: boom"
    with pytest.raises(Broken, match=r"'my_method' of plugin .*half\.py is broken: RuntimeError: boom"):
        registry.method("my_method", [path])


def test_a_missing_file_is_broken(tmp_path: Path) -> None:
    assert "no such plugin file" in registry.methods([tmp_path / "none.py"])[str(tmp_path / "none.py")].broken


def test_two_files_may_not_name_the_same(mine: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine2.py"
    path.write_text(MINE)
    for pair in ([mine, path], [path, mine]):
        for listing, what in ((registry.methods, "method 'my_method'"), (registry.tasks, "task 'mine/task'")):
            with pytest.raises(RegistryError) as error:
                listing(pair)
            text = str(error.value)
            assert text.startswith(f"plugin {pair[0]} and plugin {pair[1]} both name a {what}: give one of them")


def test_one_file_may_be_given_twice(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.py").symlink_to(mine)
    monkeypatch.chdir(tmp_path)
    found = registry.methods([mine, "mine.py", tmp_path / "link.py"])
    assert found["my_method"].origin == f"plugin {mine}"


def test_a_file_may_not_take_the_name_of_a_built_in(tmp_path: Path) -> None:
    path = tmp_path / "clash.py"
    path.write_text("from dstbench import Method, register\n@register\nclass RigL(Method): ...\n")
    with pytest.raises(RegistryError, match=r"built-in and plugin .*clash\.py both name a method 'rigl': give one"):
        registry.methods([path])


def test_an_entry_point_of_another_contract_is_broken(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = registry.find("method", "my_method", [mine]).load()
    dist = SimpleNamespace(name="dst-more", version="1.2")
    old = type("Old", (good,), {"contract": 0, "__dataclass_fields__": good.__dataclass_fields__})
    entry_points(monkeypatch, Point(name="more", value="more:More", dist=dist, thing=old))
    with pytest.raises(Broken, match=r"'more' of dst-more 1\.2 is broken: it is written for contract 0"):
        registry.method("more")


def test_an_entry_point_without_register_is_broken(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its annotated attributes would not be hyper-parameters, without a word."""
    bare = type("Bare", (registry.find("method", "my_method", [mine]).load(),), {"__annotations__": {"beta": float}})
    dist = SimpleNamespace(name="dst-more", version="1.2")
    entry_points(monkeypatch, Point(name="bare", value="more:Bare", dist=dist, thing=bare))
    assert "more:Bare is no dataclass: give a subclass of Method under @register" in registry.methods()["bare"].broken


class Point(SimpleNamespace):
    name: str
    value: str

    def load(self) -> object:
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


def entry_points(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    def find(group: str) -> Iterator[Point]:
        return iter(points if group == "dstbench.methods" else ())

    monkeypatch.setattr(importlib.metadata, "entry_points", find)


def test_entry_points_are_read_and_a_broken_one_is_listed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = registry.find("method", "my_method", [mine]).load()
    dist = SimpleNamespace(name="dst-more", version="1.2")
    bad = Point(name="gone", value="more:Gone", dist=dist, thing=AttributeError("no Gone"))
    plain = Point(name="plain", value="more:Plain", dist=dist, thing=ModuleType)
    entry_points(monkeypatch, Point(name="more", value="more:More", dist=dist, thing=good), bad, plain)
    found = registry.methods()
    assert (found["more"].version, found["more"].origin, found["more"].broken) == (3, "dst-more 1.2", "")
    assert found["gone"].broken == "AttributeError: no Gone"
    assert "no dataclass" in found["plain"].broken


def test_an_entry_point_may_not_take_a_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = registry.find("method", "my_method", [mine]).load()
    entry_points(
        monkeypatch, Point(name="rigl", value="m:M", dist=SimpleNamespace(name="clash", version="1"), thing=good)
    )
    with pytest.raises(RegistryError, match="built-in and clash 1 both name a method 'rigl'"):
        registry.methods()


def test_a_target_that_is_not_there_is_broken() -> None:
    with pytest.raises(Broken, match="'x' of built-in cannot be loaded: AttributeError"):
        Entry("x", "json:Nothing").load()
    with pytest.raises(Broken, match="ModuleNotFoundError"):
        Entry("x", "nowhere_to_be_found:X").load()


def test_source_hash_follows_the_source(tmp_path: Path) -> None:
    hashes = []
    for number, text in enumerate((MINE, MINE, MINE.replace("0.3", "0.4"), MINE.replace("\n", "\r\n"))):
        path = tmp_path / f"copy{number}.py"
        path.write_bytes(text.encode())
        hashes.append(sources.source_hash(registry.find("method", "my_method", [path])))
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2]
    assert len(hashes[0]) == 12 and int(hashes[0], 16) >= 0


def test_source_hash_covers_bases_outside_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    base = "from dstbench.suite.method import Method\nclass Base(Method):\n    x: int = {}\n"
    plugin = "from base_{0} import Base\nfrom dstbench import register\n@register\nclass Child(Base):\n    pass\n"
    hashes = []
    for number in (0, 1):
        (tmp_path / f"base_{number}.py").write_text(base.format(number))
        (tmp_path / f"child_{number}.py").write_text(plugin.format(number))
        entry = registry.find("method", "child", [tmp_path / f"child_{number}.py"])
        hashes.append(sources.source_hash(entry))
    assert hashes[0] != hashes[1]
