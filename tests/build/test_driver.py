# SPDX-License-Identifier: Apache-2.0
"""Run the C++ test driver of the kernels, which knows no torch: here, and for aarch64."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seqkern._runtime import library

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {
    "linear_attention",
    "causal_conv1d",
    "rms_norm_gated",
    "rnn",
    "lssl",
    "selective_scan",
}
FLAGS = ["-std=c++20", "-O2", "-w"]


def _compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler is here")
    return found


def _run(command: list[str]) -> str:
    # A make that started the tests passes its options on; they are not meant for this one.
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def _build(folder: Path) -> Path:
    sources = [p for f in ("test", "cpu", "cpu/isa") for p in (ROOT / "csrc" / f).glob("*.cpp")]
    compiler = _compiler()

    def compile_one(numbered: tuple[int, Path]) -> str:
        number, source = numbered
        built = str(folder / f"{number}.o")
        _run([compiler, *FLAGS, "-c", str(source), "-o", built])
        return built

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, enumerate(sources)))
    driver = folder / "driver"
    _run([compiler, *objects, "-o", str(driver)])
    return driver


def _results(output: str) -> dict[tuple[str, str], int]:
    """Return how many comparisons passed, by (family, instruction set); none may have failed."""
    lines = output.strip().splitlines()
    found = [re.fullmatch(r"(\w+) +(\w+) +(\d+) passed, 0 failed", line) for line in lines]
    counts = {(m.group(1), m.group(2)): int(m.group(3)) for m in found if m}
    assert lines[-1] == f"{sum(counts.values())} passed, 0 failed"
    return counts


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return _build(tmp_path_factory.mktemp("driver"))


def test_kernels_equal_their_definitions(driver):
    counts = _results(_run([str(driver), "quick"]))
    assert {family for family, _ in counts} == FAMILIES
    assert all(count > 100 for count in counts.values())
    info = library.cpu_info()
    if info is not None:
        assert info["found"] in {isa for _, isa in counts}


def test_driver_rejects_unknown_words(driver):
    done = subprocess.run([str(driver), "fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_kernels_equal_their_definitions_on_aarch64():
    for tool in ("make", "aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")
    output = _run(["make", "--silent", "test-neon", "ARGS=quick"])
    counts = _results(output)
    assert {isa for _, isa in counts} == {"neon", "scalar"}
    assert {family for family, _ in counts} == FAMILIES
