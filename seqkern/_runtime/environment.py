# SPDX-License-Identifier: Apache-2.0
"""What machine this is and what of seqkern runs on it.

Only the standard library is imported, and the compiled library is tried in a process of its own:
the answer comes also when torch or the library cannot be loaded, or take the process down.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "numpy", "click", "rich", "matplotlib", "transformers")
_FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl")
_MORE_FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
_PROBE_SECONDS = 120

# Which engine constrint runs on, and why not on its C++ core.
_SOLVER_PROBE = """
import json
from constrint import _search
print(json.dumps({"engine": _search.backend(), "reason": _search.why_python() or None}))
"""

# Prints one JSON line per stage; whoever reads it keeps the last one.
_PROBE = """
import json
found = {}
def tell(**more):
    found.update(more)
    print(json.dumps(found), flush=True)
tell(stage="importing torch")
try:
    import torch
except Exception as error:
    tell(stage="done", torch_error=f"{type(error).__name__}: {error}")
    raise SystemExit
tell(stage="loading the compiled library", threads=torch.get_num_threads(),
     torch=torch.__version__, cuda=torch.cuda.is_available())
try:
    from seqkern._runtime import library
    tell(path=str(library.path()))
    tell(error=library.load_error())
    tell(stage="asking for the instruction set")
    tell(stage="done", isa=library.cpu_info())
except Exception as error:
    tell(stage="done", error=f"{type(error).__name__}: {error}")
"""


def cpu_model() -> str:
    """Return the processor's name as the system tells it."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return those instruction-set flags of the processor that matter to the kernels."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            return [flag for flag in _FLAGS + _MORE_FLAGS if flag in present]
    return []


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def summary() -> dict[str, Any]:
    """Return the few facts that belong beside every measured figure; imports torch."""
    import torch

    import seqkern
    from seqkern._runtime import library

    isa = library.cpu_info()
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "isa": isa["in_use"] if isa else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seqkern": seqkern.__version__,
    }


def report() -> dict[str, Any]:
    """Return everything `seqkern info` shows, as plain values."""
    import seqkern
    from seqkern._runtime.settings import SETTINGS

    probe = _probe()
    return {
        "seqkern": seqkern.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "cpu": {"model": cpu_model(), "cores": cores(), "flags": cpu_flags()},
        "threads": probe.get("threads"),
        "isa": probe.get("isa"),
        "library": {
            "path": probe.get("path"),
            "loaded": probe["problem"] is None,
            "problem": probe["problem"],
        },
        "backends": _backends(probe),
        "constrint": _constrint(),
        "settings": {
            s.name: {"value": os.environ.get(s.name), "default": s.default, "meaning": s.meaning}
            for s in SETTINGS
        },
    }


def _backends(probe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Say of every backend whether it runs here, and why not."""
    reasons = {
        "cpu": probe["problem"],
        "triton": "this version has no Triton kernels; GPU tensors take the reference",
        "cuda": "this version has no CUDA kernels; GPU tensors take the reference",
        "reference": probe.get("torch_error"),
    }
    return {name: {"available": why is None, "reason": why} for name, why in reasons.items()}


def _child(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own that finds the same modules."""
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=False,
    )


def _constrint() -> dict[str, Any]:
    """Say which engine the solver runs on: "cpp", "python", or None if it cannot be loaded."""
    try:
        child = _child(_SOLVER_PROBE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"engine": None, "reason": f"the check did not finish ({error})"}
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        return {"engine": None, "reason": last[0]}
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def _probe() -> dict[str, Any]:
    """Load the library in a child process; ``problem`` says what went wrong, or is None."""
    try:
        child = _child(_PROBE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"the check of the compiled library did not finish ({error})"}
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"stage": "starting Python"}
    found["problem"] = _problem(found, child.returncode)
    return found


def _problem(found: dict[str, Any], status: int) -> str | None:
    if found["stage"] != "done":
        how = f"exit status {status}"
        if status < 0:
            how = signal.Signals(-status).name
        return f"{found['stage']} ended the process ({how})"
    if "torch_error" in found:
        return f"torch cannot be imported ({found['torch_error']})"
    return found.get("error")


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
