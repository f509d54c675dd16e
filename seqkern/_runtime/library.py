# SPDX-License-Identifier: Apache-2.0
"""Find and load the compiled library, and remember why it could not be loaded."""

import functools
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from seqkern._runtime import settings

_logger = logging.getLogger("seqkern")
_PACKAGED = Path(__file__).resolve().parent.parent / "_C.abi3.so"


def path() -> Path:
    """Return where the compiled library is expected."""
    chosen = settings.LIBRARY.get()
    return Path(chosen) if chosen else _PACKAGED


@functools.cache
def load_error() -> str | None:
    """Load the library on the first call; return None, or a sentence part saying why it failed."""
    target = path()
    if not target.is_file():
        return f"the compiled library {target.name} is not in {target.parent}"
    try:
        torch.ops.load_library(str(target))
    except (OSError, RuntimeError) as error:
        # torch's own words name the file only; the loader's, which caused them, say why.
        reason = str(error.__cause__ or error).splitlines()[0].removeprefix(f"{target}: ")
        return f"the compiled library {target} does not load ({reason})"
    _warn_of_unknown_settings()
    return None


def _warn_of_unknown_settings() -> None:
    """Log what the kernels, which cannot, would ignore without a word."""
    isa, megabytes = settings.CPU_ISA.get(), settings.POOL_MB.get()
    query = getattr(torch.ops.seqkern, "cpu_info", None) if isa else None
    compiled = [] if query is None else query().split(";")[2].split(",")
    if compiled and isa not in compiled:
        _logger.warning(
            "SEQKERN_CPU_ISA must be one of %s, got %r: it is ignored, and the best instruction "
            "set is used.",
            ", ".join(compiled),
            isa,
        )
    if megabytes and not megabytes.isdecimal():
        _logger.warning(
            "SEQKERN_POOL_MB must be a whole number of MiB, got %r: no memory is kept.", megabytes
        )


def find_op(name: str) -> Any:
    """Return the overload ``torch.ops.seqkern.<name>.default``, or None if it is not there."""
    if load_error() is not None:
        return None
    packet = getattr(torch.ops.seqkern, name, None)
    return None if packet is None else packet.default


def missing_reason(name: str) -> str | None:
    """Return why ``seqkern::<name>`` cannot be called, or None when it can."""
    error = load_error()
    if error is None and find_op(name) is None:
        error = f"the compiled library {path()} has no op {name} (it is from another version)"
    return error


def cpu_info() -> dict[str, Any] | None:
    """Return the instruction sets in use, found and compiled, or None without the library."""
    query = find_op("cpu_info")
    if query is None:
        return None
    in_use, found, compiled = query().split(";")
    return {"in_use": in_use, "found": found, "compiled": compiled.split(",")}


def reason(error: RuntimeError) -> str:
    """Return what the kernels said, without where in their source torch says it was."""
    return str(error).splitlines()[0].rpartition("seqkern: ")[2]


def rebuild_hint() -> str:
    """Return the sentences that tell how to get a working library, or to do without."""
    if settings.LIBRARY.get():
        way_out = "Correct SEQKERN_LIBRARY, or unset it to use the package's own"
    else:
        install = f"{Path(sys.executable).name} -m pip install --force-reinstall --no-deps ."
        way_out = f"Reinstall with a C++ compiler present (`{install}`)"
    return f'{way_out}, or use backend="reference". `seqkern info` shows what is available.'
