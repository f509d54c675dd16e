# SPDX-License-Identifier: Apache-2.0
"""Where the text comes from, and which bytes become a batch."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from seqkern.train.errors import TextError
from seqkern.train.text import MAX_HELD_OUT, Batches, load_corpus, memory


def test_default_text_is_english_and_split_without_repeated_paragraphs():
    corpus = load_corpus(None, context=256)
    paragraphs = [p.split() for p in (corpus.train + corpus.held_out).split(b"\n\n")]
    distinct = {tuple(words) for words in paragraphs if words}
    assert len(corpus.train) > 100_000
    assert len(distinct) == sum(1 for words in paragraphs if words)
    assert b"statement" in corpus.held_out


def test_split_keeps_every_byte_and_holds_out_the_last_tenth(tmp_path):
    data = os.urandom(10_000)
    (tmp_path / "text").write_bytes(data)
    corpus = load_corpus(tmp_path / "text", context=32)
    assert corpus.train + corpus.held_out == data
    assert len(corpus.held_out) == 1000


def test_held_out_part_is_bounded(tmp_path):
    (tmp_path / "text").write_bytes(bytes(4 * 1024 * 1024))
    assert len(load_corpus(tmp_path / "text", context=32).held_out) == MAX_HELD_OUT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Give the path of a text file"),
        (b"", "is empty. Give a file with text in it"),
        (b"short", "holds 5 bytes; context=64 and a held-out tenth need at least 2560"),
    ],
    ids=["missing", "empty", "too short"],
)
def test_rejects(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        load_corpus(path, context=64)


def test_rejects_a_context_that_the_text_does_not_fill(tmp_path):
    (tmp_path / "text").write_bytes(bytes(3000))
    with pytest.raises(TextError, match=r"3000 bytes; context=1000 and .* need at least 4445"):
        load_corpus(tmp_path / "text", context=1000)


def test_rejects_more_than_the_memory_holds(tmp_path):
    path = tmp_path / "text"
    with path.open("wb") as file:
        file.truncate(memory())  # sparse
    with pytest.raises(TextError, match=r"GiB, more than this machine has memory for. Give a"):
        load_corpus(path, context=64)


def test_rejects_a_folder(tmp_path):
    with pytest.raises(TextError, match="cannot be read"):
        load_corpus(tmp_path, context=64)


def test_rejects_a_device():
    with pytest.raises(TextError, match="/dev/null is a device"):
        load_corpus(Path("/dev/null"), context=64)


def test_batches_depend_on_the_step_alone():
    data = os.urandom(5000)
    forward, again = Batches(data, 32, 3, seed=1), Batches(data, 32, 3, seed=1)
    steps = [forward[i] for i in range(120)]
    for i in (119, 0, 60, 59):
        assert torch.equal(again[i][0], steps[i][0])
    assert not torch.equal(Batches(data, 32, 3, seed=2)[0][0], steps[0][0])


def test_targets_are_the_next_bytes():
    data = bytes(range(256)) * 8
    inputs, targets = Batches(data, 16, 2, seed=0)[0]
    assert torch.equal((inputs + 1) % 256, targets)


def test_an_epoch_takes_every_window_once():
    batches = Batches(bytes(range(200)), 8, 1, seed=3)
    windows = round(1 / batches.epochs(1))
    firsts = sorted(int(batches[i][0][0, 0]) for i in range(windows))
    assert windows == 199 // 8 - 1
    assert [b - a for a, b in itertools.pairwise(firsts)] == [8] * (windows - 1)
    # Every epoch has an order and an offset of its own.
    epochs = [[batches._start(windows * e + i) for i in range(windows)] for e in range(6)]
    assert len({tuple(starts) for starts in epochs}) == 6
    assert len({starts[0] % 8 for starts in epochs}) > 1
    assert Batches(bytes(200), 8, 2, seed=3).epochs(windows) == 2
