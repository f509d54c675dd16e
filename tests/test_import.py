# SPDX-License-Identifier: Apache-2.0
"""Importing is light and silent, and works when the compiled library does not."""

import os
import subprocess
import sys
import time

import pytest

import seqkern
from seqkern._runtime import library


def python(code, **environment):
    """Run code in a fresh interpreter; return what it printed, on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return done.stdout, done.stderr


def test_import_prints_nothing():
    assert python("import seqkern, seqkern.ops, seqkern.nn") == ("", "")


def test_import_is_light():
    """Over ``import torch`` the best of three imports adds less than 0.3 s."""
    code = (
        "import time, torch; begin = time.perf_counter(); import seqkern, seqkern.ops; "
        "print(time.perf_counter() - begin)"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        times.append(float(python(code)[0]))
        if time.perf_counter() - begin < 30 and min(times) < 0.3:
            break
    assert min(times) < 0.3


def test_import_alone_loads_no_torch():
    code = "import sys, seqkern; seqkern.__version__; print('torch' in sys.modules)"
    assert python(code) == ("False\n", "")


def test_submodules_come_on_demand():
    names = [name for name in seqkern.__all__ if name != "__version__"]
    code = "import seqkern; print([getattr(seqkern, n).__name__ for n in seqkern.__all__[1:]])"
    out, _ = python(code)
    assert out == f"{[f'seqkern.{name}' for name in names]}\n"
    assert "ops" in dir(seqkern)
    with pytest.raises(AttributeError, match="has no attribute 'opps'"):
        _ = seqkern.opps


CALL = """
import torch
from seqkern import ops
from seqkern._runtime import library
from seqkern.errors import BackendUnavailableError
x, row, states = torch.ones(1, 2, 1, 3), torch.ones(1, 3), torch.ones(3, 3)
calls = {
    "chunk_gla": (x, x, x, torch.zeros_like(x)),
    "linear_scan": (x, x),
    "selective_scan": (x[:, 0], x[:, 0], states[:1], states[:1], states[:1]),
    "selective_state_update": (torch.ones(1, 3, 3), row, row, states, row, row),
}
print(library.load_error())
for name, arguments in calls.items():
    getattr(ops, name)(*arguments)
    try:
        getattr(ops, name)(*arguments, backend="cpu")
    except BackendUnavailableError as error:
        print(error)
"""


@pytest.mark.parametrize("kind", ["missing", "broken"])
def test_works_without_the_library(kind, tmp_path):
    """The reference serves ``auto`` with one warning; ``cpu`` says what is wrong and what to do."""
    library = tmp_path / "_C.abi3.so"
    if kind == "broken":
        library.write_bytes(b"not a library")
    out, err = python(CALL, SEQKERN_LIBRARY=str(library))
    reason = "is not in" if kind == "missing" else "does not load"
    assert f"the compiled library {library if kind == 'broken' else library.name} {reason}" in out
    for name in ("chunk_gla", "linear_scan", "selective_scan", "selective_state_update"):
        assert f'backend="cpu" for `{name}`: the compiled library' in out
    assert "Correct SEQKERN_LIBRARY, or unset it" in out
    assert err.count("runs the slow sequential reference") == 1


def test_backend_setting():
    code = (
        "import torch; from seqkern import ops\n"
        "x = [torch.ones(1, 2, 1, 3) for _ in range(4)]\n"
        "ops.chunk_gla(*x)"
    )
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python(code, SEQKERN_BACKEND="cuda")
    assert 'backend="cuda" for `chunk_gla`' in failed.value.stderr
    assert python(code, SEQKERN_BACKEND="reference") == ("", "")


def test_isa_setting():
    code = "from seqkern._runtime import library; print(library.cpu_info()['in_use'])"
    assert python(code, SEQKERN_CPU_ISA="scalar")[0] == "scalar\n"
    assert python(code, SEQKERN_CPU_ISA=" scalar ")[0] == "scalar\n"


@pytest.mark.skipif(library.load_error() is not None, reason=str(library.load_error()))
def test_unknown_values_of_settings_are_said():
    """A typo must not pass for the instruction set, the pool or the backend that was meant."""
    code = "import torch; from seqkern import ops; ops.linear_scan(*torch.ones(2, 1, 3, 4))"
    assert "SEQKERN_CPU_ISA must be one of" in python(code, SEQKERN_CPU_ISA="AVX2")[1]
    assert "SEQKERN_POOL_MB must be a whole" in python(code, SEQKERN_POOL_MB="1 GB")[1]
    assert python(code, SEQKERN_CPU_ISA="scalar", SEQKERN_POOL_MB="64") == ("", "")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python(code, SEQKERN_BACKEND="cpus")
    assert "SEQKERN_BACKEND must be one of" in failed.value.stderr
