# SPDX-License-Identifier: Apache-2.0
"""The build succeeds where the solver's core cannot be built, and the twin serves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAKEN = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "seqkern", "constrint")
USE = "import constrint; m = constrint.Model(); x = m.int('x', 1, 9); m.require(x * x == 49); "
USE += "print(constrint.__file__, constrint.backend(), m.solve().values)"


@pytest.fixture
def copy(tmp_path):
    """A copy of the sources in which the other library is next to empty, and quick to build."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for name in TAKEN:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=skip)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "csrc" / "bind").mkdir(parents=True)
    (tmp_path / "csrc" / "bind" / "empty.cpp").write_text("int seqkern_is_not_here = 0;\n")
    return tmp_path


def _python(folder, *arguments, **variables):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def _twin_serves(copy):
    assert not list((copy / "constrint").glob("_core*.so"))
    # -S: an editable install elsewhere would put its own core in.
    said = _python(copy, "-S", "-c", USE, PYTHONPATH=str(copy)).stdout
    assert said == f"{copy / 'constrint' / '__init__.py'} python {{'x': 7}}\n"


def test_without_pybind11(copy):
    hidden = copy / "hidden" / "pybind11"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('pybind11 is hidden')")
    build = ("setup.py", "-q", "build_ext", "--inplace", "--build-temp", "objects")
    done = _python(copy, *build, PYTHONPATH=str(hidden.parent))
    assert "pybind11 is not here, so constrint._core is not built" in done.stderr
    _twin_serves(copy)


def test_without_a_compiler(copy):
    build = ("setup.py", "-q", "build_ext", "--inplace", "--build-temp", "objects")
    done = _python(copy, *build, PATH=str(copy), CXX="")
    assert "no C++ compiler is here" in done.stderr
    _twin_serves(copy)


def test_where_the_core_does_not_compile(copy):
    (copy / "constrint" / "csrc" / "module.cpp").write_text("#error not today\n")
    done = _python(copy, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", "objects")
    assert "constrint._core was not built, its Python twin will run" in done.stderr
    _twin_serves(copy)
