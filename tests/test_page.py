"""The whole report from a folder of records: one offline page that loses nothing and runs no record."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from dstbench.reports.page import write
from dstbench.suite.plan import key_of
from records import make

VOID = {"meta", "link", "input", "br", "path"}


@pytest.fixture
def drawn():
    """The report's figure files are drawn."""


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Without `drawn`, no figure files: they take seconds a report, and test_figures.py looks at them."""
    if "drawn" not in request.fixturenames:
        for name in ("write", "realised"):
            monkeypatch.setattr(f"dstbench.reports.figures.{name}", lambda *_: [])


def store(folder, records):
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / "records" / f"{record['id']['key']}-1.json").write_text(json.dumps(record))
    return folder


def grid(methods=("rigl", "set"), tasks=("digits/mlp", "digits/vit"), seeds=3, dense=True):
    found = []
    for task in tasks:
        found += [make("dense", None, s, 0.9, task=task) for s in range(seeds) if dense]
        for i, name in enumerate(methods):
            for level in (0.9, 0.95):
                found += [make(name, level, s, 0.85 - 0.02 * i + 0.01 * s, task=task) for s in range(seeds)]
    return found


class Outline(HTMLParser):
    """Tags opened and never closed, ids, addresses, table cells, drawings and scrollers."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.cells, self.drawings, self.scrollers = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]
        self.drawings += [attrs] if tag == "svg" and "aria-hidden" not in attrs else []
        self.scrollers += [attrs] if "scroll" in attrs.get("class", "").split() else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def page(folder, tmp_path, **more):
    summary = write(folder, tmp_path / "report", **more)
    text = summary.index.read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == [] and len(set(outline.ids)) == len(outline.ids)
    return summary, text, outline


def test_the_report_is_complete_and_offline(tmp_path, drawn):
    summary, text, outline = page(store(tmp_path, grid()), tmp_path)
    files = {p.relative_to(tmp_path / "report").as_posix() for p in (tmp_path / "report").rglob("*") if p.is_file()}
    names = ("accuracy-sparsity", "accuracy-flops", "curves", "ratios", "realised")
    assert files == {"index.html", "leaderboard.md", "cells.csv"} | {
        f"figures/{n}.{k}" for n in names for k in ("svg", "png")
    }
    assert not [a for a in outline.addresses if a.startswith(("http", "//"))]
    assert "default-src 'none'" in text and "connect-src" not in text
    assert summary.index == tmp_path / "report" / "index.html" and summary.set_aside == []
    assert {
        "leaderboard",
        "accuracy-0-9",
        "cells",
        "flops",
        "time",
        "memory",
        "realised",
        "failures",
        "machines",
    } <= set(outline.ids)
    anchors = {a[1:] for a in outline.addresses if a.startswith("#")}
    assert anchors and anchors <= set(outline.ids)
    assert text.count("One multiply-add = 2 FLOPs") >= 3


def test_charts_stand_in_the_page_at_their_size_without_any_script(tmp_path):
    _, text, outline = page(store(tmp_path, grid()), tmp_path)
    # 2 tasks × (sparsity, two FLOPs conventions, three curves at two levels, speed-up) and five ratios.
    assert len(outline.drawings) == 2 * (3 + 3 * 2 + 1) + 5
    for drawing in outline.drawings:
        assert drawing["role"] == "img" and drawing["aria-label"]
        assert drawing["viewbox"] == f"0 0 {drawing['width']} {drawing['height']}"
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(outline.ids)
    assert all(size in text for size in ("Sparsity 90 %", "Sparsity 95 %"))
    assert text.count("<script") == 1 and "eval" not in text and "<noscript" not in text
    bare = Outline(re.sub(r"<script.*?</script>", "", text, flags=re.S))
    assert (len(bare.drawings), bare.cells) == (len(outline.drawings), outline.cells)


def test_the_element_that_scrolls_takes_the_keyboard_and_no_other_does(tmp_path):
    _, text, outline = page(store(tmp_path, grid()), tmp_path)
    assert len(outline.scrollers) == text.count("<table")
    assert all(s["tabindex"] == "0" and s["role"] == "region" and s["aria-label"] for s in outline.scrollers)
    screen, printed = text[text.index("<style>") : text.index("</style>")].split("@media print")
    assert re.findall(r"([^{}]*){[^{}]*overflow: auto", screen) == ["\n.scroll "]
    assert ".scroll.long { overflow: visible; max-height: none" in printed and "position: static" in printed


def test_a_page_without_runs_links_to_nothing_that_is_not_there(tmp_path):
    _, _, outline = page(tmp_path, tmp_path)
    assert {a[1:] for a in outline.addresses if a.startswith("#")} <= set(outline.ids)


def test_a_crashed_method_is_failed_with_its_reason_on_every_board(tmp_path):
    records = [make("dense", None, 0, 0.9), make("set", 0.9, 0, 0.05), make("bug", status="error")]
    summary, text, outline = page(store(tmp_path, records), tmp_path)
    said = "not ranked: 1 of 1 failed: error: because"
    assert said in outline.cells and "failed: error: because" in outline.cells and "<b>1</b> failed" in text
    assert said in (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8")
    lines = [line.split() for line in summary.leaderboard.splitlines()[4:7]]
    assert [line[:2] for line in lines] == [["1", "set"], ["–", "bug"], ["–", "dense"]] and "failed" in lines[1]
    assert "1 of 1 failed" in summary.leaderboard and "0.0 ± 0.0" not in summary.leaderboard


def test_no_figure_of_a_report_is_a_signed_zero(tmp_path):
    records = [*grid(seeds=2), *[make("low", level, s, 0.1 - 1e-5 * s) for level in (0.9, 0.95) for s in range(2)]]
    summary, _, outline = page(store(tmp_path, records), tmp_path)
    texts = [*outline.cells, *re.split(r"\s+", summary.leaderboard)]
    texts += (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8").split()
    texts += (tmp_path / "report" / "cells.csv").read_text(encoding="utf-8").replace(",", "\n").split()
    assert not [text for text in texts if re.search(r"(?<![\w.])-0(\.0*)?(?![\d.])", text)]


def test_leaderboard_for_the_terminal_is_compact(tmp_path):
    summary, _, _ = page(store(tmp_path, grid()), tmp_path)
    lines = summary.leaderboard.splitlines()
    assert lines[0] == "Leaderboard" and [line.split()[1] for line in lines[4:7]] == ["rigl", "set", "dense"]
    assert max(len(line) for line in lines[:7]) < 120 and "One multiply-add = 2 FLOPs" in summary.leaderboard


def test_cells_csv_holds_every_cell(tmp_path):
    page(store(tmp_path, grid()), tmp_path)
    with open(tmp_path / "report" / "cells.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 and {row["n"] for row in rows} == {"3"}
    row = next(r for r in rows if (r["task"], r["sparsity"], r["method"]) == ("digits/mlp", "0.9", "rigl"))
    assert float(row["mean"]) == pytest.approx(0.86) and float(row["retention"]) == pytest.approx(0.95)
    assert {row["dense"] for row in rows if row["method"] == "dense"} == {"True"}
    assert {row["dense"] for row in rows if row["method"] != "dense"} == {"False"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "records",
    [
        [],
        grid(methods=("rigl",), tasks=("digits/mlp",), seeds=1),
        grid(dense=False),
        grid(methods=()),
        [make(status=s, seed=i) for i, s in enumerate(("diverged", "collapsed", "off_target", "timeout", "skipped"))],
        [make(**dict.fromkeys(("flops", "time", "energy", "memory", "curve", "machine", "code", "stamps", "params")))],
        [*grid(seeds=1), make(id={"kernel": "compact"}), make("dense:adam", None), make(id={"budget": 5.0})],
        [make(score={"metric": "perplexity", "chance": None, "test": 20.0}), make(seed=1, status="oom")],
        [make(test=0.1), make("dense", None, test=0.1)],
    ],
    ids=["none", "one method", "no dense", "only dense", "all failed", "no blocks", "settings", "no chance", "chance"],
)  # fmt: skip
def test_it_works_with_little_and_loses_nothing(records, tmp_path):
    summary, text, outline = page(store(tmp_path, records), tmp_path)
    assert f"<b>{len(records)}</b> runs" in text
    for record in records:
        assert record["id"]["method"] in outline.cells and record["id"]["method"] in summary.leaderboard
        if record["status"]["name"] != "ok":
            assert f"{record['id']['key']}-1.json" in outline.cells
    assert (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8").startswith("# dstbench\n")


@pytest.mark.slow
def test_several_settings_have_boards_of_their_own(tmp_path, drawn):
    records = [*grid(), *[make(m, s, id={"kernel": "compact"}) for m, s in (("dense", None), ("rigl", 0.9))]]
    summary, _, outline = page(store(tmp_path, records), tmp_path)
    assert "leaderboard-2" in outline.ids and summary.leaderboard.count("Leaderboard (budget 1") == 2
    assert (tmp_path / "report" / "figures" / "ratios-2.svg").exists()


def test_set_aside_superseded_and_stale_records_are_listed(tmp_path):
    records = grid(seeds=2)
    store(tmp_path, records)
    key = records[-1]["id"]["key"]
    (tmp_path / "records" / "000000000000-1.json").write_text("{")
    (tmp_path / "records" / f"{key}-2.json").write_text(json.dumps(records[-1]))
    names = {"rigl": {"family": "dynamic", "citation": "Evci et al. 2020"}}
    summary, text, outline = page(tmp_path, tmp_path, stale=[key], names=names)
    assert [(path.name, reason[:7]) for path, reason in summary.set_aside] == [("000000000000-1.json", "corrupt")]
    assert {"000000000000-1.json", f"replaced by {key}-2.json", f"{key}-2.json", "Evci et al. 2020"} <= set(
        outline.cells
    )
    assert "<b>1</b> stale" in text and "<b>1</b> files set aside" in text
    markdown = (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8")
    assert "000000000000-1.json" in markdown and f"{key}-2.json" in markdown


def test_records_are_shown_never_run(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    records = grid(methods=("rigl", evil), seeds=1)
    records.append(make("set", status="error"))
    records[-1]["status"]["reason"] = evil
    _, text, outline = page(store(tmp_path, records), tmp_path, names={"rigl": {"citation": evil}})
    assert outline.cells.count(evil) > 10 and "<script>alert(1)" not in text
    assert len(re.findall(r"<script\b", text.lower())) == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8")


def mutants():
    """Records with one field of one block replaced by something that does not belong there."""
    base = make(energy=[{"component": "cpu", "source": "s", "joules": 1.0, "scope": "", "shared": False, "note": ""}])
    seed = 1000
    for block in base:
        fields = list(base[block]) if isinstance(base[block], dict) else [None]
        for field in fields:
            for value in (None, -1, 1e308, "x", [], {}, [None], {"a": [1]}):
                seed += 1
                record = json.loads(json.dumps(base))
                record["id"]["seed"] = seed
                if field is None:
                    record[block] = value
                else:
                    record[block][field] = value
                key = f"{seed:012x}"
                if isinstance(record["id"], dict) and (block, field) != ("id", "key"):
                    key = record["id"]["key"] = key_of({k: v for k, v in record["id"].items() if k != "key"})
                yield key, record


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7])
def test_no_single_wrong_field_stops_the_report(tmp_path, drawn, every):
    (tmp_path / "records").mkdir()
    found = list(mutants())[::every]  # 7 shares no divisor with the number of values, so that each value is met
    for key, record in found:
        (tmp_path / "records" / f"{key}-1.json").write_text(json.dumps(record))
    summary, text, _ = page(tmp_path, tmp_path)
    loaded = int(re.search(r"<b>(\d+)</b> runs", text)[1])
    replaced = text.count("replaced by")
    assert loaded + len(summary.set_aside) + replaced == len(found)
    assert loaded > 50 // every and len(summary.set_aside) > 300 // every


@pytest.mark.slow
def test_135_runs_take_seconds(tmp_path, drawn):
    methods = [f"method{i}" for i in range(7)]
    records = grid(methods, ("a", "b", "c"))
    long = {"step": list(range(480)), "loss": [1.0] * 480, "density": [0.1] * 480, "valid": [None] * 479 + [0.9]}
    assert len(records) == 135
    store(tmp_path, [record | {"curve": long} for record in records])
    write(tmp_path / "nothing", tmp_path / "warm")
    start = time.process_time()
    summary = write(tmp_path, tmp_path / "report")
    # 10 s on one slow core, most of it matplotlib's; other work on the machine stretches it.
    assert time.process_time() - start < 30
    assert summary.index.stat().st_size < 1_000_000


def test_importing_reports_is_light():
    heavy = ("torch", "altair", "vl_convert", "seaborn", "matplotlib", "scipy", "jinja2")
    code = f"import sys, dstbench.reports.page; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
