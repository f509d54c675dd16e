# SPDX-License-Identifier: Apache-2.0
"""A few ops under pytest-benchmark: ``pytest --benchmark-only bench``.

For a quick look, and for comparing two commits with ``--benchmark-autosave`` and
``--benchmark-compare``. The table of the README comes from ``python -m bench``, which alternates
with the peers and checks results first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases._family import ours
from bench.registry import Size
from bench.timing import make_side

pytest.importorskip("pytest_benchmark")

OPS = ("chunk_gla", "chunk_gated_delta_rule")


@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPS)
def test_one_thread(benchmark: Any, name: str, dtype: str, pass_: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        side = make_side(ours(name, Size(T=1024, dtype=dtype), pass_))
        with torch.set_grad_enabled(side.grad):
            benchmark(side.run)
    finally:
        torch.set_num_threads(before)
