# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or refused.

A file is three header lines (format, SHA-256 of the payload, length of the payload) and the
payload, which `torch.save` wrote. It is written beside its final name, flushed to the disk and
renamed, so a crash leaves the older file; that one stays as ``previous.ckpt``.

What another run left in the folder is set aside as ``earlier.ckpt``, ``earlier.json`` and so on, or
as ``earlier-2.ckpt`` and so on where one of those names is taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import itertools
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from seqkern.train.errors import CheckpointError

LATEST = "latest.ckpt"
PREVIOUS = "previous.ckpt"
EARLIER = "earlier.ckpt"
RESULT = "result.json"
PLOT = "loss.png"
# What a run leaves in its folder, and how each of it ends once it is set aside.
_LEFT = {LATEST: ".ckpt", PREVIOUS: "-previous.ckpt", RESULT: ".json", PLOT: ".png"}
_FORMAT = b"seqkern checkpoint 1"
_MAX_HEADER = 256


def save(
    directory: Path, state: dict[str, Any], make_room: Callable[[], None] | None = None
) -> Path:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) as the latest checkpoint.

    Args:
        directory: where the checkpoint goes; made if it is not there.
        state: what the checkpoint holds.
        make_room: called once the new file is whole on the disk and about to get its name.

    Raises:
        CheckpointError: the disk refuses; the older checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    path = directory / LATEST
    temporary = directory / f"{LATEST}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(b"\n".join([_FORMAT, digest, str(len(payload)).encode(), payload]))
            file.flush()
            os.fsync(file.fileno())
        if make_room is not None:
            make_room()
        if path.exists():
            _keep_as(path, directory / PREVIOUS)
        temporary.replace(path)
        _sync_directory(directory)
    except OSError as error:
        kept = "; the last checkpoint is untouched" if path.exists() else ""
        raise CheckpointError(
            f"checkpoint: {path} cannot be written: {error.strerror}. Make room there or choose "
            f"another folder with --out{kept}."
        ) from error
    finally:  # there is none after the renaming, only after a failure or an interruption
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def prepare(directory: Path) -> Iterator[None]:
    """Make sure that checkpoints and results can be written, before there is something to lose.

    Inside the block no other run can prepare the folder: two would overwrite each other's files.

    Raises:
        CheckpointError: the folder cannot be made, nothing can be written there, or another run is
            writing there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A lock on the folder leaves no file behind, and ends with the process however that ends.
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        _lock(directory, descriptor)
        _probe(directory)
        yield
    finally:
        os.close(descriptor)


def _lock(directory: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"checkpoint: another run is writing to {directory}. Wait until it ends, or choose "
            "another folder with --out."
        ) from None
    except OSError:  # a file system without locks
        return


def _probe(directory: Path) -> None:
    probe = directory / f"{LATEST}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(directory, error) from error
    for path in (directory / RESULT, directory / PLOT):
        try:
            if path.exists():
                path.open("ab").close()
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: {path}, where results go, cannot be written: {error.strerror}. Move "
                "it away, or choose another folder with --out."
            ) from error


def _unwritable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: nothing can be written to {directory}: {error.strerror}. Choose another "
        "folder with --out."
    )


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: the message says what is wrong with the file and what to do.
    """
    try:
        with path.open("rb") as file:
            payload = _payload(path, file)
    except FileNotFoundError:
        other = newest(path.parent)
        start = "Start" if other is None else f"Resume {other.name} with {_resuming(other)}, start"
        raise CheckpointError(
            f"checkpoint: {path} does not exist, so there is nothing to resume. {start} without "
            "--resume, or name the folder of the run with --out."
        ) from None
    except IsADirectoryError:
        raise CheckpointError(
            f"checkpoint: {path} is a folder. Resume the run in it with --resume --out "
            f"{shlex.quote(str(path))}, or name a checkpoint."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} cannot be read: {error.strerror or error}."
        ) from error
    except MemoryError:
        raise CheckpointError(
            f"checkpoint: {path} is larger than the memory that is free. Make some free, or start "
            "again without --resume."
        ) from None
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, f"its content cannot be decoded ({type(error).__name__})") from error


def set_aside(directory: Path, keep: Path | None = None) -> Path | None:
    """Move what an earlier run left out of the way of another one; nothing is overwritten.

    Args:
        directory: the folder of both runs.
        keep: a checkpoint that stays where it is.

    Returns:
        The checkpoint's new path, or that of another file if there was no checkpoint; None if
        nothing was there.
    """
    left = [name for name in _LEFT if (directory / name).exists()]
    left = [name for name in left if keep is None or not _same(directory / name, keep)]
    stem = _free_stem(directory)
    moved = [(directory / name).replace(directory / f"{stem}{_LEFT[name]}") for name in left]
    return moved[0] if moved else None


def size_aside(directory: Path) -> int:
    """Return the bytes of everything that was set aside in a folder."""
    suffixes = {Path(name).suffix for name in _LEFT}
    found = directory.glob(f"{EARLIER.removesuffix('.ckpt')}*")
    return sum(path.stat().st_size for path in found if path.suffix in suffixes)


def newest(directory: Path) -> Path | None:
    """Return the checkpoint in a folder that was written last, whatever its name."""
    found = list(directory.glob("*.ckpt"))
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def is_latest(path: Path, directory: Path) -> bool:
    """Whether ``path`` is the latest checkpoint of the run in ``directory``."""
    return _same(directory / LATEST, path)


def _free_stem(directory: Path) -> str:
    """Return the first of earlier, earlier-2, ... under which nothing lies yet."""
    stem = EARLIER.removesuffix(".ckpt")
    stems = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    ends = _LEFT.values()
    return next(s for s in stems if not any((directory / f"{s}{end}").exists() for end in ends))


def _resuming(path: Path) -> str:
    return f"--resume {shlex.quote(str(path))}"


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _payload(path: Path, file: BinaryIO) -> bytes:
    """Read what follows the header, once that and the length of the file agree."""
    start = file.read(_MAX_HEADER)
    header = start.split(b"\n", 3)
    if len(start) == 0:
        raise _damaged(path, "it is empty")
    if header[0] != _FORMAT:
        raise _damaged(path, "it does not start like a seqkern checkpoint")
    if len(header) < 4 or not header[2].isdigit():
        raise _damaged(path, "its header is cut off")
    begin = sum(len(line) + 1 for line in header[:3])
    there, expected = file.seek(0, os.SEEK_END) - begin, int(header[2])
    if there != expected:
        raise _damaged(path, f"it holds {there} of {expected} bytes")
    file.seek(begin)
    payload = file.read()
    if hashlib.sha256(payload).hexdigest().encode() != header[1]:
        raise _damaged(path, "its checksum does not match its content")
    return payload


def _damaged(path: Path, why: str) -> CheckpointError:
    other = path.parent / (PREVIOUS if path.name == LATEST else LATEST)
    way_out = f"Resume from the one before with {_resuming(other)}" if other.exists() else ""
    fresh = "start again without --resume"
    return CheckpointError(
        f"checkpoint: {path} is damaged: {why}. It was not loaded. "
        + (f"{way_out}, or {fresh}." if way_out else f"{fresh.capitalize()}.")
    )


def _keep_as(path: Path, kept: Path) -> None:
    """Give ``path`` a second name without a moment in which the first one is missing."""
    link = kept.with_suffix(".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: keep no second copy
        return
    link.replace(kept)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
