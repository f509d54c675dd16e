# SPDX-License-Identifier: Apache-2.0
"""Write the recorded results into the READMEs: ``python -m bench.readme``.

The project's README and that of the results have one place per record, between the lines
``<!-- bench: NAME -->`` and ``<!-- /bench -->``: a suite, or SUITE_MACHINE for a record of another
machine; ``bars`` is a table of the verdicts of all. What stands there comes from
bench/results/NAME.json, word for word, so a figure cannot differ from its record.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from bench import report
from seqkern._runtime.files import whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
READMES = (ROOT / "README.md", RESULTS / "README.md")
SUITES = {
    "linear_attention": "GLA and the delta rule",
    "selective_scan": "selective scan, linear scan, Mamba",
    "rnn": "LSTM, GRU and sLSTM",
    "lssl": "linear state-space layer",
}
MACHINES = {
    "": "AVX-512 (family 26)",
    "_zen4": "AVX-512 on 256-bit units",
    "_avx2": "AVX2",
}
PLACE = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_SAME = {"-": ""}


def section(name: str, document: dict[str, Any], folder: Path) -> str:
    """Return one record's machine, table, plot and verdict as Markdown of a file in ``folder``."""
    summary = document["summary"]
    lines = [report.where(summary) + "\n"]
    for i, cells in enumerate(report.cells(document["rows"])):
        ours = cells[1].split(" / ")
        median = ours[len(ours) // 2] if i else "ours, ms (p50)"
        row = (cells[0], median, *cells[2:])
        lines.append("| " + " | ".join(_SAME.get(cell, cell) for cell in row) + " |")
        if i == 0:
            lines.append("|" + "---|" * len(row))
    lines.append(f"\n{report.verdict(summary)}.")
    plot = RESULTS / f"{name}.png"
    if plot.exists():
        lines.append(f"\n![{name}: the same as bars]({plot.relative_to(folder)})")
    return "\n".join(lines) + "\n"


def bars() -> str:
    """Return the table of how many bars each record meets."""
    rule = "|---" * (1 + len(MACHINES)) + "|"
    lines = ["| bars met | " + " | ".join(MACHINES.values()) + " |", rule]
    for suite, title in SUITES.items():
        cells = [_verdict(suite + machine) for machine in MACHINES]
        lines.append("| " + " | ".join((title, *cells)) + " |")
    return "\n".join(lines) + "\n"


def _verdict(name: str) -> str:
    record = RESULTS / f"{name}.json"
    if not record.exists():
        return "not recorded"
    verdict = report.verdict(json.loads(record.read_text())["summary"])
    return verdict.removesuffix(" bars met")


def filled(text: str, folder: Path) -> str:
    """Return the text of a file in ``folder`` with every place filled that has a record."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        record = RESULTS / f"{name}.json"
        if name == "bars":
            return match[1] + bars() + match[3]
        if not record.exists():
            return match[0]
        return match[1] + section(name, json.loads(record.read_text()), folder) + match[3]

    return PLACE.sub(fill, text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Rewrite the places of both files, each file all or nothing."""
    for path in READMES:
        with whole(path) as scratch:
            scratch.write_text(filled(path.read_text(), path.parent))
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
