"""One member of each of timm's families trains a step, or is refused with a reason, as docs/timm-families.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import list_modules

from benchmarks.families import KERNELS, Row, keep, kept, member, page, pixels, row, table

REASONS = ("counting FLOPs", "can be sparse", "has no shape yet")


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(list_modules()))
def test_a_member_trains_a_step_or_is_refused_with_a_reason(family: str) -> None:
    found = row(family)
    for kernel in KERNELS:
        said = getattr(found, kernel) or found.masked  # what ends both stands once
        assert said.startswith("trains") or any(reason in said for reason in REASONS), f"{family}, {kernel}: {said}"
    if found.flops and not found.uncounted:
        assert found.second == pytest.approx(found.flops, rel=0.02)


def test_the_harness_tells_a_member_that_trains_from_one_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = row("byobnet")
    assert (
        found.fine
        and (found.member, {}) == member("byobnet") == ("test_byobnet", {})
        and found.side == pixels("test_byobnet")
    )
    assert found.second == found.flops > 0 and found.share > 0.9
    monkeypatch.setattr("benchmarks.families.Pixels.example", lambda self: torch.zeros(2, 5, 64, 64))
    refused = row("byobnet")
    assert not refused.fine and "counting FLOPs" in refused.masked
    text = page([found, refused])
    assert "1 train under both" in text and text.count("| byobnet |") == 2
    assert table([Row("x", masked="no")]).endswith("| no | – |")


def test_rows_that_were_kept_are_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, file = [Row("a", side=64, share=0.5), Row("b", masked="no")], tmp_path / "rows.jsonl"
    assert kept(None) == kept(file) == {}
    for found in rows:
        keep(file, found)
    assert list(kept(file).values()) == rows
    monkeypatch.setattr("benchmarks.families.VERSIONS", ["2.6.0", "1.0.15"])
    assert kept(file) == {}, "rows of other versions are made again"
