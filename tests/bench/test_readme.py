# SPDX-License-Identifier: Apache-2.0
"""The READMEs' figures are those of the records, and of runs that were checked."""

import json
import re

import pytest
from click.testing import CliRunner

from bench import readme

RECORDS = [
    match["name"]
    for path in readme.READMES
    for match in readme.PLACE.finditer(path.read_text())
    if match["name"] != "bars"
]


def test_every_record_has_one_place():
    names = [path.stem for path in readme.RESULTS.glob("*.json") if path.stem != "lssl_mnist"]
    assert sorted(RECORDS) == sorted(names)


@pytest.mark.parametrize("path", readme.READMES, ids=lambda path: path.parent.name)
def test_figures_are_the_recorded_ones(path):
    text = path.read_text()
    assert readme.filled(text, path.parent) == text, "run `python -m bench.readme`"
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (path.parent / picture).is_file(), picture


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_run_was_whole(name):
    summary = json.loads((readme.RESULTS / f"{name}.json").read_text())["summary"]
    assert name in [summary["suite"] + machine for machine in readme.MACHINES]
    assert not summary["quick"]
    assert summary["failed"] == summary["withheld"] == 0
    assert summary["tests"] == "passed"


def test_fills_only_its_place():
    text = "before\n<!-- bench: linear_attention -->\nold\n<!-- /bench -->\nafter\n"
    filled = readme.filled(text, readme.ROOT)
    assert filled.startswith("before\n<!-- bench: linear_attention -->\n")
    assert filled.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in filled
    assert "| chunk_gla forward |" in filled


def test_help_writes_nothing(monkeypatch):
    monkeypatch.setattr(readme, "READMES", ("not a path",))
    done = CliRunner().invoke(readme.main, ["--help"])
    assert done.exit_code == 0
    assert "Rewrite the places of both files" in done.output
    assert CliRunner().invoke(readme.main, ["--nonsense"]).exit_code == 2


def test_keeps_a_place_without_a_record():
    text = "<!-- bench: nothing_like_it -->\nkept\n<!-- /bench -->\n"
    assert readme.filled(text, readme.ROOT) == text
