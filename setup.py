# SPDX-License-Identifier: Apache-2.0
"""Builds two C++ libraries.

seqkern._C: torch's stable ABI, no Python symbol, loaded by torch.ops. constrint._core: an ordinary
Python module, which knows no torch; without pybind11, or where it does not compile, constrint runs
on its Python twin. Without any C++ compiler neither is built, and what is Python serves alone.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
# Names of sources in messages, without the folder that they were built in.
RELATIVE = f"-ffile-prefix-map={ROOT}/="
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("csrc/bind", "csrc/cpu", "csrc/cpu/isa")
    for path in (ROOT / folder).glob("*.cpp")
)
HEADERS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.h", "*.hpp")
    for path in ROOT.glob(f"csrc/**/{pattern}")
)


CORE = "constrint._core"


class Build(BuildExtension):
    """seqkern._C has no PyInit function: torch loads it by its path."""

    def get_export_symbols(self, ext):
        """Nothing beyond what the sources export."""
        return []

    def build_extension(self, ext):
        """Build one library; the solver's may fail, since it has a twin in Python."""
        if ext.name != CORE:
            super().build_extension(ext)
            return
        try:
            super().build_extension(ext)
        except Exception as error:
            ext.optional = True
            print(f"note: {CORE} was not built, its Python twin will run: {error}", file=sys.stderr)


def solver_core():
    """Return the solver's C++ core, or nothing where pybind11 is not installed."""
    try:
        import pybind11
    except ImportError:
        print(f"note: pybind11 is not here, so {CORE} is not built", file=sys.stderr)
        return []
    return [
        Extension(
            CORE,
            ["constrint/csrc/module.cpp"],
            depends=[str(p.relative_to(ROOT)) for p in ROOT.glob("constrint/csrc/*.hpp")],
            include_dirs=[pybind11.get_include()],
            language="c++",
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++20",
                "-fvisibility=hidden",
                "-Wall",
                RELATIVE,
            ],
        )
    ]


def kernels():
    """Return the library of kernels and ops."""
    return [
        CppExtension(
            "seqkern._C",
            SOURCES,
            depends=HEADERS,
            py_limited_api=True,
            # 0x020b...: torch 2.11, the oldest that the library runs on.
            define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")],
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++20",
                "-fvisibility=hidden",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wall",
                RELATIVE,
                "-Wno-psabi",
                "-Wno-ignored-attributes",
                "-Wno-unused-function",
                "-Wno-maybe-uninitialized",
                "-Wno-unknown-warning-option",
            ],
        )
    ]


def libraries():
    """Return what can be built here: nothing without a C++ compiler."""
    names = (os.environ.get("CXX") or "c++", "g++", "clang++")
    if not any(shutil.which(name.split()[0]) for name in names):
        print("note: no C++ compiler is here, so only what is Python is installed", file=sys.stderr)
        return []
    return [*solver_core(), *kernels()]


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
