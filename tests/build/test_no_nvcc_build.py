# SPDX-License-Identifier: Apache-2.0
"""Build a fresh copy of the sources where no CUDA toolkit can be found, and use what comes out."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _symbols import nm, torch_cxx_names

ROOT = Path(__file__).resolve().parents[2]
TAKEN = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "seqkern", "constrint")
COMPILERS = ("c++", "g++", "clang++")
USE = """
import torch
torch.ops.load_library({library!r})
x = torch.rand(1, 5, 2, 16)
o, ht, *_ = torch.ops.seqkern.linear_attention_fwd(
    x, x, x, None, None, None, None, 0.25, 1, False, 0)
assert o.shape == x.shape and bool(o.isfinite().all()), o
print(torch.ops.seqkern.cpu_info())
"""


def _without_cuda() -> dict[str, str]:
    """Return an environment with no CUDA variable and no folder on PATH that holds nvcc."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "SEQKERN"))}
    kept.pop("CPATH", None)
    folders = [
        Path(sys.executable).parent,
        *map(Path, os.environ.get("PATH", "").split(os.pathsep)),
    ]
    kept["PATH"] = os.pathsep.join(str(f) for f in folders if not (f / "nvcc").exists())
    return kept


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The root of a built copy; nothing of this checkout's build is reused or touched."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    root = tmp_path_factory.mktemp("no_nvcc")
    without_binaries = shutil.ignore_patterns("*.so", "__pycache__")
    for name in TAKEN:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=without_binaries)
        elif source.exists():
            shutil.copy(source, root / name)
    environment = _without_cuda()
    assert shutil.which("nvcc", path=environment["PATH"]) is None
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", "objects", "--inplace"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return root


@pytest.fixture(scope="module")
def library(built) -> Path:
    (found,) = (built / "seqkern").glob("_C*.so")
    return found


def test_it_builds_and_computes(library):
    code = USE.format(library=str(library))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_without_cuda(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = done.stdout.strip().split(";")[2].split(",")
    assert "scalar" in compiled
    if platform.machine() == "x86_64":
        assert {"avx2", "avx512"} <= set(compiled)


def test_the_name_carries_no_python_version(library):
    assert library.name == "_C.abi3.so"


def test_it_asks_for_no_cuda_and_no_torch_cxx_name(library):
    names = [name for _, name in nm(library, "-D", "--undefined-only")]
    assert torch_cxx_names(names) == []
    assert [n for n in names if n.startswith(("cuda", "cu_", "__cuda"))] == []


def test_isa_objects_share_no_inline_function(built):
    """A weak function would be linked once for all, compiled for whatever ISA came first."""
    objects = sorted((built / "objects").rglob("isa/*.o"))
    assert objects
    weak = [
        f"{path.name}: {name}"
        for path in objects
        for kind, name in nm(path, "--defined-only")
        if kind in "WVu" and not name.startswith("DW.ref.") and path.stem not in name
    ]
    assert weak == []
