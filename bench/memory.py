# SPDX-License-Identifier: Apache-2.0
"""Extra memory of forward + backward, beyond inputs, outputs and gradients, at peak.

Two fresh processes run the same steps but one: ``base`` allocates and touches inputs, cotangent,
output and gradients; ``full`` allocates inputs and cotangent and lets the op make the rest. The
difference of their peak resident sizes (VmHWM) is what the op used on top. Both warm up on a short
input first, so that code and thread pools count in both; malloc is kept from holding on to memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import inputs, peers
from bench.registry import Entry, Size
from bench.timing import cotangent_like, leaves, output_and_grads

ROOT = Path(__file__).resolve().parent.parent
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_MMAP_MAX_": "65536",
}


class MemoryUnavailableError(RuntimeError):
    """This system does not say how much memory a process used at most."""


def entry(name: str, size: Size) -> Entry:
    """Return what the name stands for: one of ours, or ``transformers_chunk``."""
    from seqkern import ops

    if name == "flashrnn_lstm":
        from bench.cases import _rnn

        return _rnn.our_heads(size, "fwd+bwd")
    if name == "transformers_chunk":
        return Entry(name, peers.transformers_chunk(), inputs.gated_delta_rule(size))
    makers = {
        "chunk_gla": inputs.gla,
        "chunk_simple_gla": inputs.simple_gla,
        "chunk_delta_rule": inputs.delta_rule,
        "chunk_gated_delta_rule": inputs.gated_delta_rule,
    }
    return Entry(name, getattr(ops, name), makers[name](size))


def _like_output(one: Entry) -> torch.Tensor:
    """A tensor of the shape and dtype that the entry returns."""
    return one.inputs["v"] if "v" in one.inputs else one.inputs["Wx"][:, :, 0]


def _yardstick(one: Entry) -> int:
    """The bytes that the bar is told in: of q, k, v and g, or of one gate tensor and the states."""
    if "Wx" in one.inputs:  # an LSTM: four gates and two states
        return one.inputs["Wx"].nbytes * 6 // 4
    return sum(x.nbytes for key, x in one.inputs.items() if key in ("q", "k", "v", "g"))


def peak_bytes() -> int:
    """Return the most bytes this process ever had resident."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError as e:
        raise MemoryUnavailableError("the memory rows need Linux (/proc/self/status)") from e
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MemoryUnavailableError("/proc/self/status has no VmHWM here")


def _forget_peak() -> None:
    """Let the peak start again from the present size, so that making the inputs does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _child(name: str, size: Size, phase: str, threads: int, isa: str) -> None:
    torch.set_num_threads(threads)
    if isa:
        from bench.machine import set_isa

        set_isa(isa)
    output_and_grads(entry(name, Size(**{**asdict(size), "T": 128})))
    one = entry(name, size)
    kept: list[Any] = [one]
    do = cotangent_like(torch.empty_like(_like_output(one)[:, : size.T]))
    _forget_peak()
    if phase == "full":
        kept.append(output_and_grads(one, do))
    else:
        kept.append([x.detach().clone() for x in [do, *leaves(one)]])
    print(peak_bytes())


def _measure(name: str, size: Size, phase: str, threads: int, isa: str) -> int:
    argument = json.dumps([name, asdict(size), phase, threads, isa])
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", argument],
        cwd=ROOT,
        env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MemoryUnavailableError(f"{name} ({phase}): {last}")
    return int(done.stdout.split()[-1])


def extra_bytes(name: str, size: Size, threads: int = 1, isa: str = "") -> tuple[int, int]:
    """Return (extra bytes at peak, bytes that the bar is told in) of one forward + backward."""
    extra = _measure(name, size, "full", threads, isa) - _measure(name, size, "base", threads, isa)
    one = entry(name, Size(**{**asdict(size), "T": 1}))
    return extra, _yardstick(one) * size.T


if __name__ == "__main__":
    _name, _size, _phase, _threads, _isa = json.loads(sys.argv[1])
    _child(_name, Size(**_size), _phase, _threads, _isa)
