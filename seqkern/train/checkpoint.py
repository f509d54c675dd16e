# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or refused.

A file is three header lines (format, SHA-256 of the payload, length of the payload) and the
payload, which `torch.save` wrote. It is written beside its final name, flushed to the disk and
renamed, so a crash leaves the older file; that one stays as ``previous.ckpt``.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from seqkern.train.errors import CheckpointError

LATEST = "latest.ckpt"
PREVIOUS = "previous.ckpt"
EARLIER = "earlier.ckpt"
_FORMAT = b"seqkern checkpoint 1"
_MAX_HEADER = 256


def save(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) as the latest checkpoint.

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
        if path.exists():
            _keep_as(path, directory / PREVIOUS)
        temporary.replace(path)
        _sync_directory(directory)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} cannot be written: {error.strerror}. Make room there or choose "
            "another folder with --out; the last checkpoint is untouched."
        ) from error
    return path


def prepare(directory: Path) -> None:
    """Make sure that a checkpoint can be written, before there is something to lose.

    Raises:
        CheckpointError: the folder cannot be made, or nothing can be written there.
    """
    probe = directory / f"{LATEST}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: nothing can be written to {directory}: {error.strerror}. Choose another "
            "folder with --out."
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: the message says what is wrong with the file and what to do.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint: {path} does not exist, so there is nothing to resume. Start without "
            "--resume, or name the folder of the run with --out."
        ) from None
    except OSError as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {error.strerror}.") from error
    payload = _payload(path, data)
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, f"its content cannot be decoded ({type(error).__name__})") from error


def set_aside(directory: Path) -> Path | None:
    """Move the checkpoint of an earlier run out of the way of a new one; say where it lies."""
    path = directory / LATEST
    if not path.exists():
        return None
    return path.replace(directory / EARLIER)


def _payload(path: Path, data: bytes) -> bytes:
    header = data[:_MAX_HEADER].split(b"\n", 3)
    if len(data) == 0:
        raise _damaged(path, "it is empty")
    if header[0] != _FORMAT:
        raise _damaged(path, "it does not start like a seqkern checkpoint")
    if len(header) < 4 or not header[2].isdigit():
        raise _damaged(path, "its header is cut off")
    payload = data[sum(len(line) + 1 for line in header[:3]) :]
    expected = int(header[2])
    if len(payload) != expected:
        raise _damaged(path, f"it holds {len(payload)} of {expected} bytes")
    if hashlib.sha256(payload).hexdigest().encode() != header[1]:
        raise _damaged(path, "its checksum does not match its content")
    return payload


def _damaged(path: Path, why: str) -> CheckpointError:
    other = path.parent / (PREVIOUS if path.name == LATEST else LATEST)
    way_out = f"Resume from the one before with --resume {other}" if other.exists() else ""
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
