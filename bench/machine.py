# SPDX-License-Identifier: Apache-2.0
"""What the figures were taken on: the machine, its measured peaks, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.peers import FLA_CORE, PEERS
from bench.timing import median

ROOT = Path(__file__).resolve().parent.parent
PEAK_SECONDS = 0.02
PEAK_KINDS = ("f32", "bf16")


def compiled_op(name: str) -> Any:
    """Return ``torch.ops.seqkern.<name>``, or None when this build has no such op."""
    import seqkern.ops  # noqa: F401  (loads the library, if there is one)

    return getattr(torch.ops.seqkern, name, None)


def set_isa(cap: str) -> str:
    """Cap the instruction set of our kernels ("" lifts the cap); return the one now in use."""
    op = compiled_op("set_isa_cap")
    if op is not None:
        return op(cap)
    if cap:
        raise RuntimeError(f"isa {cap}: this build of seqkern has no compiled kernels to cap.")
    return "reference"


def isa_found() -> str:
    """Return the compiled library's account of instruction sets: "in use;found;compiled"."""
    op = compiled_op("cpu_info")
    return "reference;;" if op is None else op()


RECYCLING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def recycles_memory() -> bool:
    """Whether this process was started so that malloc keeps freed memory."""
    return all(os.environ.get(name) == value for name, value in RECYCLING.items())


class Peaks:
    """Samples of what one thread reaches in a register-only loop, in GFLOP/s."""

    def __init__(self) -> None:
        self.op = compiled_op("fma_peak")
        self.samples: dict[str, list[float]] = {kind: [] for kind in PEAK_KINDS}

    def sample(self, kind: str = "f32") -> float:
        """Measure once, for about 20 ms; 0.0 when the CPU or this build has no such unit."""
        value = 0.0 if self.op is None else float(self.op(kind, PEAK_SECONDS))
        if value > 0:
            self.samples[kind].append(value)
        return value

    def typical(self, kind: str) -> float:
        """Median of all samples of the run, 0.0 without any."""
        return median(self.samples[kind]) if self.samples[kind] else 0.0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """Return the commit, with "+changes" when tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{head}+changes" if head and changed else head


def cpu_model() -> str:
    """Return the CPU's name with family and model, as the kernel tells them."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def describe() -> dict[str, Any]:
    """Return the summary that heads every result file."""
    fla = PEERS / f"fla_core-{FLA_CORE}"
    return {
        "device": cpu_model(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "isa": isa_found(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory": "recycled" if recycles_memory() else "system default",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "fla_core": FLA_CORE if fla.exists() else "",
        "seqkern": _version("seqkern"),
        "commit": commit(),
    }
