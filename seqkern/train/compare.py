# SPDX-License-Identifier: Apache-2.0
"""The same training step and the same decoding, timed on every way this machine can run them."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern.errors import OptionError
from seqkern.models import ByteLM
from seqkern.models.recurrent_mixer import RECURRENT
from seqkern.ops import _linear_attention
from seqkern.reference.chunked import chunked_linear_attention
from seqkern.train.settings import TrainSettings
from seqkern.train.trainer import make_optimizer, train_step

COMPILED = "compiled kernels"
CHUNKED = "torch, chunked"
REFERENCE = 'backend="reference"'
MAX_SEQUENCES = 2  # the reference keeps every state of every token for its backward
_MAX_REPEATS = 5
_SECONDS = 30.0


def _chunked_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor] = (),
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    num_householder: int = 1,
    l2norm: bool = False,
    reverse: bool = False,
    signed_gates: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stand in for the sequential recurrence; gates come as [B, T, HV, 1 or K, 1]."""
    if reverse or signed_gates or len(gates) > 1:
        raise OptionError("The chunked forms run forwards and take the logarithm of one gate.")
    g = gates[0].squeeze(-1) if gates else None
    if g is not None and g.shape[-1] == 1:
        g = g.squeeze(-1)
    return chunked_linear_attention(
        q, k, v, g, beta, scale, initial_state, cu_seqlens, num_householder, l2norm
    )


@contextlib.contextmanager
def chunked_torch() -> Iterator[None]:
    """Let every op of the family run its chunked form in plain torch inside the block."""
    patch = mock.patch.object(_linear_attention, "recurrence", _chunked_recurrence)
    with backends.override("reference"), patch:
        yield


def ways(layer: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Return the ways to run a model here: compiled if the library loads, chunked if it can be."""
    found: dict[str, Callable[[], AbstractContextManager[None]]] = {}
    if library.load_error() is None:
        found[COMPILED] = lambda: backends.override("auto")
    if layer not in RECURRENT:
        found[CHUNKED] = chunked_torch
    found[REFERENCE] = lambda: backends.override("reference")
    return found


def time_steps(
    model: ByteLM,
    settings: TrainSettings,
    batch: tuple[Tensor, Tensor],
    precision: str,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Time whole optimizer steps on one batch, interleaved, each way on a copy of the model.

    Returns:
        Seconds per step (median of up to five after one that is not counted), by way.
    """
    runners = {}
    for name, way in ways(settings.layer).items():
        twin = copy.deepcopy(model)
        runners[name] = (twin, make_optimizer(twin, settings), way)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    started = time.perf_counter()
    for repeat in range(_MAX_REPEATS + 1):
        for name, (twin, optimizer, way) in runners.items():
            before = time.perf_counter()
            with way():
                train_step(twin, optimizer, batch, precision, settings.learning_rate)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - before)
        if repeat == 0:
            note(f"timing the same step {len(runners)} ways")
        elif time.perf_counter() - started > _SECONDS:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_decoding(model: ByteLM, prompt: bytes, count: int, seed: int) -> tuple[bytes, float]:
    """Generate ``count`` bytes with the recurrent cache.

    Returns:
        The bytes, and bytes per second after the first one (which reads the prompt).
    """
    stream = model.stream(prompt, top_k=40, generator=torch.Generator().manual_seed(seed))
    sample = bytearray([next(stream)])
    before = time.perf_counter()
    sample.extend(next(stream) for _ in range(count - 1))
    return bytes(sample), (count - 1) / (time.perf_counter() - before)
