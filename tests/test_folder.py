"""Data files as strangers bring them: odd entries, images and values; torn files of scikit-learn and torchvision."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.task import DataError
from dstbench.tasks import data
from dstbench.tasks.data import cifar, digits, folder

SIZE, CLASSES = 4, ("cat", "dog")
DOG = "train/dog"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image folder of two classes, with three images of 4x4 each."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            place = tmp_path / "set" / split / name
            place.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path / "set"


def read(root: Path):
    return folder.read(root, SIZE, len(CLASSES))


def bytes_name(place: Path, name: bytes, target: Path) -> None:
    os.link(target, os.fsencode(place) + b"/" + name)


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as it:
            it.bind(path.name)
    finally:
        os.chdir(here)


def bomb(path: Path, width: int) -> None:
    """A PNG of a few bytes that says it is `width` pixels wide and high."""
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


ENTRIES = {
    "a dangling link": (lambda d: (d / "z.png").symlink_to("/nowhere/x.png"), r"z\.png: a link to '/nowhere/x.png'"),
    "a circle of links": (lambda d: (d / "z.png").symlink_to("z.png"), r"z\.png: cannot be read \(Too many levels"),
    "a folder": (lambda d: (d / "x.png").mkdir(), r"x\.png: a folder with the name of an image"),
    "a pipe": (lambda d: os.mkfifo(d / "x.jpg"), r"x\.jpg: a pipe with the name of an image"),
    "a socket": (lambda d: bind(d / "x.jpeg"), r"x\.jpeg: a socket with the name of an image"),
    "a device": (lambda d: (d / "x.png").symlink_to("/dev/zero"), r"x\.png: a device with the name of an image"),
    "no UTF-8": (lambda d: bytes_name(d, b"\xff\xfe.png", d / "0.png"), r"dog/\\xff\\xfe.png': this name is no UTF-8"),
    "Latin-1": (lambda d: bytes_name(d.parent, b"M\xfcll", d / "0.png"), r"train/M\\xfcll': this name is no UTF-8"),
    "an empty file": (lambda d: (d / "0.png").write_bytes(b""), r"0\.png: cannot be decoded"),
    "a torn file": (lambda d: (d / "0.png").write_bytes((d / "0.png").read_bytes()[:60]), r"0\.png: cannot be dec"),
    "another kind": (lambda d: Image.new("RGB", (4, 4)).save(d / "0.png", "pcx"), r"0\.png: cannot be decoded"),
    "huge": (lambda d: bomb(d / "0.png", 10_000), r"0\.png: 10000x10000 pixels where 4x4 are expected"),
    "a bomb": (lambda d: bomb(d / "0.png", 200_000), r"0\.png: far more pixels than an image has"),
    "half transparent": (lambda d: Image.new("RGBA", (4, 4), (9, 9, 9, 99)).save(d / "0.png"), r"has transparent pix"),
    "a clear colour": (lambda d: Image.new("L", (4, 4), 7).save(d / "0.png", transparency=7), r"has transparent pix"),
    "a file as class": (
        lambda d: [p.unlink() for p in d.iterdir()] and (d.rmdir(), d.touch()),
        r"1 class folders .*cat",
    ),
    "a file as split": (lambda d: (d.parent.rename(d.parents[1] / "old"), d.parent.touch()), r"train: no folder"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_cannot_be_read_is_an_error_that_names_it(root: Path, name: str) -> None:
    spoil, text = ENTRIES[name]
    spoil(root / DOG)
    with pytest.raises(DataError, match=text) as caught:
        read(root)
    assert str(root) in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_a_folder_that_cannot_be_listed_is_named(root: Path, monkeypatch) -> None:
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"train: cannot be listed \(Permission denied\)"):
        read(root)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cat/0\.png: cannot be read \(Permission denied\)"):
        read(root)


def test_clutter_is_left_out_and_named_once(root: Path, recwarn) -> None:
    plain = read(root)
    assert not recwarn
    (root / DOG / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / DOG / "Thumbs.db").touch()
    (root / DOG / ".ipynb_checkpoints").mkdir()
    (root / DOG / "notes.txt").touch()
    for name in ("__MACOSX", ".DS_Store", "@eaDir"):
        (root / "train" / name).mkdir()
    found = read(root)
    assert found[2] == plain[2] and torch.equal(found[0][0], plain[0][0])
    (warning,) = recwarn
    assert "left out 7, as no image or class folder: train/.DS_Store, train/@eaDir, " in str(warning.message)


def save(pixels: np.ndarray, path: Path, mode: str = "", **options) -> torch.Tensor:
    Image.fromarray(pixels).convert(mode).save(path, **options) if mode else Image.fromarray(pixels).save(
        path, **options
    )
    return folder.image(path, SIZE)


def test_every_kind_of_pixel_becomes_eight_bit_rgb(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 16).round().astype(np.uint8).reshape(4, 4)
    colours = np.stack([levels, levels.T, 255 - levels], -1)
    grey, rgb = torch.from_numpy(levels).expand(3, 4, 4), torch.from_numpy(colours).permute(2, 0, 1)
    assert torch.equal(save(levels, tmp_path / "grey.png"), grey)
    assert torch.equal(save(colours, tmp_path / "rgb.png"), rgb)
    assert torch.equal(save(colours, tmp_path / "alpha.png", "RGBA"), rgb), "opaque"
    assert torch.equal(save(levels, tmp_path / "la.png", "LA"), grey)
    assert torch.equal(save(levels, tmp_path / "palette.png", "P"), grey)
    assert torch.equal(save(levels, tmp_path / "bit.png", "1").unique(), torch.tensor([0, 255], dtype=torch.uint8))
    cmyk = save(colours, tmp_path / "cmyk.jpg", "CMYK", quality=100, subsampling=0)
    assert (cmyk.int() - rgb.int()).abs().max() < 20


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 16).round().astype(np.uint16).reshape(4, 4)
    expected = torch.from_numpy(np.round(deep / 257)).to(torch.uint8)
    assert torch.equal(save(deep, tmp_path / "ramp.png"), expected.expand(3, 4, 4))
    wide = Image.fromarray(deep.astype(np.int32))  # as earlier versions of Pillow read such files
    np.testing.assert_array_equal(np.asarray(folder._rgb(wide, tmp_path))[..., 1], expected)
    with pytest.raises(DataError, match="values from 0 to 131070, where 0 to 65535 are expected"):
        folder._rgb(Image.fromarray(deep.astype(np.int32) * 2), tmp_path)
    exact = np.arange(16, dtype=np.uint16).reshape(4, 4) * 257
    assert save(exact, tmp_path / "exact.png")[0].flatten().tolist() == list(range(16))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)  # 16-bit RGB, which Pillow cannot write
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in deep)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "rgb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    found = folder.image(tmp_path / "rgb.png", SIZE)
    assert (found.int() - expected.int()).abs().max() <= 1


def png(path: Path, bits: int, kind: int, rows: np.ndarray, transparent: bytes) -> Path:
    """A PNG by hand, with a transparent level or colour."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in rows)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_level_of_any_depth_is_refused(tmp_path: Path, bits: int, channels: int) -> None:
    rows = np.full((SIZE, SIZE * channels), 7)
    path = png(tmp_path / "x.png", bits, 0 if channels == 1 else 2, rows, struct.pack(">H", 7) * channels)
    with pytest.raises(DataError, match="transparent"):
        folder.image(path, SIZE)
    if channels == 1:  # a level that no pixel has
        found = folder.image(png(tmp_path / "y.png", bits, 0, rows, struct.pack(">H", 9)), SIZE)
        assert found.unique().tolist() == [7 if bits == 8 else 0]


def test_a_file_that_goes_while_the_folder_is_read_is_named_as_such(root: Path, monkeypatch) -> None:
    real = folder._fingerprint

    def late(root: Path, paths: list[Path], whole: bool) -> str:
        paths[0].unlink()
        return real(root, paths, whole)

    monkeypatch.setattr(folder, "_fingerprint", late)
    with pytest.raises(DataError, match=r"train/cat/0.png: went while the folder was read; run again"):
        read(root)


def test_what_lies_in_place_of_the_kept_tensors_is_not_trusted(root: Path) -> None:
    (images, labels), _, fingerprint = read(root)
    kept = root.with_name(f"set-{fingerprint}.v2.pt")
    other = {split: (images.float(), labels) for split in ("train", "test")}
    for put in (lambda: torch.save(other, kept), lambda: torch.save({"train": 1}, kept), lambda: os.mkfifo(kept)):
        kept.unlink()
        put()
        assert torch.equal(read(root)[0][0], images)
    for offset in (8, 4, 2):  # one bit of some image
        kept.unlink()
        read(root)
        raw = bytearray(kept.read_bytes())
        raw[raw.index(images.numpy().tobytes()) + images.numel() // offset] ^= 1
        kept.write_bytes(raw)
        assert torch.equal(read(root)[0][0], images)
    assert torch.load(kept)["sha256"]["train"] == hashlib.sha256(images.numpy().tobytes()).hexdigest()
    kept.unlink()
    kept.mkdir()
    assert torch.equal(read(root)[0][0], images) and not list(root.parent.glob("*.part"))


def test_a_full_disk_leaves_no_stray(root: Path, monkeypatch) -> None:
    def full(tensors, path):
        path.write_bytes(b"some")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    assert len(read(root)[0][0]) == 6
    assert [path.name for path in root.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("level", [0, 3, 255])
def test_a_constant_channel_is_zero_not_nan(level: int) -> None:
    pixels = torch.randint(0, 256, (300, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(level))
    pixels[:, 1] = level
    mean, std = data.statistics(pixels, torch.arange(300))
    found = data.Images(pixels, torch.zeros(300), {}, mean, std, "").scaled(pixels)
    assert mean[1] == level and std[1] == 1 and not found[:, 1].any()
    assert found.isfinite().all() and float(found[:, 0].std()) == pytest.approx(1, abs=1e-3)
    pixels[0, 1, 0, 0] ^= 1  # nearly constant is not constant
    assert 0 < float(data.statistics(pixels, torch.arange(300))[1][1]) < 0.02


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda raw, lines: raw[: len(raw) // 2], "cannot be read"),
        (lambda raw, lines: b"no gzip at all", "cannot be read"),
        (lambda raw, lines: gzip.compress(b"\n".join(lines[:900])), r"\(900, 65\) numbers where \(1797, 65\) are"),
        (lambda raw, lines: gzip.compress(b"\n".join(lines).replace(b"16", b"x")), "cannot be read"),
        (lambda raw, lines: gzip.compress(b"\n".join(lines).replace(b"16", b"17")), "pixels beyond 0 to 16"),
    ],
)
def test_broken_digits_name_the_file_and_how_to_mend_it(tmp_path, monkeypatch, spoil, text: str) -> None:
    import sklearn

    raw = (Path(sklearn.__file__).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()
    place = tmp_path / "datasets" / "data"
    place.mkdir(parents=True)
    (place / "digits.csv.gz").write_bytes(spoil(raw, gzip.decompress(raw).split()))
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: Spec(tmp_path))
    with pytest.raises(DataError, match=f"digits: .*digits.csv.gz: .*{text}.*pip install --force-reinstall scikit"):
        digits.digits(Path())


class Spec:
    def __init__(self, place: Path) -> None:
        self.submodule_search_locations = [str(place)]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.mkdir(), "no file but something else"),
        (lambda path: os.mkfifo(path), "no file but something else"),
        (lambda path: path.symlink_to("/nowhere"), "no such file"),
        (lambda path: path.write_bytes(b""), "the file is corrupt"),
    ],
)
def test_what_lies_in_place_of_a_batch_of_cifar10_is_named(tmp_path: Path, spoil, text: str) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    spoil(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    with pytest.raises(DataError, match=f"data_batch_1: .*{text}.*--download"):
        cifar.cifar10(tmp_path)


def test_a_torn_archive_of_cifar10_is_no_traceback(tmp_path: Path, monkeypatch) -> None:
    import tarfile

    for error in (tarfile.ReadError("unexpected end of data"), EOFError("ended early"), zlib.error("invalid block")):

        def torn(url, root, error=error, **kwargs):
            raise error

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", torn)
        with pytest.raises(DataError, match=f"cannot be had into {tmp_path}: {error}"):
            cifar.cifar10(tmp_path, download=True)
