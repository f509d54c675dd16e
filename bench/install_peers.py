# SPDX-License-Identifier: Apache-2.0
"""Install what the benchmarks compare with: ``python bench/install_peers.py``.

Installs bench/requirements.txt into this Python and unpacks fla-core's wheel beside the benchmarks
(bench/.peers), without installing it. Needs the standard library and pip only; runs quickly when
there is nothing left to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLA_CORE = "0.6.0"
TARGET = HERE / ".peers" / f"fla_core-{FLA_CORE}"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SystemExit(f"pip {arguments[0]} failed ({done.returncode}); see its words above.")


def unpack_fla_core(target: Path = TARGET) -> None:
    """Download fla-core's wheel and unpack it to ``target``; does nothing when it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _pip(
            "download",
            "-q",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            scratch,
            f"fla-core=={FLA_CORE}",
        )
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        # A rename is all or nothing: an interrupted download leaves no half-filled folder.
        os.replace(unpacked, target)


def main() -> None:
    """Install the requirements and unpack the wheel."""
    _pip("install", "-q", "-r", str(HERE / "requirements.txt"))
    if shutil.which("git") is None:
        print("note: git is not here, so results cannot name their commit")
    unpack_fla_core()
    print(f"peers are ready: {TARGET.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
