"""What lies on a disk, mutated at random: no traceback, no wrong result, and no two readers that disagree.

The short form runs always; the long one (1,000 records, 200 checkpoints, 200 plans) is slow. Seeds are this file's own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dstbench.reports import figures, page
from dstbench.reports import load as reports
from dstbench.suite import estimate, listing, planfile, record
from dstbench.suite.plan import Run, key_of
from records import make
from test_checkpoint import BLOCKS, Bomb, outcome, plugin, sealed, stopped

assert plugin  # a fixture

ODD: list[Any] = [None, True, 0, -1, -5.5, 10**400, 1e300, 1e-320, "", "x", "0.5", "=1+1", "$x$", "\ud800", "a\nb\x1b"]
ODD += [[], {}, [[]], [{}], {"a": 1}, [None], ["x"] * 3, {"": {"": []}}, "y" * 5000]
Change = Callable[[random.Random, bytes], bytes]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that lies within mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for k, v in inner for path in ((*above, k), *places(v, (*above, k)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


# ---- bytes -----------------------------------------------------------------------------------------------------------


def bits(rng: random.Random, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 50])):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def moved(rng: random.Random, content: bytes) -> bytes:
    one, two = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:one] + content[two:] + content[one:two]


def filled(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.choice([1, 40])) + content[place:]


BYTES: list[Change] = [bits, bits, cut, moved, filled]


# ---- records ---------------------------------------------------------------------------------------------------------


def swapped(rng: random.Random, content: bytes) -> bytes:
    found = json.loads(content)
    path = rng.choice(places(found))
    at(found, path[:-1])[path[-1]] = rng.choice(ODD)
    return json.dumps(found).encode()


def deleted(rng: random.Random, content: bytes) -> bytes:
    found = json.loads(content)
    path = rng.choice(places(found))
    del at(found, path[:-1])[path[-1]]
    return json.dumps(found).encode()


def deep(rng: random.Random, content: bytes) -> bytes:
    text, depth = rng.choice([("[", "]"), ('{"a":', "}")]), rng.choice([15, 30, 900, 50_000])
    place = content.index(b":") + 1
    return content[:place] + (text[0] * depth + "1" + text[1] * depth + ', "b":').encode() + content[place:]


def twice(rng: random.Random, content: bytes) -> bytes:
    found = json.loads(content)
    name = rng.choice(sorted(found))
    return content.replace(b"{", f'{{"{name}": {json.dumps(rng.choice(ODD))}, '.encode(), 1)


def huge(rng: random.Random, content: bytes) -> bytes:
    numbers = ["1e400", "-1e999", "NaN", "-Infinity", "9" * 5000, "1" + "0" * 308]
    return content.replace(rng.choice([b"0.9", b"5.0", b"1.0", b"[", b"4.0"]), rng.choice(numbers).encode(), 1)


RECORDS: list[Change] = [*BYTES, swapped, swapped, swapped, deleted, deep, twice, huge]


def damage(rng: random.Random, path: Path) -> str:
    """Change a file of a record in one way, its digest left as it was, or made anew or away.

    The name of the file that holds the change where its digest does not tell of it, else "".
    """
    kind = rng.choice(["content"] * 6 + ["resealed"] * 3 + ["older"] * 3 + ["place"])
    if kind == "place":
        path.unlink()
        rng.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere"), path.touch])()
        return ""
    content = rng.choice(RECORDS)(rng, path.read_bytes())
    path.write_bytes(content)
    if kind == "content":
        return ""
    try:  # what a person would make who knows how
        found = json.loads(content)
        found.pop("digest", None)
        if rng.random() < 0.8:
            found["id"]["key"] = key_of({k: v for k, v in found["id"].items() if k != "key"})
        if kind == "resealed":
            found["digest"] = record.digest(found)
        ending = f"-{found['digest'][:8]}" if kind == "resealed" else ""
        named = path.rename(path.with_name(f"{found['id']['key']}-1{ending}.json"))
        named.write_text(json.dumps(found))
        return named.name
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        path.unlink(missing_ok=True)
    return ""


def scene(seed: int) -> list[dict[str, Any]]:
    """Records of all kinds, unlike those of other seeds."""
    energy = [{"component": "cpu", "source": "s", "joules": 1.0, "scope": "", "shared": False, "note": ""}]
    found = [make("dense", None, 10 * seed + s, energy=energy) for s in range(2)]
    found += [make(name, 0.9, 10 * seed + s, 0.8, energy=energy) for name in ("rigl", "set", "snip") for s in range(2)]
    return [*found, *[make("mest", 0.9, 10 * seed, status=s) for s in ("error", "diverged", "off_target", "skipped")]]


def look(results: Path) -> set[str]:
    """Read a folder by every reader; the keys that count, of which all are of one mind."""
    records, set_aside = record.load(results)
    loaded = reports.load(results)
    names = {path.name for path, _ in set_aside}
    assert {path.name for path, _ in loaded.set_aside} == names
    keys = {found["id"]["key"] for found in records}
    files = {path.name for path in record.folder_of(results).iterdir()}
    assert {found["file"] for found in loaded.records} | {path.name for path, _ in loaded.superseded} == files - names
    text = listing.status(results)
    assert text.count("set aside: ") == len(names)
    text.encode()
    json.dumps(records, allow_nan=False)
    estimate.expected_seconds([Run("rigl", "digits/mlp")], records, 2)
    summary = page.write(results, results / "report")
    summary.leaderboard.encode()
    assert {path.name for path, _ in summary.set_aside} == names
    return keys


def try_records(folder: Path, seed: int, number: int) -> None:
    """Mutate `number` records of one folder; what is read is as it was written, but for those made by hand."""
    rng, originals, trusted, touched = random.Random(seed), {}, set(), set()
    for part in range(-(-number // 12)):
        for found in scene(1000 * seed + part):
            path = record.write(found, folder)
            originals[path.name] = record.read(path)
    paths = [record.folder_of(folder) / name for name in originals]
    for path in rng.sample(paths, number):
        before = path.read_bytes()
        trusted.add(damage(rng, path))
        if not path.is_file() or path.is_symlink() or path.read_bytes() != before:
            touched.add(path.name)
    keys = look(folder)
    for path, found in record.scan(folder).newest.values():
        assert path.name in trusted or originals[path.name] == found, "a record counts with another content"
    assert {name[:12] for name in originals if name not in touched} <= keys, "a whole record does not count"


@pytest.mark.parametrize("seed", range(2))
def test_records(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "write", lambda *_: [])  # the long form draws them
    try_records(tmp_path, seed, 24)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_records(tmp_path: Path, seed: int) -> None:
    try_records(tmp_path, seed, 50)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def bomb(rng: random.Random, content: bytes, canary: Path) -> bytes:
    import io

    file = io.BytesIO()
    torch.save({"key": "x", "made_by": Bomb(canary)}, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    return sealed(file.getvalue()) if rng.random() < 0.5 else file.getvalue()


def try_checkpoints(folder: Path, plugin: str, seed: int, number: int) -> None:
    """Mutated checkpoints of a few runs: each ends as an undisturbed one does, bit for bit."""
    rng, canary = random.Random(seed), folder / "canary"
    runs = [Run(m, "blobs", 0.5, seed=seed + i, plugins=(plugin,)) for i, m in enumerate(("rigl", "set", "linbreg"))]
    whole = {run.key: outcome(run, folder / "whole") for run in runs}
    saved = {run.key: stopped(run, folder / "saved", rng.randrange(1, 20)).read_bytes() for run in runs}
    for i in range(number):
        run, results = rng.choice(runs), folder / str(i)
        content, path = saved[run.key], results / "work" / run.key / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        kind = rng.choice(["bytes"] * 6 + ["other", "bomb", "place", "clean"])
        if kind == "place":
            rng.choice([path.mkdir, lambda p=path: os.mkfifo(p), lambda p=path: p.symlink_to("nowhere")])()
        else:
            others = [saved[key] for key in saved if key != run.key]
            new = content if kind == "clean" else rng.choice(others) if kind == "other" else b""
            path.write_bytes(new or (bomb(rng, content, canary) if kind == "bomb" else rng.choice(BYTES)(rng, content)))
        same = path.is_file() and path.read_bytes() == content
        found = outcome(run, results)
        assert [found[block] for block in BLOCKS] == [whole[run.key][block] for block in BLOCKS], (i, kind)
        assert (found["stamps"]["resumed"] == 1) == same == (found["stamps"]["checkpoint"] is None), (i, kind)
        assert found["status"]["name"] == whole[run.key]["status"]["name"] and not canary.exists()
        shutil.rmtree(results)


def test_checkpoints(tmp_path: Path, plugin: str) -> None:
    try_checkpoints(tmp_path, plugin, 0, 8)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [100, 200, 300, 400])
def test_many_checkpoints(tmp_path: Path, plugin: str, seed: int) -> None:
    try_checkpoints(tmp_path, plugin, seed, 50)


# ---- plans -----------------------------------------------------------------------------------------------------------

VALUES = [
    "",
    "null",
    "~",
    "-1",
    "1e999",
    ".nan",
    "9" * 5000,
    "0x" + "f" * 6000,
    "2001-99-99",
    "2001-01-01",
    "*x",
    "&x [*x]",
]
VALUES += ["!!python/object:os.system x", "!!binary x", "!foo {a: b}", "!!set {a, b}", "!!omap [a: 1]", "'", "{", "]"]
VALUES += [
    "[" * 400,
    "{a: " * 400,
    "- " * 400,
    "? " * 400,
    "yes",
    "0o17",
    "1_000",
    "{[a]: b}",
    "|\n  x",
    "<<: 1",
    "\x00",
]
VALUES += [
    "&a [1, 1, 1, 1]\nx: &b [*a, *a, *a, *a, *a, *a]\ny: &c [*b, *b, *b, *b, *b, *b, *b, *b]",
    "\u202e",
    "'a\\nb'",
]


def worded(rng: random.Random, content: bytes) -> bytes:
    """One value of a plan replaced by another that YAML has a meaning for."""
    lines = content.decode("latin-1").splitlines() or [""]
    i = rng.randrange(len(lines))
    head, colon, _ = lines[i].partition(":")
    lines[i] = f"{head}{colon} {rng.choice(VALUES)}" if colon else rng.choice(VALUES)
    return "\n".join(lines).encode("latin-1", "replace")


def shuffled(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    rng.shuffle(lines)
    return b"\n".join(lines)


def try_plans(folder: Path, seed: int, number: int) -> None:
    """Mutated plans: a plan or a message a line, which names the file."""
    rng, path = random.Random(seed), folder / "plan.yaml"
    good = b"name: mine\nmethods:\n  - dense\n  - rigl: {alpha: 0.2}\n  - set\ntasks: [digits/mlp, digits/vit]\n"
    good += b"sparsity: [0.9, 0.95]\nseeds: 0-3\nbudget: 0.5\nset:\n  digits/mlp.lr.sgd: 0.2\n  set: {alpha: 0.3}\n"
    path.write_bytes(good)
    assert len(planfile.read(path).seeds) == 4
    for i in range(number):
        content = good
        for _ in range(rng.choice([1, 1, 2, 4])):
            content = rng.choice([*BYTES, worded, worded, worded, worded, shuffled])(rng, content) or b"x"
        path.write_bytes(content)
        try:
            found = planfile.read(path)
        except planfile.PlanError as error:
            lines = str(error).splitlines()
            assert lines and all(line.startswith(str(path)) for line in lines), (i, content, lines)
            assert len(str(error)) < 10_000 and str(error).encode(), (i, content)
        else:
            assert found.methods and found.tasks and all(0 <= level < 1 for level in found.sparsity)


def test_plans(tmp_path: Path) -> None:
    try_plans(tmp_path, 0, 40)


@pytest.mark.slow
def test_many_plans(tmp_path: Path) -> None:
    try_plans(tmp_path, 100, 200)
