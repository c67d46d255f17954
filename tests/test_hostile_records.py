"""Whatever lies in a folder of records, every command reads the same, names the rest, and ends without a traceback."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from dstbench.reports import ledger, page
from dstbench.reports import load as reports
from dstbench.suite import estimate, listing, progress, record
from dstbench.suite.executors import Outcome
from dstbench.suite.plan import Run, key_of
from dstbench.suite.run import execute
from dstbench.suite.words import printable, told
from records import make

CASES = Path(__file__).with_name("hostile")  # records with one fault each


def put(folder: Path, found: dict[str, Any], name: str = "") -> Path:
    """As a version before the digest would have written it."""
    path = record.folder_of(folder) / (name or f"{found['id']['key']}-1.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def reason(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        record.read(path)
    return str(error.value)


def changed(block: str, field: str, value: Any) -> dict[str, Any]:
    found = make(energy=[{"component": "cpu", "source": "s", "joules": 1.0, "scope": "", "shared": False, "note": ""}])
    place = found["energy"][0] if block == "energy" else found[block]
    place[field] = value
    if block == "id" and field != "key":
        found["id"]["key"] = key_of({k: v for k, v in found["id"].items() if k != "key"})
    return found


@pytest.mark.parametrize(
    ("block", "field", "value", "why"),
    [
        ("time", "wall", "0.5", "time.wall is '0.5'; expected int or float"),
        ("time", "wall", -1.0, "time.wall is -1.0; expected a number from 0"),
        ("score", "test", True, "score.test is True"),
        ("flops", "total", [1], "flops.total is .1."),
        ("id", "budget", 0, "id.budget is 0; expected a number from 1e-12"),
        ("id", "seed", 2**60, "id.seed is"),
        ("id", "sparsity", 1.5, "id.sparsity is 1.5; expected a number from 0 to 1"),
        ("id", "hyperparameters", [1], "id.hyperparameters is .1."),
        ("energy", "note", {"a": 1}, "energy.0..note"),
        ("stamps", "resumed", 1e-320, "stamps.resumed"),
        ("machine", "memory", 10**400, "machine.memory"),
        ("sparsity", "left_dense", 5, "sparsity.left_dense is 5; expected dict or NoneType"),
        ("sparsity", "maskable_share", "0.4", "sparsity.maskable_share is '0.4'"),
        ("sparsity", "never_reached", "head", "sparsity.never_reached is 'head'"),
        ("sparsity", "warning", ["few"], "sparsity.warning"),
        ("flops", "uncounted", [1], "flops.uncounted is .1."),
        ("flops", "warning", 1, "flops.warning is 1; expected str or NoneType"),
        ("stamps", "unsaved", "a text", "stamps.unsaved is 'a text'"),
    ],
)
def test_a_field_of_a_wrong_kind_or_size_is_named(tmp_path: Path, block: str, field: str, value: Any, why: str) -> None:
    assert re.search(why, reason(put(tmp_path, changed(block, field, value))))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff\xfe{}", "not UTF-8 text .byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": 1e400}', "1e400 is no finite number"),
        (b'{"schema": NaN}', "NaN is no finite number"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": ' * 30 + b"1" + b"}" * 30, "nested deeper than 20 levels"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "not JSON"),
    ],
)
def test_a_file_that_is_no_record_says_why(tmp_path: Path, text: bytes, why: str) -> None:
    path = put(tmp_path, make())
    path.write_bytes(text)
    assert re.search(why, reason(path))


def test_what_is_no_plain_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record.folder_of(tmp_path)
    (folder / "000000000001-1.json").mkdir(parents=True)
    os.mkfifo(folder / "000000000002-1.json")
    (folder / "000000000003-1.json").symlink_to("nothing")
    (folder / "000000000004-1.json").symlink_to("/dev/zero")
    monkeypatch.setattr(record, "LARGEST", 10)
    put(tmp_path, make())
    parts = ("a folder", "no plain file", "a link to nothing", "no plain file", "too large")
    for (_, why), part in zip(sorted(record.load(tmp_path)[1]), parts, strict=True):
        assert part in why


def test_content_that_is_not_that_of_the_digest_is_set_aside(tmp_path: Path) -> None:
    path = record.write(make(test=0.5), tmp_path)
    text, found = path.read_text(), json.loads(path.read_text())
    better = text.replace('"test": 0.5', '"test": 0.9')
    bare = json.dumps({k: v for k, v in found.items() if k != "digest"})
    for other in (better, bare, text.replace(found["digest"], "0" * 64), text.replace('"digest"', '"dygest"')):
        assert other != text
        path.write_text(other)
        assert "its digest is not that of its content" in reason(path)
    path.write_text(json.dumps(found))  # the same, written another way
    assert record.read(path)["score"]["test"] == 0.5
    other = path.with_name(path.name.replace(found["digest"][:8], "00000000"))
    path.rename(other)
    assert "its digest is not that" in reason(other)


def test_a_record_without_a_digest_is_of_an_older_version_and_counts(tmp_path: Path) -> None:
    put(tmp_path, make())
    assert len(record.load(tmp_path)[0]) == 1
    found = {**make(seed=1), "digest": "0" * 64}
    assert "its digest is not that" in reason(put(tmp_path, found))


def test_a_key_that_its_identity_does_not_give_is_set_aside(tmp_path: Path) -> None:
    first, second = make(), make(seed=1)
    first["id"]["seed"] = 1
    assert "the identity is not the one" in reason(put(tmp_path, first))
    second["id"]["key"] = "0" * 12
    assert "the identity is not the one" in reason(put(tmp_path, second))
    assert "named for 'ffffffffffff'" in reason(put(tmp_path, make(seed=2), "f" * 12 + "-1.json"))


def test_two_machines_first_attempts_lie_side_by_side_and_the_last_to_finish_counts(tmp_path: Path) -> None:
    one, two = (make(test=test, stamps={"finished": day}) for test, day in ((0.7, "2025-02-02"), (0.6, "2025-02-01")))
    for name, found in (("a", one), ("b", two)):
        record.write(found, tmp_path / name)
    folder = record.folder_of(tmp_path / "both")
    folder.mkdir(parents=True)
    for path in (*record.folder_of(tmp_path / "a").iterdir(), *record.folder_of(tmp_path / "b").iterdir()):
        assert not (folder / path.name).exists()
        (folder / path.name).write_bytes(path.read_bytes())
    (found,), set_aside = record.load(tmp_path / "both")
    assert found["score"]["test"] == 0.7 and not set_aside
    assert len(reports.load(tmp_path / "both").superseded) == 1
    assert record.attempts(tmp_path / "both", one["id"]["key"]) == [1, 1]
    assert record.number(record.write(one, tmp_path / "both")) == 2


def test_every_command_sets_the_same_aside(tmp_path: Path) -> None:
    """One of each kind, beside a good one: no reader takes what another refuses."""
    good = put(tmp_path, make())
    for number, (block, field, value) in enumerate(
        [("curve", "density", "x"), ("energy", "shared", 3), ("score", "metric", None), ("status", "reason", 0)]
    ):
        found = changed(block, field, value)
        found["id"]["seed"] = 10 + number
        found["id"]["key"] = key_of({k: v for k, v in found["id"].items() if k != "key"})
        put(tmp_path, found)
    names = {path.name for path in record.folder_of(tmp_path).iterdir()} - {good.name}
    assert {path.name for path, _ in record.load(tmp_path)[1]} == names and len(names) == 4
    assert {path.name for path, _ in reports.load(tmp_path).set_aside} == names
    assert record.finished(record.load(tmp_path)[0]).keys() == {good.name[:12]}
    assert all(f"{name}: " in listing.status(tmp_path) for name in names)


TEXTS = [
    "$x^{2$ costs \\frac{1}",
    "a\nb\r\n# heading\n| x | y |",
    "=cmd|' /C calc'!A0",
    "-2+3",
    "\t=1+1",
    "\x1b[31mred\x07\x00",
    "\ud800 half \udcff",
    "\u202egnp.exe",
    "`code` **bold** [a](http://b) <img src=x onerror=1>",
    "_left out",
    "{{ 7*7 }}{% raw %}${document.title}",
    '"quoted\\" + constructor',
    "x" * 100_000,
    "😀 中文",
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of records that bear these texts as names of task, method, metric, component, machine and in reasons."""
    folder = tmp_path_factory.mktemp("texts")
    everything = " ".join(text[:50] for text in TEXTS)
    energy = dict.fromkeys(("component", "source", "scope", "note"), everything) | {"joules": 1.0, "shared": False}
    more = {"score": {"metric": everything}, "machine": {"name": everything}, "task": everything, "energy": [energy]}
    put(folder, make("dense", None, **more))
    for text in TEXTS:
        put(folder, make(text, **more, id={"hyperparameters": {text: text}}))
        put(folder, make(text, seed=1, status="error", **{**more, "score": None}))
    put(folder, make(id={"precision": everything}))
    (record.folder_of(folder) / os.fsdecode(b"left \xff\x1b[31m\n$x$")).touch()
    page.write(folder, folder / "report")
    return folder


@pytest.mark.slow  # a report with every figure
def test_texts_end_no_report_and_are_in_every_file_of_it(shown: Path) -> None:
    records, _ = record.load(shown)
    assert len(records) == 2 * len(TEXTS) + 2
    for name in ("index.html", "leaderboard.md", "cells.csv"):
        text = (shown / "report" / name).read_text(encoding="utf-8")  # which no lone surrogate could be in
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202e]", text)
        assert "\\\\x1b" in text if name.endswith("md") else "\\x1b" in text
    assert len(list((shown / "report" / "figures").glob("*.png"))) >= 4
    listing.status(shown).encode()


@pytest.mark.slow  # a report with every figure
def test_no_cell_of_the_csv_file_is_a_formula(shown: Path) -> None:
    lines = (shown / "report" / "cells.csv").read_bytes().split(b"\n")
    with open(shown / "report" / "cells.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len({len(row) for row in rows}) == 1 and len(rows) == len(lines) - 1
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)
    for row in rows:
        for cell in row:
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r") or re.fullmatch(r"-?[\d.e+-]+|-inf", cell), cell


@pytest.mark.slow  # a report with every figure
def test_markdown_and_html_show_the_characters_themselves(shown: Path) -> None:
    markdown = (shown / "report" / "leaderboard.md").read_text(encoding="utf-8")
    assert "\\`code\\` \\*\\*bold\\*\\*" in markdown and "<img" not in markdown and "[a](" not in markdown
    html = (shown / "report" / "index.html").read_text(encoding="utf-8")
    assert "<img" not in html and "{{ 7*7 }}" in html and len(re.findall(r"<script\b", html)) == 1


@pytest.mark.slow  # a report with every figure
def test_figures_take_dollars_and_underscores_as_text(shown: Path) -> None:
    drawn = " ".join(path.read_text() for path in (shown / "report" / "figures").glob("*.svg"))
    assert "$x^{2$ costs" in drawn and "_left out" in drawn


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 中", "plain é 中"),
        ("a\x1b\n", "a\\x1b\\n"),
        ("\ud800", "\\ud800"),
        ("\u202e", "\\u202e"),
        ("abcdef", "abcd…"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text, 5 if expected.endswith("…") else 99) == expected
    expected.encode()


def test_an_error_that_cannot_say_its_text_is_told_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    assert told(Mute()) == "Mute: (its text cannot be had: KeyError)"
    assert told(ValueError("\ud800\x00")) == "ValueError: \\ud800\\x00" and len(told(ValueError("z" * 10**7))) < 2100


@pytest.mark.parametrize("odd", [None, {}, {"a": None, "": {"b": [1]}, "c": 3, "d": "|<b>"}])
def test_any_words_on_what_is_left_dense_can_be_shown(odd: Any) -> None:
    found = [changed("sparsity", "left_dense", odd), changed("sparsity", "maskable_share", None)]
    (row,) = ledger.networks(reports.frame(found), found).rows
    assert row[2].text == ("a: None; : {'b': [1]}; c: 3; and 1 more" if odd else "–")
    assert ledger.networks(reports.frame(found[1:]), found[1:]).rows == []


ERRORS = """
import os
from dstbench.suite.method import Method
from dstbench.suite.registry import register
class Mute(Exception):
    def __str__(self): raise ValueError("no text")
@register
class Raises(Method):
    how: str = ""
    def begin(self, t):
        if self.how == "mute": raise Mute
        texts = {"name": os.fsdecode(b"scores-\\xff.txt"), "long": "z" * 10**7, "odd": "\\x00\\ud800\\r"}
        raise ValueError(texts[self.how])
"""


@pytest.mark.parametrize(
    ("how", "why"),
    [("name", "ValueError: scores-\\udcff.txt"), ("odd", "ValueError: \\x00\\ud800\\r"), ("long", "ValueError: zzz"),
     ("mute", "Mute: (its text cannot be had: ValueError)")],
)  # fmt: skip
def test_whatever_a_plugin_raises_becomes_a_record_that_every_command_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, why: str
) -> None:
    (tmp_path / "raises.py").write_text(ERRORS)
    run = Run("raises", "digits/mlp", 0.9, plugins=(str(tmp_path / "raises.py"),), hyperparameters={"how": how})
    assert execute(run.to_json(), str(tmp_path)) == "error"
    (path,) = record.paths(tmp_path, run.key)
    assert path.stat().st_size < 50_000 and record.read(path)["status"]["reason"].startswith(why)
    capsys.readouterr()
    progress.Lines(1).show(Outcome(run, "error", 1.0), progress.score(tmp_path, Outcome(run, "error", 1.0)))
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and len(line.encode()) < 500
    assert why[:12] in line


def test_reasons_and_tracebacks_are_bounded(tmp_path: Path) -> None:
    run = Run("m", "t")
    path = record.write(record.empty(run, "error", "r" * 10**6, "t" * 10**6), tmp_path)
    assert path.stat().st_size < 20_000


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    for found in (make(score={"test": "0.715"}), make(time={"wall": -1.0}), make(curve={"loss": [1.0]})):
        with pytest.raises(ValueError, match=r"score\.test|time\.wall|curve"):
            record.write(found, tmp_path)
    assert not record.folder_of(tmp_path).exists() or not list(record.folder_of(tmp_path).iterdir())


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("energy-without-joules", False),
        ("nested-record", False),
        ("surrogate-in-text", True),
        ("wall-is-text", False),
        ("done-but-set-aside", False),
    ],
)
def test_the_cases(tmp_path: Path, case: str, counts: bool) -> None:
    files = list((CASES / case).glob("*.json"))
    for file in files:
        put(tmp_path, make(), file.name).write_bytes(file.read_bytes())
    records, set_aside = record.load(tmp_path)
    assert files and (len(records), len(set_aside)) == ((len(files), 0) if counts else (0, len(files)))
    page.write(tmp_path, tmp_path / "report")
    estimate.expected_seconds([Run("m", "t")], records, 1)
