# SPDX-License-Identifier: Apache-2.0
"""Write the recorded results into the README: ``python -m bench.readme``.

The README has one place per record, between the lines ``<!-- bench: NAME -->`` and
``<!-- /bench -->``: a suite, or SUITE_MACHINE for a record of another machine. What stands there
comes from bench/results/NAME.json, word for word, so a figure in the README cannot differ from its
record.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from bench import report

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_SAME = {"-": ""}


def section(name: str, document: dict[str, Any]) -> str:
    """Return one record's machine, table, plot and verdict as Markdown."""
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
        lines.append(f"\n![{name}: the same as bars]({plot.relative_to(ROOT)})")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """Return ``text`` with every place filled from its record; a place without one is kept."""

    def fill(match: re.Match[str]) -> str:
        record = RESULTS / f"{match['name']}.json"
        if not record.exists():
            return match[0]
        return match[1] + section(match["name"], json.loads(record.read_text())) + match[3]

    return PLACE.sub(fill, text)


def main() -> None:
    """Rewrite the README's places, all or nothing."""
    scratch = README.with_name(README.name + ".part")
    scratch.write_text(filled(README.read_text()))
    os.replace(scratch, README)
    print(f"wrote {README.name}")


if __name__ == "__main__":
    main()
