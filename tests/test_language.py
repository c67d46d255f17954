"""LanguageTask: windows, splits and loss against plain loops over the text, and a GPT that trains."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import DataError
from dstbench.suite.train import Training
from dstbench.tasks.language import LanguageTask
from dstbench.tasks.models import gpt

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "


@pytest.fixture
def task(tmp_path):
    """A small GPT on a text of 1,580 characters under a data root."""
    (tmp_path / "words.txt").write_text(WORDS * 20)
    return LanguageTask(
        name="test/words",
        model=gpt,
        arguments={"depth": 1, "heads": 2, "width": 16},
        widths={"width": 2},
        data="file:words.txt",
        block=8,
        recipe=Recipe(steps=3, batch=4, lr={"sgd": 0.1, "adam": 1e-2}, optimizer="adam"),
        root=tmp_path,
    )


def spelt(task, tokens):
    return "".join(task._text().characters[i] for i in tokens)


def test_targets_are_the_next_tokens_of_the_text(task):
    whole = WORDS * 20
    for split in ("train", "calibration", "valid", "test"):
        for inputs, targets in islice(task.batches(split, 5), 4):
            assert inputs.shape == targets.shape and inputs.shape[1] == 8
            for x, y in zip(inputs, targets, strict=True):
                assert torch.equal(x[1:], y[:-1]) and spelt(task, [*x, y[-1]]) in whole


def test_held_out_windows_cover_the_last_tenth_once(task):
    text, held = task._text().tokens("characters")
    assert len(text) == math.floor(0.9 * 1580)
    found = {split: torch.cat([x for x, _ in task.batches(split, 0)]) for split in ("valid", "test")}
    count = (len(held) - 1) // 8
    windows = held[: 8 * count].view(count, 8)
    assert torch.equal(found["valid"], windows[::2]) and torch.equal(found["test"], windows[1::2])


def test_training_never_reads_what_is_held_out(task):
    """Of a text whose last tenth has a letter of its own."""
    (task.root / "words.txt").write_text("ab" * 450 + "c" * 100)
    for inputs, targets in islice(task.batches("train", 0), 200):
        assert inputs.max() < 2 and targets.max() < 2


def test_batches_are_of_seed_and_step(task):
    found = list(islice(task.batches("train", 0), 6))
    assert torch.equal(next(task.batches("train", 0, start=5))[0], found[5][0])
    assert not torch.equal(next(task.batches("train", 1))[0], found[0][0])
    parts = list(replace(task, evaluation_batch=2).batches("valid", 0))
    assert torch.equal(next(replace(task, evaluation_batch=2).batches("valid", 3, start=1))[0], parts[1][0])


class Bigram(nn.Module):
    """Logits that are a function of the last token."""

    def __init__(self, vocab):
        super().__init__()
        self.table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens):
        return self.table[tokens]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_loss_is_numpys_at_any_batch(task, batch):
    vocab = task._text().vocabulary("characters")
    net, held = Bigram(vocab), task._text().tokens("characters")[1].numpy()
    logs = net.table.double().numpy()
    logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    places = [p for w in range(0, (len(held) - 1) // 8, 2) for p in range(8 * w, 8 * w + 8)]
    expected = -np.mean([logs[held[p], held[p + 1]] for p in places])
    task = replace(task, evaluation_batch=batch)
    assert task.evaluate(net, "valid", CPU) == pytest.approx(expected, rel=1e-6)
    assert replace(task, metric="perplexity").evaluate(net, "valid", CPU) == pytest.approx(math.exp(expected), rel=1e-6)
    batch = next(task.batches("valid", 0))
    assert task.loss(net, batch).item() == pytest.approx(
        -np.mean([logs[a, b] for a, b in zip(*(t.flatten().numpy() for t in batch), strict=True)]), rel=1e-6
    )


def test_a_gpt_trains_and_starts_near_uniform(task):
    training = Training(task, Method(sparsity=0.0))
    before = training.evaluate("valid")
    training.run()
    assert before == pytest.approx(math.log(task._text().vocabulary("characters")), abs=0.1)
    assert training.evaluate("valid") < before and not task.higher_is_better


def test_a_gpt_is_causal_and_its_matrices_are_layers():
    net = gpt(vocab=11, block=6, depth=2, heads=2, width=8).eval()
    tokens = torch.randint(11, (1, 6))
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 1) % 11
    with torch.no_grad():
        assert torch.allclose(net(tokens)[0, :4], net(other)[0, :4], atol=1e-6)
        assert not torch.allclose(net(tokens)[0, 4], net(other)[0, 4], atol=1e-6)
    model = SparseModel(net, tokens)
    assert model.maskable == 2 * 12 * 8**2 and "tokens.weight" in model.left_dense  # tied to the head


def test_nanogpts_cpu_network_has_its_published_size():
    """nanoGPT prints 0.80M: without the places' embedding."""
    net = gpt(vocab=65, block=64, depth=4, heads=4, width=128)
    assert round((sum(p.numel() for p in net.parameters()) - 64 * 128) / 1e6, 2) == 0.80


def test_bad_texts_and_values_are_clear_errors(task):
    with pytest.raises(DataError, match=r"has 29 different characters, vocab is 65"):
        replace(task, vocab=65).prepare()
    with pytest.raises(DataError, match=r"the last tenth has 158 characters, and 201 are needed"):
        replace(task, block=100).prepare()
    with pytest.raises(DataError, match=r"gone\.txt: No such file"):
        replace(task, data="file:gone.txt").prepare()
    with pytest.raises(ValueError, match="unit is 'words'; choose one of characters, bytes"):
        replace(task, unit="words")
    with pytest.raises(ValueError, match="metric is 'bleu'; choose one of loss, perplexity"):
        replace(task, metric="bleu")
    with pytest.raises(ValueError, match="block is 0"):
        replace(task, block=0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        task.batches("dev", 0)


def test_the_fingerprint_is_the_files(task):
    before = task.fingerprint()
    (task.root / "words.txt").write_text(WORDS * 20 + "!")
    assert task.fingerprint() != before


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "tinyshakespeare.txt").exists(), reason="needs ../shared/data/tinyshakespeare.txt")
def test_gpt_tiny_reaches_the_published_loss():
    from dstbench.tasks.text import GPT_TINY

    training = Training(replace(GPT_TINY, root=SHARED), Method(sparsity=0.0))
    training.run()
    assert (training.evaluate("valid") + training.evaluate("test")) / 2 < 1.95  # 1.88
