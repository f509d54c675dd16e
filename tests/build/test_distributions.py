# SPDX-License-Identifier: Apache-2.0
"""What a source distribution and a wheel hold, made where nothing can be compiled."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bench", "constrint", "csrc", "seqkern", "tests")
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml")
FILES += ("setup.py",)
NOT_OURS = shutil.ignore_patterns("*.so", "__pycache__", ".peers")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The root of a copy of the sources, with both distributions in ``dist``."""
    root = tmp_path_factory.mktemp("distributions") / "copy"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=NOT_OURS)
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    code = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    environment = {**os.environ, "PATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "no C++ compiler is here" in done.stderr
    return root


def test_a_source_distribution_holds_all_that_it_is_made_of(built):
    (path,) = built.glob("dist/*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = [p for name in FOLDERS for p in (built / name).rglob("*") if p.is_file()]
    made_of = {*FILES, *(p.relative_to(built).as_posix() for p in files)}
    made_of = {name for name in made_of if not name.endswith(".gitignore")}
    assert made_of <= held


def test_a_wheel_holds_no_sources_of_cpp(built):
    (path,) = built.glob("dist/*.whl")
    with zipfile.ZipFile(path) as archive:
        held = {Path(name) for name in archive.namelist()}
    assert {p.parts[0] for p in held if "dist-info" not in p.parts[0]} == {"constrint", "seqkern"}
    assert {p.suffix for p in held} <= {".py", ".pyi", ".typed", ".md", "", ".txt"}
    assert {Path("seqkern/py.typed"), Path("constrint/_core.pyi")} <= held
