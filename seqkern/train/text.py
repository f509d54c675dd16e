# SPDX-License-Identifier: Apache-2.0
"""The training text: where it comes from, how it is split, and which bytes make a batch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqkern.train.errors import TextError

HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 256 * 1024
_MIN_HELD_OUT = 256


@dataclass(frozen=True)
class Corpus:
    """A text in two parts: the first bytes to train on, the last ones held out.

    Attributes:
        name: what the text is, for people.
        train: bytes to train on.
        held_out: the last 10 % of the text, at most 256 KiB.
        digest: SHA-256 of the whole text, in hex.
    """

    name: str
    train: bytes
    held_out: bytes
    digest: str


def load_corpus(path: Path | None, context: int) -> Corpus:
    """Read the text and split it.

    Args:
        path: any file, read as bytes; None for the language reference that CPython ships.
        context: tokens per training sequence; the text has to be long enough for a few of them.

    Raises:
        TextError: the file cannot be read, or is too short.
    """
    if path is None:
        name, data = "documentation topics of CPython (pydoc_data.topics)", _topics()
    else:
        name, data = str(path), _read(path)
    held_out = min(int(len(data) * HELD_OUT_SHARE), MAX_HELD_OUT)
    needed = max(int(_MIN_HELD_OUT / HELD_OUT_SHARE), int(4 * context / (1 - HELD_OUT_SHARE)) + 1)
    if len(data) < needed:
        raise TextError(
            f"text: {name} holds {len(data)} bytes; context={context} and a held-out tenth need at "
            f"least {needed}. Give a longer file or a smaller context."
        )
    split = len(data) - held_out
    return Corpus(name, data[:split], data[split:], hashlib.sha256(data).hexdigest())


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> bytes:
    try:
        if path.is_char_device() or path.is_block_device():  # may have no end
            raise TextError(f"text: {path} is a device. Give the path of a text file.")
        size = path.stat().st_size
        if 2 * size > memory():  # the parts of a text are copies
            raise MemoryError
        data = path.read_bytes()
    except MemoryError:
        raise TextError(
            f"text: {path} holds {size / 2**30:,.1f} GiB, more than this machine has memory for. "
            "Give a shorter file."
        ) from None
    except FileNotFoundError:
        raise TextError(f"text: {path} does not exist. Give the path of a text file.") from None
    except OSError as error:
        raise TextError(f"text: {path} cannot be read: {error.strerror}.") from error
    if not data:
        raise TextError(f"text: {path} is empty. Give a file with text in it.")
    return data


def _topics() -> bytes:
    """Join the topics; a paragraph that several of them repeat is kept once.

    Without that the held-out part would hold paragraphs that were trained on.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise TextError(
            "text: this Python has no pydoc_data.topics (some distributions remove it). "
            "Give a text with --text FILE."
        ) from None
    seen = set()
    kept = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph.strip("\n"))
    return "\n\n".join(kept).encode() + b"\n"


class Batches:
    """Training batches as a function of the step alone, so that a run can go on anywhere.

    Every epoch cuts the text into windows at an offset of its own and takes each window once, in
    random order.
    """

    def __init__(self, data: bytes, context: int, batch: int, seed: int):
        self._data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._context = context
        self._batch = batch
        self._seed = seed
        self._windows = (len(data) - 1) // context - 1  # room for an offset below one context
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step, both [batch, context] int64."""
        first = step * self._batch
        starts = torch.tensor([self._start(first + i) for i in range(self._batch)])
        index = starts[:, None] + torch.arange(self._context + 1)
        window = self._data[index].long()
        return window[:, :-1], window[:, 1:]

    def epochs(self, steps: int) -> float:
        """Say how often ``steps`` steps read the text."""
        return steps * self._batch / self._windows

    def _start(self, position: int) -> int:
        epoch, index = divmod(position, self._windows)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            offset = torch.randint(self._context, (), generator=generator)
            order = torch.randperm(self._windows, generator=generator)
            self._epoch, self._starts = epoch, offset + order * self._context
        return int(self._starts[index])
