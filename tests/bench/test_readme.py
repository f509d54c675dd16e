# SPDX-License-Identifier: Apache-2.0
"""The README's figures are those of the records, and of runs that were checked."""

import json

import pytest

from bench import readme

RECORDS = [match["name"] for match in readme.PLACE.finditer(readme.README.read_text())]


def test_has_places():
    assert "linear_attention" in RECORDS


def test_figures_are_the_recorded_ones():
    text = readme.README.read_text()
    assert readme.filled(text) == text, "run `python -m bench.readme`"


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_run_was_whole(name):
    summary = json.loads((readme.RESULTS / f"{name}.json").read_text())["summary"]
    assert name in [summary["suite"] + machine for machine in ("", "_zen4", "_avx2")]
    assert not summary["quick"]
    assert summary["failed"] == summary["withheld"] == 0
    assert summary["tests"] == "passed"


def test_fills_only_its_place():
    text = "before\n<!-- bench: linear_attention -->\nold\n<!-- /bench -->\nafter\n"
    filled = readme.filled(text)
    assert filled.startswith("before\n<!-- bench: linear_attention -->\n")
    assert filled.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in filled
    assert "| chunk_gla forward |" in filled


def test_keeps_a_place_without_a_record():
    text = "<!-- bench: nothing_like_it -->\nkept\n<!-- /bench -->\n"
    assert readme.filled(text) == text
