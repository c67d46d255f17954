"""The catalogue: sections of docstrings, presets beside their class, broken methods with their reason."""

from __future__ import annotations

from pathlib import Path

from dstbench.suite.catalogue import markdown, sections

PLUGIN = '''
from dstbench.suite.method import Method
from dstbench.suite.registry import register

@register(family="mine", citation="Me 2026")
class Mine(Method):
    """Does what I want.

    `alpha` is how much.
    Passes: read everything,
    twice.
    FLOPs: 3 f_D.
    Reference: section 1.
    """

    keeps = {"dual": "held"}
    grown = "at one"
    alpha: float = 0.5
    word: str = ""
'''


def test_sections_of_a_docstring() -> None:
    class Kind:
        """One sentence.

        Prose with a colon: not a section.
        Passes: A
        and B.
        Ambiguous: all.
        """

    assert sections(Kind) == (
        "One sentence.\n\nProse with a colon: not a section.",
        {"Passes": "A and B.", "Ambiguous": "all."},
    )


def test_a_plugin_in_a_family_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    text = markdown([str(file)])
    part = text[text.index("## Mine\n") :]
    for line in (
        "### `mine`",
        "- **Passes**: read everything, twice.",
        '- **Hyper-parameters**: `alpha` = 0.5, `word` = ""',
        "- **Kept off the masks**: dual: held",
        "- **Newly read weights start**: at one",
        "- **Reference**: Me 2026; section 1. (version 1, plugin",
    ):
        assert line in part, line


def test_presets_stand_with_their_class_or_name_it() -> None:
    text = markdown()
    assert "- Preset `linbreg:ema`: `momentum` = ema" in text
    assert "### `linbreg:row`\n\n`regularizer` = row of `linbreg`." in text
    assert text.index("### `linbreg`") < text.index("Preset `linbreg:ema`") < text.index("### `adabreg`")


def test_a_broken_plugin_has_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("raise ImportError('no such thing')\n")
    assert "ImportError: no such thing" in markdown([str(file)])
