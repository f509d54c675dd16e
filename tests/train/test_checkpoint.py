# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are whole or refused, by name."""

import fcntl
import hashlib
import os
import re
from pathlib import Path

import pytest
import torch

from seqkern.train import checkpoint
from seqkern.train.errors import CheckpointError


def _state(step):
    return {"step": step, "weight": torch.arange(100.0) + step, "names": ["a", "b"]}


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path / "new" / "folder", _state(7))
    loaded = checkpoint.load(path)
    assert loaded["step"] == 7
    assert torch.equal(loaded["weight"], _state(7)["weight"])


def test_the_one_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, _state(step))
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["step"] == 3
    assert checkpoint.load(tmp_path / checkpoint.PREVIOUS)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.LATEST, checkpoint.PREVIOUS]


def _flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is damaged: it is empty"),
        (lambda data: data[:-1], r"is damaged: it holds \d+ of \d+ bytes"),
        (lambda data: data[:50], "is damaged: its header is cut off"),
        (lambda data: re.sub(rb"\n\d+\n", b"\nlong\n", data), "is damaged: its header is cut off"),
        (lambda data: data + b"x", r"is damaged: it holds \d+ of \d+ bytes"),
        (_flip, "is damaged: its checksum does not match its content"),
        (lambda data: b"PK" + data, "does not start like a seqkern checkpoint"),
    ],
    ids=["empty", "truncated", "header only", "no length", "longer", "one bit", "another format"],
)
def test_damage_is_named(tmp_path, damage, message):
    path = checkpoint.save(tmp_path, _state(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load(path)
    assert str(path) in str(raised.value)
    assert "It was not loaded. Start again without --resume." in str(raised.value)


def _sealed(path):
    """Give a file that anybody wrote the header of a checkpoint."""
    payload = path.read_bytes()
    digest, length = hashlib.sha256(payload).hexdigest(), len(payload)
    path.write_bytes(f"seqkern checkpoint 1\n{digest}\n{length}\n".encode() + payload)


def test_what_is_no_plain_data_is_not_decoded(tmp_path):
    """Neither what is no pickle, nor objects, whose decoding runs code."""
    path = tmp_path / checkpoint.LATEST
    for write in (lambda: path.write_bytes(b"text"), lambda: torch.save({"x": Path("a")}, path)):
        write()
        _sealed(path)
        with pytest.raises(CheckpointError, match="its content cannot be decoded"):
            checkpoint.load(path)
    torch.save({"x": 1}, path)
    _sealed(path)
    assert checkpoint.load(path) == {"x": 1}


def test_a_file_larger_than_the_memory_is_one_sentence(tmp_path, monkeypatch):
    def full(*arguments):
        raise MemoryError

    path = checkpoint.save(tmp_path, _state(1))
    monkeypatch.setattr(checkpoint, "_payload", full)
    with pytest.raises(CheckpointError, match="is larger than the memory that is free"):
        checkpoint.load(path)


def test_no_more_of_another_file_is_read_than_a_header(tmp_path):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(CheckpointError, match="does not start like a seqkern checkpoint"):
        checkpoint.load(huge)


def test_damage_points_at_the_one_before(tmp_path):
    checkpoint.save(tmp_path, _state(1))
    path = checkpoint.save(tmp_path, _state(2))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="Resume from the one before with --resume"):
        checkpoint.load(path)
    previous = tmp_path / checkpoint.PREVIOUS
    assert checkpoint.load(previous)["step"] == 1
    previous.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"one before with --resume {path}, or start again"):
        checkpoint.load(previous)


def test_a_file_system_without_links_or_locks(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with checkpoint.prepare(tmp_path):
        for step in (1, 2):
            checkpoint.save(tmp_path, _state(step))
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.LATEST]


def test_what_a_crash_left_is_no_obstacle(tmp_path):
    checkpoint.save(tmp_path, _state(1))
    for name in ("previous.tmp", "latest.ckpt.tmp"):
        (tmp_path / name).write_text("half")
    checkpoint.save(tmp_path, _state(2))
    assert checkpoint.load(tmp_path / checkpoint.PREVIOUS)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.LATEST, checkpoint.PREVIOUS]


def test_missing_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist, so there is nothing to resume"):
        checkpoint.load(tmp_path / checkpoint.LATEST)


def test_a_crash_while_writing_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, _state(1))

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    message = r"written: No space left on device.* --out; the last checkpoint is untouched"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(tmp_path, _state(2))
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.LATEST]
    with pytest.raises(CheckpointError, match=r"another folder with --out\.$"):
        checkpoint.save(tmp_path / "new", _state(1))


def test_room_is_made_only_for_a_file_that_is_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, _state(1))
    made = []
    checkpoint.save(
        tmp_path, _state(2), lambda: made.append((tmp_path / "latest.ckpt.tmp").exists())
    )
    assert made == [True]
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(-1))
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.save(tmp_path, _state(3), lambda: made.append(False))
    assert made == [True]


def test_an_earlier_run_is_set_aside(tmp_path):
    assert checkpoint.set_aside(tmp_path) is None
    checkpoint.save(tmp_path, _state(4))
    assert checkpoint.load(checkpoint.set_aside(tmp_path))["step"] == 4
    assert not (tmp_path / checkpoint.LATEST).exists()


def test_nothing_that_was_set_aside_is_overwritten(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, _state(10 * step))
        checkpoint.save(tmp_path, _state(step))
        for name in (checkpoint.RESULT, checkpoint.PLOT):
            (tmp_path / name).write_text(str(step))
        aside = checkpoint.set_aside(tmp_path)
        assert checkpoint.load(aside)["step"] == step
    for step, stem in enumerate(("earlier", "earlier-2", "earlier-3"), 1):
        assert checkpoint.load(tmp_path / f"{stem}.ckpt")["step"] == step
        assert checkpoint.load(tmp_path / f"{stem}-previous.ckpt")["step"] == 10 * step
        assert (tmp_path / f"{stem}.json").read_text() == str(step)
        assert (tmp_path / f"{stem}.png").read_text() == str(step)
    assert len(list(tmp_path.iterdir())) == 12
    (tmp_path / "earlier-2.ckpt").unlink()
    checkpoint.save(tmp_path, _state(4))
    assert checkpoint.set_aside(tmp_path) == tmp_path / "earlier-4.ckpt"
    assert (tmp_path / "earlier-2.json").read_text() == "2"


def test_a_checkpoint_in_use_is_not_set_aside(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, _state(step))
    assert checkpoint.set_aside(tmp_path, keep=tmp_path / checkpoint.PREVIOUS) is not None
    assert checkpoint.load(tmp_path / checkpoint.PREVIOUS)["step"] == 1
    assert checkpoint.load(tmp_path / checkpoint.EARLIER)["step"] == 2


def test_missing_names_what_was_set_aside(tmp_path):
    folder = tmp_path / "my run"
    for step in (1, 2):
        checkpoint.save(folder, _state(step))
        os.utime(checkpoint.set_aside(folder), (step, step))
    message = f"Resume earlier-2.ckpt with --resume '{folder}/earlier-2.ckpt', start"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder / checkpoint.LATEST)


def test_a_folder_is_not_a_checkpoint(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=f"is a folder.* --resume --out '{folder}'"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", [checkpoint.RESULT, checkpoint.PLOT])
def test_results_that_cannot_be_written_are_found_before(tmp_path, name):
    with checkpoint.prepare(tmp_path):
        (tmp_path / name).mkdir()
    with (
        pytest.raises(CheckpointError, match=f"{name}, where results go, cannot be written: Is a"),
        checkpoint.prepare(tmp_path),
    ):
        pass


def test_preparing_leaves_results_as_they_are(tmp_path):
    (tmp_path / checkpoint.RESULT).write_text("{}")
    with checkpoint.prepare(tmp_path):
        assert [p.read_text() for p in tmp_path.iterdir()] == ["{}"]


def test_a_folder_is_prepared_for_one_run_at_a_time(tmp_path):
    busy = pytest.raises(CheckpointError, match=f"another run is writing to {tmp_path}. Wait")
    with checkpoint.prepare(tmp_path):
        half = tmp_path / f"{checkpoint.LATEST}.tmp"
        half.write_text("what the first run is writing")
        with busy, checkpoint.prepare(tmp_path):
            pass
        assert half.exists()
    with checkpoint.prepare(tmp_path):
        assert not half.exists()
