# SPDX-License-Identifier: Apache-2.0
"""Every public op stands in the README's support table, and every op and layer in the changelog."""

import inspect
import re
from pathlib import Path

import pytest

from seqkern import nn, ops

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "README.md").read_text().partition("## What runs where")[2].partition("\n## ")[0]
RUNNING = [
    name for name in ops.__all__ if "backend" in inspect.signature(getattr(ops, name)).parameters
]


@pytest.mark.parametrize("name", RUNNING)
def test_the_support_table_has_every_op(name):
    assert f"`{name}`" in TABLE


def test_the_support_table_has_no_other_names():
    (rows,) = re.findall(r"(?:^\|.*\n)+", TABLE, re.MULTILINE)
    named = re.findall(r"`(?:seqkern\.nn\.)?((?:[a-z]+\w*_\w+|[A-Z]+))`", rows)
    assert set(named) - {"cu_seqlens", "seq_idx"} <= {*ops.__all__, *nn.__all__}


@pytest.mark.parametrize("name", [*ops.__all__, *nn.__all__])
def test_the_changelog_has_every_op_and_layer(name):
    changes = (ROOT / "CHANGELOG.md").read_text()
    # A result, not something to call.
    assert name == "Conversion" or re.search(rf"`(?:[\w.]+\.)?{name}`", changes)
