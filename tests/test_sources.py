from pathlib import Path

import pytest

from dstbench.suite import registry, sources
from dstbench.suite.registry import Entry


def test_hashes_of_what_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("@register\nclass Bad(Method): pass\n1 / 0\n")
    names = [("dense", "digits/mlp"), ("dense", "digits/mlp"), ("bad", "gone"), ("gone", "digits/vit")]
    records = ({"id": {"method": method, "task": task}} for method, task in names)
    found = sources.hashes(records, [tmp_path / "b.py"])
    assert found == {
        "method": {"dense": sources.source_hash(registry.methods()["dense"])},
        "task": {n: sources.source_hash(registry.tasks()[n]) for n in ("digits/mlp", "digits/vit")},
    }


def test_modules_that_import(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"a": Entry("a", "json:loads"), "b": Entry("b", "nowhere_to_be_found:X"), "c": Entry("c", "json:dumps")}
    monkeypatch.setattr(registry, "methods", lambda: known)
    assert sources.modules(["a", "b", "c", "d", "digits/mlp"]) == ("json", "dstbench.tasks.digits")


def test_broken_origins_are_named_once(tmp_path: Path) -> None:
    assert sources.broken() == []
    path = tmp_path / "b.py"
    path.write_text("1 / 0\n")
    assert sources.broken([path]) == [f"plugin {path} is broken: ZeroDivisionError: division by zero"]
