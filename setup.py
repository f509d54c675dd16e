# SPDX-License-Identifier: Apache-2.0
"""Builds the one C++ library: torch's stable ABI, no Python symbol, loaded by torch.ops."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
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


class Build(BuildExtension):
    """The library has no PyInit function: torch loads it by its path."""

    def get_export_symbols(self, ext):
        """Nothing beyond what the sources export."""
        return []


setup(
    ext_modules=[
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
                "-Wno-psabi",
                "-Wno-ignored-attributes",
                "-Wno-unused-function",
                "-Wno-maybe-uninitialized",
            ],
        )
    ],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
