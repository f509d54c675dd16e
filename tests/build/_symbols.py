# SPDX-License-Identifier: Apache-2.0
"""Read the symbols of object files and libraries with binutils' nm."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Names of torch's C++ interface, demangled: c10::, at:: or torch:: that no other scope encloses.
TORCH_CXX = re.compile(r"(?<![\w:])(?:c10|at|torch)::")


def nm(path: Path, *options: str) -> list[tuple[str, str]]:
    """Return (type letter, demangled name) of each symbol that the options select."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not here")
    done = subprocess.run(
        ["nm", "-C", *options, str(path)], capture_output=True, text=True, check=True
    )
    found = [
        re.match(r"(?:[0-9a-fA-F]+)?\s+(\w)\s+(.+)", line) for line in done.stdout.splitlines()
    ]
    return [(m.group(1), m.group(2)) for m in found if m]


def torch_cxx_names(names: list[str]) -> list[str]:
    """Return the names that belong to torch's unstable C++ interface."""
    return [name for name in names if TORCH_CXX.search(name)]
