# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use: instruction sets, threads, and reproducible random numbers."""

import pytest
import torch

from seqkern._runtime import library


def runnable_isas() -> list[str]:
    """Return the compiled instruction sets that this CPU can run, the best first."""
    info = library.cpu_info()
    if info is None:
        return []
    found = []
    for name in info["compiled"]:
        try:
            torch.ops.seqkern.set_isa_cap(name)
        except RuntimeError:
            continue
        found.append(name)
    torch.ops.seqkern.set_isa_cap("")
    return found


ISAS = runnable_isas()


@pytest.fixture(params=ISAS or ["no library"])
def isa(request):
    """Cap the kernels at each instruction set in turn."""
    if request.param == "no library":
        pytest.skip(library.load_error())
    torch.ops.seqkern.set_isa_cap(request.param)
    yield request.param
    torch.ops.seqkern.set_isa_cap("")


@pytest.fixture
def threads():
    """Return ``torch.set_num_threads``, and restore the number of threads afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned():
    """Fill every fresh allocation with NaN, so that an element nobody wrote shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
