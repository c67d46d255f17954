"""Drawings: named, of a fixed size, with ids of their own, safe to stand inside a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from dstbench.reports.drawing import svg

EVIL = "</title></svg><script>alert(1)</script>&\x00\x0b"


def chart(label="a", **more):
    values = [{"a": 1.0, "b": 2.0, "t": label}, {"a": 2.0, "b": 3.0, "t": label}]
    encoding = {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "quantitative"}}
    encoding["description"] = {"field": "t", "type": "nominal"}
    fit = {"type": "fit", "contains": "padding"}
    spec = {"data": {"values": values}, "mark": {"type": "point", "clip": True}, "encoding": encoding, "width": 400}
    return spec | {"height": 200, "autosize": fit, "description": "b against a"} | more


def test_its_size_is_known_before_it_is_drawn():
    root = ET.fromstring(svg(chart(), "one"))
    assert root.tag == "svg" and root.get("viewBox") == "0 0 400 200"
    assert (root.get("width"), root.get("height")) == ("400", "200")


def test_it_has_one_name_and_its_marks_have_titles():
    root = ET.fromstring(svg(chart("first"), "one"))
    assert (root.get("role"), root.get("aria-label"), root.get("id")) == ("img", "b against a", "one")
    assert [title.text for title in root.iter("title")] == ["first", "first"]
    inner = [element for element in root.iter() if element is not root]
    assert not [e for e in inner if any(k.startswith("aria") or k in ("role", "class") for k in e.attrib)]


def test_ids_are_unlike_those_of_other_drawings_and_references_follow():
    for name in ("one", "two"):
        text = svg(chart(), name)
        ids, used = set(re.findall(r'\bid="(.*?)"', text)), set(re.findall(r"url\(#(.*?)\)", text))
        assert used and used <= ids and all(i.startswith(name) for i in ids)


def test_the_same_chart_is_the_same_bytes():
    assert svg(chart(), "one") == svg(chart(), "one")


@pytest.mark.parametrize("where", ["label", "description"])
def test_text_stays_text(where):
    spec = chart(EVIL) if where == "label" else chart(description=EVIL.replace("\x00", "").replace("\x0b", ""))
    text = svg(spec, "one")
    assert "<script" not in text and "alert(1)" in text
    ET.fromstring(text)  # What XML cannot hold was replaced.


def test_shortened_numbers_move_nothing_by_a_hundredth():
    import vl_convert

    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")

    def places(text):
        return [float(n) for d in re.findall(r"transform=\"translate\((.*?)\)", text) for n in number.findall(d)]

    spec = chart(padding={"left": 10, "right": 8, "top": 6, "bottom": 5}, config={"view": {"stroke": None}})
    whole, short = places(vl_convert.vegalite_to_svg(spec)), places(svg(spec, "one"))
    marks = [x for x in short if x not in {round(v) for v in whole}]
    assert short and all(min(abs(x - v) for v in whole) < 0.011 for x in marks if x > 20)
