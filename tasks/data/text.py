"""Text: any file by characters or bytes, tiny Shakespeare, and the text that every Python ships."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dstbench.suite.task import DataError

UNITS = ("characters", "bytes")
SHARE = 0.9  # of the text that is trained on, its first part
SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
FILES = ("tinyshakespeare.txt", "input.txt", "tinyshakespeare/input.txt", "shakespeare_char/input.txt")


@dataclass(frozen=True, eq=False)
class Text:
    """A text as the bytes of its file; `source` says which, for messages.

    `tokens(unit)` gives it as numbers from 0: the place of each character in `characters`, or the value of each byte.
    The first nine tenths are for training, the rest is held out.
    """

    content: bytes
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """The first 12 hex digits of the content's sha256."""
        return hashlib.sha256(self.content).hexdigest()[:12]

    @cached_property
    def characters(self) -> tuple[str, ...]:
        """Every character that occurs, sorted; DataError where the content is no UTF-8."""
        return tuple(sorted(set(self._decoded)))

    @cached_property
    def _decoded(self) -> str:
        try:
            text = self.content.decode("utf-8-sig")
            if "\0" not in text:
                return text
            raise DataError(
                f"{self.source}: zero bytes, as UTF-16 or a binary file has them; save it as UTF-8 "
                "(iconv -f UTF-16 -t UTF-8), or take the task's unit bytes"
            )
        except UnicodeDecodeError as error:
            byte = self.content[error.start]
            raise DataError(
                f"{self.source}: no UTF-8 (byte 0x{byte:02x} at {error.start}); save it as UTF-8 "
                "(iconv -f LATIN1 -t UTF-8), or take the task's unit bytes"
            ) from error

    def vocabulary(self, unit: str) -> int:
        """How many different tokens there may be: the characters that occur, or 256 bytes."""
        return len(self.characters) if unit == "characters" else 256

    def tokens(self, unit: str) -> tuple[Tensor, Tensor]:
        """The training part and the held-out part, int64 (N,) each."""
        numbers: np.ndarray
        if unit == "bytes":
            numbers = np.frombuffer(self.content, dtype=np.uint8).astype(np.int64)
        else:
            points = np.frombuffer(self._decoded.encode("utf-32-le"), dtype="<u4")
            numbers = np.searchsorted(np.array([ord(c) for c in self.characters]), points).astype(np.int64)
        tokens = torch.from_numpy(numbers)
        cut = int(SHARE * len(tokens))
        return tokens[:cut], tokens[cut:]


def of_file(path: Path) -> Text:
    """Any text file; DataError if it is missing, no file, or empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}; give the folder that holds the file with --data-root DIR"
        ) from error
    if not content:
        raise DataError(f"{path}: an empty file; give one with text in it")
    return Text(content, str(path))


def embedded(root: Path | None = None, download: bool = False) -> Text:
    """The language reference that `help()` shows, 0.5 MB: `pydoc_data.topics` of the running Python, by name of topic.

    Other versions of Python ship another text, and have another fingerprint.

    Reference: Python's standard library, `Lib/pydoc_data/topics.py`, PSF licence.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(f"pydoc_data.topics: {error}; install the whole standard library of this Python") from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return Text(text.encode(), "pydoc_data.topics")


def tinyshakespeare(root: Path | None = None, download: bool = False) -> Text:
    """Tiny Shakespeare under `root`: `tinyshakespeare.txt` or nanoGPT's `input.txt`; 1,115,394 characters, 65 of them.

    Reference: Karpathy 2015, github.com/karpathy/char-rnn; nanoGPT's shakespeare_char.
    """
    root = Path(root or "data")
    path = next((root / name for name in FILES if (root / name).is_file()), root / FILES[0])
    if download and not (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE):
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            root.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(URL, timeout=60) as answer:
                part.write_bytes(answer.read())
            part.replace(path)
        except (OSError, HTTPException) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"tiny Shakespeare: {URL} cannot be had into {root}: {error}; {ADVICE}") from error
    try:
        found = of_file(path)
    except DataError as error:
        raise DataError(f"tiny Shakespeare: {error}; {ADVICE}") from error
    if (digest := hashlib.sha256(found.content).hexdigest()) != SHAKESPEARE:
        raise DataError(f"tiny Shakespeare: {path}: its sha256 is {digest}, not {SHAKESPEARE}; {ADVICE}")
    return found


ADVICE = (
    f"let it hold {FILES[0]} or {FILES[1]}, the file of {URL}, or let "
    "`python run_all.py --tasks text/gpt_tiny --data-root DIR --download` get it; text/gpt_embedded needs no file"
)
