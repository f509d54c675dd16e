# SPDX-License-Identifier: Apache-2.0
"""What the C++ sources and the build may not contain."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = {".h", ".hpp", ".c", ".cpp", ".cc", ".cu", ".cuh"}


def _sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in CODE]
    assert found, f"no sources in {folders}"
    return found


def _offending(pattern: str, files: list[Path]) -> list[str]:
    expression = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if expression.search(line)
    ]


def test_kernels_know_no_torch():
    headers = r'#\s*include\s*[<"](torch|ATen|c10|Python|pybind11)\b'
    names = r"\b(torch|at|c10|aoti_torch)::|\baoti_torch_"
    assert _offending(f"{headers}|{names}", _sources("csrc/cpu", "csrc/include")) == []


def test_bindings_use_the_stable_interface_only():
    allowed = r"torch/(csrc/stable|csrc/inductor/aoti_torch/c|headeronly)/"
    includes = _offending(r'#\s*include\s*[<"](torch|ATen|c10)/', _sources("csrc/bind"))
    assert includes, "the bindings include nothing of torch"
    assert [line for line in includes if not re.search(allowed, line)] == []


def test_nothing_is_built_for_this_machine_alone():
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", *_sources("csrc")]
    files += [path for path in (ROOT / "Makefile",) if path.exists()]
    assert _offending(r"-m(arch|tune|cpu)=native", files) == []


def test_no_openmp_of_our_own():
    assert _offending(r"#\s*pragma\s+omp|<omp\.h>|-fopenmp", _sources("csrc")) == []
    assert _offending(r"-fopenmp", [ROOT / "setup.py"]) == []


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
def test_every_isa_has_its_file(isa):
    assert (ROOT / "csrc" / "cpu" / "isa" / f"{isa}.cpp").is_file()


@pytest.mark.parametrize("path", _sources("csrc"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_source_names_its_license(path):
    assert "SPDX-License-Identifier: Apache-2.0" in path.read_text()[:200]
