import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dstbench.suite import doctor
from dstbench.suite.registry import Entry
from dstbench.suite.task import DataError


def test_a_healthy_machine(tmp_path: Path) -> None:
    found = {f.name: f for f in doctor.diagnose(tmp_path)}
    assert found["python"].mark == found["torch"].mark == found["plugins"].mark == "ok"
    assert found["digits/mlp"] == ("ok", "digits/mlp", "data is there")
    assert found["cifar10/resnet18"].mark == "note" and "--data-root" in found["cifar10/resnet18"].text
    assert {"cores", "threads", "forkserver", "results", "gpu"} <= found.keys()


def test_missing_packages_name_the_remedy() -> None:
    good, bad = doctor.packages(["pytest", "no-such-package"])
    assert good == ("ok", "pytest", pytest.__version__)
    assert bad == ("BAD", "no-such-package", "not installed; run: pip install no-such-package")


def test_without_forkserver() -> None:
    assert doctor.forkserver(["fork", "forkserver"]).mark == "ok"
    assert doctor.forkserver(["spawn"]).mark == "note"


def test_windows_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "os", SimpleNamespace(name="nt", environ={}, cpu_count=lambda: 4, access=os.access, W_OK=2)
    )
    monkeypatch.setattr(doctor, "_devices", lambda: iter(()))
    found = {f.name: f.text for f in doctor.diagnose(Path("none"))}
    assert "no forkserver" in found["platform"] and found["cores"].startswith("4 usable")


def test_room_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "not" / "yet").mark == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert doctor.disk(tmp_path).mark == "note"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path) == (
        "BAD",
        "results",
        f"{tmp_path} cannot be written; give another folder by --results",
    )


def test_broken_plugins_are_found(tmp_path: Path) -> None:
    path = tmp_path / "b.py"
    path.write_text("1 / 0\n")
    bad = [f for f in doctor.diagnose(tmp_path, plugins=[str(path)]) if f.mark == "BAD"]
    assert len({f.text for f in bad}) == 1 and "ZeroDivisionError" in bad[0].text
    assert [f.mark for f in doctor.entries({"x": Entry("x", "nowhere_to_be_found:X")})] == ["BAD"]


def test_broken_tasks_have_no_data_to_ask_for() -> None:
    assert list(doctor.data({"x": Entry("x", "nowhere_to_be_found:X")}, None)) == []


def test_missing_data_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from dstbench.suite import plan

    class Lost:
        def prepare(self) -> None:
            raise DataError("no folder /d; get it")

    monkeypatch.setattr(plan, "own_data", lambda *_: Lost())
    assert list(doctor.data({"x": Entry("x", "json:loads")}, "/d")) == [("note", "x", "no folder /d; get it")]
