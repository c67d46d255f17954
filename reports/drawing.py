"""Vega-Lite specification -> SVG that stands in a page: named, of a fixed size, its marks telling their values."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

WIDTH = 400
CONFIG: dict[str, Any] = {
    "background": None,
    "padding": {"left": 10, "right": 8, "top": 6, "bottom": 5},  # The reader's font may be wider than the one measured.
    "view": {"stroke": None},
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": "#5a6472",
        "labelLimit": 0,
        "titleColor": "#1c2330",
        "titleFontWeight": 600,
        "titleLimit": 0,
        "gridColor": "#e9ecf1",
        "domainColor": "#9aa3af",
        "tickColor": "#9aa3af",
    },
}
# What XML cannot hold, and a record may.
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REFERENCE = re.compile(r"url\(#(.*)\)")
LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")


def svg(spec: Mapping[str, Any], name: str) -> str:
    """The chart as one `<svg>` element that needs no script, no font and no other file.

    Args:
        spec: a specification with its data and a `description`, which becomes the name that screen readers say.
        name: an id unlike that of any other chart of the page; ids within the drawing start with it.

    Returns:
        `<svg width height viewBox role="img" aria-label>`; a mark's label is its `<title>`, shown on hover.
    """
    import vl_convert

    text = vl_convert.vegalite_to_svg(dict(spec), config=CONFIG)
    root = ET.fromstring(ILLEGAL.sub("\ufffd", text))
    size = {key: root.attrib[key] for key in ("width", "height", "viewBox")}
    ids: dict[str, str] = {}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        _lighten(element)
        _rename(element, name, ids)
    root.attrib.clear()
    root.attrib |= size | {"id": name, "role": "img", "aria-label": str(spec["description"])}
    return ET.tostring(root, encoding="unicode")


def _lighten(element: ET.Element) -> None:
    """Drop what cannot be seen, turn a mark's label into its title and shorten numbers: a third of the bytes goes."""
    for child in list(element):
        if _unseen(child):
            element.remove(child)
    if element.get("role") == "graphics-symbol" and "aria-label" in element.attrib and not len(element):
        ET.SubElement(element, "title").text = element.attrib["aria-label"]
    for key in [key for key in element.attrib if key.startswith("aria-") or key in ("role", "class")]:
        del element.attrib[key]
    for key in {"d", "transform"} & element.attrib.keys():
        element.attrib[key] = LONG.sub(lambda match: f"{round(float(match[0]), 2):g}", element.attrib[key])


def _unseen(element: ET.Element) -> bool:
    kind = element.tag.rpartition("}")[2]
    empty = (kind == "text" and not len(element) and not element.text) or (kind == "path" and not element.get("d"))
    return empty or element.get("display") == "none"


def _rename(element: ET.Element, name: str, ids: dict[str, str]) -> None:
    """Ids are the page's, not the drawing's: two charts that both clip by "clip1" would share the first one's.

    They are counted in each drawing, since vl-convert counts on from one drawing to the next.
    """
    for key, value in list(element.attrib.items()):
        found = value if key == "id" else REFERENCE.fullmatch(value)
        if found:
            old = found if isinstance(found, str) else found[1]
            new = ids.setdefault(old, f"{name}-{len(ids)}")
            element.attrib[key] = new if key == "id" else f"url(#{new})"
