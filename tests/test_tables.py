"""Tables as Markdown and text; figures as a reader writes them."""

from __future__ import annotations

import math

import pytest

from dstbench.reports.tables import Cell, Table, level, metric, percent, quantity, ratio, whole


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (percent(0.9541, 0.0123), "95.4 ± 1.2"),
        (percent(0.5), "50.0"),
        (percent(math.nan), "–"),
        (metric(0.9, 0.01, "accuracy"), "90.0 ± 1.0"),
        (metric(23.456, 1.234, "perplexity"), "23.46 ± 1.2"),
        (metric(23.456, math.nan, "perplexity"), "23.46"),
        (metric(math.nan, math.nan, "perplexity"), "–"),
        (ratio(0.12345, 0.01), "0.123 ± 0.010"),
        (ratio(0.5, 1e-9), "0.500"),
        (ratio(math.nan), "–"),
        (quantity(0.0, "s"), "0 s"),
        (quantity(1.5e9, ""), "1.5 G"),
        (quantity(1.5e25, ""), "1.5e+07 E"),
        (quantity(2048, "B"), "2 KiB"),
        (quantity(999, "B"), "999 B"),
        (quantity(0.25, "J"), "0.25 J"),
        (quantity(math.nan, "J"), "–"),
        (level(0.9), "90 %"),
        (level(0.995), "99.5 %"),
        (level(math.nan), "–"),
        (whole(12345.0), "12,345"),
        (whole(math.nan), "–"),
    ],
)
def test_figures(cell, text):
    assert cell.text == text and isinstance(cell.order, float | int)


def test_markdown_cannot_be_broken_by_its_cells():
    table = Table("t", "T", ["name", "n"], [[Cell("a|b\n<script>&"), whole(3)]], ["a note"])
    lines = table.markdown().splitlines()
    assert lines[:5] == ["## T", "", "| name | n |", "| --- | ---: |", "| a\\|b &lt;script>&amp; | 3 |"]
    assert "a note" in lines


def test_empty_tables_say_so():
    table = Table("t", "T", ["name"])
    assert "None." in table.markdown() and table.text() == "T\n\nNo runs."


def test_text_is_aligned():
    table = Table("t", "T", ["name", "n"], [[Cell("rigl"), whole(3)], [Cell("ml_linbreg"), whole(1234)]], ["note"])
    assert table.text().splitlines()[2:] == [
        "name            n",
        "----------  -----",
        "rigl            3",
        "ml_linbreg  1,234",
        "",
        "note",
    ]
