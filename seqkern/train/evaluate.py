# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of a model and of the compressors it is measured against."""

from __future__ import annotations

import gzip
import lzma
import math

import torch
from torch.nn import functional as F

from seqkern.models import ByteLM
from seqkern.train.text import Corpus

_STREAMS = 8
# How far xz looks back at its strongest setting, and how much it reads between looks at Ctrl-C.
_WINDOW = 64 << 20
_PIECE = 1 << 20


def bits_per_byte(model: ByteLM, data: bytes, before: int, context: int, precision: str) -> float:
    """Measure a model on every byte of ``data``.

    The text is cut into 8 streams, read side by side in segments of ``context`` bytes; the
    recurrent state is carried from segment to segment, so a byte is predicted from all the bytes of
    its stream before it.

    Args:
        model: the model; its mode is left as it was.
        data: the text to score.
        before: the byte in front of ``data``.
        context: bytes per segment.
        precision: "float32" or "bfloat16".
    """
    ids = torch.frombuffer(bytearray([before]) + bytearray(data), dtype=torch.uint8).long()
    streams = min(_STREAMS, len(data))
    length = -(-len(data) // streams)
    missing = streams * length - len(data)
    inputs = F.pad(ids[:-1], (0, missing)).view(streams, length)
    targets = F.pad(ids[1:], (0, missing), value=-100).view(streams, length)
    was_training = model.training
    model.eval()
    total, cache = 0.0, None
    with torch.no_grad():
        for start in range(0, length, context):
            part = slice(start, start + context)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                logits, cache = model(inputs[:, part], past_key_values=cache, use_cache=True)
            total += F.cross_entropy(
                logits.float().flatten(0, 1), targets[:, part].flatten(), reduction="sum"
            ).item()
    model.train(was_training)
    return total / len(data) / math.log(2)


def baselines(corpus: Corpus) -> dict[str, float]:
    """Return bits per byte of the held-out text under models that need no training.

    "gzip" and "xz" compress the held-out text alone, at their strongest setting. "xz after the
    training text" is what the held-out text adds to the compressed training text, so this one has
    seen as much as the trained model, or the last 64 MiB, which is what it remembers.
    """
    size = len(corpus.held_out) / 8
    seen = corpus.train[-_WINDOW:]
    primed = _xz(seen + corpus.held_out) - _xz(seen)
    return {
        "uniform": 8.0,
        "gzip": len(gzip.compress(corpus.held_out, 9)) / size,
        "xz": _xz(corpus.held_out) / size,
        "xz after the training text": primed / size,
    }


def _xz(data: bytes) -> int:
    xz = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    pieces = (data[i : i + _PIECE] for i in range(0, len(data), _PIECE))
    return sum(len(xz.compress(piece)) for piece in pieces) + len(xz.flush())
