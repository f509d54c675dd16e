# SPDX-License-Identifier: Apache-2.0
"""Install what the benchmarks compare with: ``python bench/install_peers.py``.

Installs bench/requirements.txt into this Python and unpacks the wheels of fla-core and flashrnn
beside the benchmarks (bench/.peers), without installing them. Needs the standard library and pip
only; runs quickly when there is nothing left to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNPACKED = {"fla-core": "0.6.0", "flashrnn": "1.0.8"}


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SystemExit(f"pip {arguments[0]} failed ({done.returncode}); see its words above.")


def unpack(package: str, version: str) -> Path:
    """Download a wheel and unpack it into bench/.peers, unless it is there; return its folder."""
    target = HERE / ".peers" / f"{package.replace('-', '_')}-{version}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        only_wheels = ("--no-deps", "--only-binary", ":all:", "-d", scratch)
        _pip("download", "-q", *only_wheels, f"{package}=={version}")
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        # A rename is all or nothing: an interrupted download leaves no half-filled folder.
        os.replace(unpacked, target)
    return target


def main() -> None:
    """Install the requirements and unpack the wheels."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    _pip("install", "-q", "-r", str(HERE / "requirements.txt"))
    if shutil.which("git") is None:
        print("note: git is not here, so results cannot name their commit")
    folders = [unpack(*package) for package in UNPACKED.items()]
    print(f"peers are ready: {', '.join(str(f.relative_to(HERE.parent)) for f in folders)}")


if __name__ == "__main__":
    main()
