"""Tables as Markdown and text; figures as a reader writes them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstbench.reports.tables import Cell, Table, level, metric, number, percent, quantity, ratio, whole


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
        (percent(-0.0004, 0.007), "0.0 ± 0.7"),
        (percent(-0.0), "0.0"),
        (percent(-0.0006), "-0.1"),
        (percent(math.inf, math.inf), "∞ ± ∞"),
        (percent(0.5, -0.0), "50.0 ± 0.0"),
        (percent(1e300), "1e+302"),
        (percent(1e308), "∞"),
        (metric(-0.0, 0.1, "loss"), "0 ± 0.1"),
        (ratio(-1e-9, 0.1), "-1e-09 ± 0.100"),
        (ratio(0.00042), "0.00042"),
        (ratio(0.12345, 0.01), "0.123 ± 0.010"),
        (ratio(0.5, 1e-9), "0.500"),
        (ratio(math.nan), "–"),
        (quantity(0.0, "s"), "0 s"),
        (quantity(1.5e9, ""), "1.5 G"),
        (quantity(1.5e25, ""), "1.5e+07 E"),
        (quantity(-0.0, "s"), "0 s"),
        (quantity(999_999, ""), "1 M"),
        (quantity(math.inf, "J"), "∞ J"),
        (quantity(2**20 - 1, "B"), "1 MiB"),
        (quantity(2048, "B"), "2 KiB"),
        (quantity(999, "B"), "999 B"),
        (quantity(0.25, "J"), "0.25 J"),
        (quantity(math.nan, "J"), "–"),
        (level(0.9), "90 %"),
        (level(0.995), "99.5 %"),
        (level(0.57), "57 %"),
        (level(0.99999), "99.999 %"),
        (level(math.nan), "–"),
        (whole(-0.2), "0"),
        (whole(12345.0), "12,345"),
        (whole(math.nan), "–"),
    ],
)
def test_figures(cell, text):
    assert cell.text == text and isinstance(cell.order, float | int)


FIGURES = (
    percent, ratio, level, whole, lambda x: percent(0.5, x), lambda x: ratio(0.5, x), lambda x: quantity(x, "s"),
    lambda x: quantity(x, "B"), lambda x: metric(x, x, "loss"), lambda x: metric(x, x, "accuracy"),
    *[lambda x, spec=spec: Cell(number(x, spec)) for spec in (".1f", ".3f", ".2g", ".4g", ",.0f", "g")],
)  # fmt: skip


@given(st.one_of(st.floats(), st.floats(-2, 2), st.floats(-1e-3, 1e-3), st.sampled_from([-0.0, 5e-324, -5e-324])))
def test_no_figure_has_a_signed_zero_a_word_or_a_hundred_digits(value):
    for figure in FIGURES:
        text = figure(value).text
        assert not re.search(r"-0(\.0*)?(?![\d.])|nan|inf", text), text
        assert 0 < len(text) <= 30 and (
            "–" in text or not math.isnan(value) or text.startswith("50.0") or "0.5" in text
        )


@given(st.floats(-1e12, 1e12))
def test_a_figure_is_its_value_as_far_as_it_is_written(value):
    for spec, absolute, relative in ((".1f", 0.05, 5e-4), (".3f", 5e-4, 5e-4), (".4g", 0, 5e-4), (",.0f", 0.5, 5e-4)):
        written = float(number(value, spec).replace(",", ""))
        assert written == pytest.approx(value, abs=absolute * 1.001 + 1e-300, rel=relative * 1.001)


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


def test_long_cells_take_several_lines_of_a_terminal_and_lose_no_word():
    words = "not ranked: 1 of 1 failed: error: ValueError: index 7 is out of range for a list of 3"
    table = Table("t", "T", ["rank", "why"], [[whole(1), Cell(words)], [whole(2), Cell("short")]])
    lines = table.text().splitlines()[4:]
    assert [line[:4].strip() for line in lines] == ["1", "", "", "2"] and max(map(len, lines)) <= 50
    assert " ".join(line[6:] for line in lines[:3]) == words
