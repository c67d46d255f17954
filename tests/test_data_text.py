"""Texts: vocabulary, tokens, splits and fingerprint against plain Python, and every way in which a file is wrong."""

import hashlib
import http.client
import io
import math
from pathlib import Path

import pytest

from dstbench.suite.task import DataError
from dstbench.tasks import data as data_index
from dstbench.tasks.data import text as data_text
from dstbench.tasks.data.text import Text, embedded, of_file, tinyshakespeare

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize("text", ["hello, wörld — ∑ 𝄞\n" * 7, "ab", "\ufeffmarked at its beginning"])
def test_tokens_spell_the_text(text):
    found = Text(text.encode(), "a test")
    plain = text.removeprefix("\ufeff")
    train, held = found.tokens("characters")
    assert "".join(found.characters[i] for i in [*train, *held]) == plain
    assert len(train) == math.floor(0.9 * len(plain)) and found.characters == tuple(sorted(set(plain)))
    train, held = found.tokens("bytes")
    assert bytes([*train.tolist(), *held.tolist()]) == text.encode() and found.vocabulary("bytes") == 256
    assert found.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_embedded_text_is_pythons_own():
    from pydoc_data.topics import topics

    text = embedded()
    assert len(text.content) > 300_000 and topics["assert"].encode() in text.content
    assert data_index.load("embedded_text").fingerprint == text.fingerprint


def test_another_encoding_is_one_clear_error(tmp_path):
    (tmp_path / "old.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"old\.txt: no UTF-8 \(byte 0xef at 2\); save it as UTF-8.*unit bytes"):
        of_file(tmp_path / "old.txt").vocabulary("characters")
    assert of_file(tmp_path / "old.txt").vocabulary("bytes") == 256


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-be"])
def test_zero_bytes_are_no_characters(tmp_path, encoding):
    (tmp_path / "wide.txt").write_bytes("hello".encode(encoding))
    with pytest.raises(DataError, match=r"wide\.txt: zero bytes, as UTF-16"):
        of_file(tmp_path / "wide.txt").vocabulary("characters")


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt: an empty file"):
        of_file(tmp_path / "empty.txt")
    with pytest.raises(DataError, match=r"missing\.txt: No such file.*--data-root"):
        of_file(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="Is a directory"):
        of_file(tmp_path)


def test_shakespeare_is_looked_for_and_verified(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt: No such file.*--data-root DIR --download"):
        tinyshakespeare(tmp_path)
    (tmp_path / "input.txt").write_text("To be")
    with pytest.raises(DataError, match=r"input\.txt: its sha256 is .* not 86c4e6aa"):
        tinyshakespeare(tmp_path)
    monkeypatch.setattr(data_text, "SHAKESPEARE", hashlib.sha256(b"To be").hexdigest())
    assert tinyshakespeare(tmp_path).content == b"To be"


def test_a_download_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(data_text.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"cannot be had into .*no route"):
        tinyshakespeare(tmp_path, download=True)


def test_a_download_takes_the_place_of_a_torn_file_when_it_is_whole(tmp_path, monkeypatch):
    answers = [http.client.IncompleteRead(b"To"), b"To be"]

    class Answer(io.BytesIO):
        def read(self, *_):
            if isinstance(found := answers.pop(0), Exception):
                raise found
            return found

    monkeypatch.setattr(data_text, "SHAKESPEARE", hashlib.sha256(b"To be").hexdigest())
    monkeypatch.setattr(data_text.urllib.request, "urlopen", lambda *a, **k: Answer())
    (tmp_path / "tinyshakespeare.txt").write_text("To")
    with pytest.raises(DataError, match=r"cannot be had into .*IncompleteRead"):
        tinyshakespeare(tmp_path, download=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["To"]
    assert tinyshakespeare(tmp_path, download=True).content == b"To be" and not answers
    assert tinyshakespeare(tmp_path, download=True).content == b"To be"  # whole: nothing is asked for


@pytest.mark.skipif(not (SHARED / "tinyshakespeare.txt").exists(), reason="needs ../shared/data/tinyshakespeare.txt")
def test_shakespeare_has_the_published_size():
    text = tinyshakespeare(SHARED)
    train, held = text.tokens("characters")
    assert len(text.characters) == 65 and (len(train), len(held)) == (1_003_854, 111_540)  # as nanoGPT prints


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="unknown data set 'tinyshakespear'; did you mean tinyshakespeare"):
        data_index.load("tinyshakespear")
