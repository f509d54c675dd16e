# SPDX-License-Identifier: Apache-2.0
"""Print results: one table (Markdown, aligned, readable as it is) and the sentences around it."""

from __future__ import annotations

import math
from typing import Any

# By suite: what a row measures at unless its title says otherwise.
SIZES = {"linear_attention": "B=1, T=2048, H=4, K=V=128", "rnn": "B=16, T=512"}
HEAD = ("what", "ours, ms (p20 / p50 / p80)", "against", "its ms", "result", "bar", "met")


def number(x: float) -> str:
    """Three significant digits without an exponent."""
    if math.isnan(x):
        return "-"
    if x == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:,.{digits}f}"


def _ours(row: dict[str, Any]) -> str:
    ours = row["ours"]
    if "extra_mib" in ours:
        return f"{number(ours['extra_mib'])} MiB extra"
    if not ours:
        return "-"
    return " / ".join(number(ours[key]) for key in ("ms_p20", "ms_p50", "ms_p80"))


def _against(row: dict[str, Any]) -> tuple[str, str]:
    rival = row["rival"]
    if "extra_mib" in rival:
        return rival["label"], f"{number(rival['extra_mib'])} MiB"
    if rival:
        return rival["label"], number(rival["ms_p50"])
    if row["metric"] == "peak_share" and row["ours"]:
        return "FMA peak", f"{number(row['peaks_gflops']['f32'])} GFLOP/s"
    if row["metric"] == "memory" and row["ours"]:
        against = "gates and states" if row["op"] == "flashrnn" else "q, k, v, g"
        return against, f"{number(row['ours']['inputs_mib'])} MiB"
    return "-", "-"


def result_text(row: dict[str, Any]) -> str:
    """The value with its unit, or why there is none."""
    value = row["value"]
    if value is None:
        return row["status"] if row["status"] != "measured" else "n/a"
    if row["metric"] == "peak_share":
        return f"{100 * value:.0f} %"
    if row["metric"] == "latency_us":
        return f"{number(value)} us"
    return f"{number(value)}x"


def _bar(row: dict[str, Any]) -> str:
    if row["bar"] is None:
        return "-"
    sense, value = row["bar"].split()
    unit = {"peak_share": f"{100 * float(value):.0f} %", "latency_us": f"{value} us"}
    aim = f" (aim {row['aim']:g}x)" if row["aim"] else ""
    return f"{sense} {unit.get(row['metric'], f'{value}x')}{aim}"


def _met(row: dict[str, Any]) -> str:
    if row["met"] is None:
        return "-"
    return "yes" if row["met"] else "NO"


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the head of the table and the cells of every row."""
    lines = [HEAD]
    for row in rows:
        against, theirs = _against(row)
        lines.append(
            (row["title"], _ours(row), against, theirs, result_text(row), _bar(row), _met(row))
        )
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as an aligned Markdown table."""
    lines = cells(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def where(summary: dict[str, Any]) -> str:
    """Return the machine, the versions and the peaks in two sentences."""
    peers = [
        f"{label} {summary[key]}"
        for label, key in (("torch", "torch"), ("transformers", "transformers"))
        if summary.get(key)
    ]
    peak, dot = summary["f32_fma_peak_gflops"], summary["bf16_dot_peak_gflops"]
    return (
        f"{summary['device']}, {summary['cores']} cores, ISA {summary['isa'].split(';')[0]}, "
        f"{', '.join(peers)}, commit {summary['commit']}. Register-only peaks of one thread in the "
        f"same run: {number(peak) if peak else 'n/a'} GFLOP/s float32, "
        f"{number(dot) if dot else 'n/a'} bfloat16."
    )


def heading(summary: dict[str, Any]) -> str:
    """Return where and with what the figures were taken, in a few lines."""
    peak = summary["f32_fma_peak_gflops"]
    dot = summary["bf16_dot_peak_gflops"]
    isa = summary["isa"].split(";")[0]
    sizes = "" if summary["quick"] else SIZES.get(summary["suite"], "")
    cap = f", capped at {summary['isa_cap']}" if summary["isa_cap"] else ""
    return "\n".join(
        [
            f"{summary['device']}, {summary['cores']} cores, ISA {isa}{cap}",
            f"torch {summary['torch']}, transformers {summary['transformers'] or 'missing'}, "
            f"fla-core {summary['fla_core'] or 'missing'} (torch references), "
            f"commit {summary['commit'] or 'unknown'}, tests: {summary['tests']}",
            *(
                ["freed memory is recycled inside the process (--recycle-memory)"]
                if summary["memory"] == "recycled"
                else []
            ),
            f"one thread's register-only peaks: float32 FMA {number(peak) if peak else 'n/a'}, "
            f"bf16 dot {number(dot) if dot else 'n/a'} GFLOP/s",
            f"{sizes}{', ' if sizes else ''}float32, {summary['threads']} thread(s) unless said; "
            "medians, turn by turn",
        ]
    )


def notes(rows: list[dict[str, Any]]) -> str:
    """Return the notes of all rows that have some, one line each."""
    return "\n".join(f"- {row['title']}: {note}" for row in rows for note in row["notes"])


def verdict(summary: dict[str, Any]) -> str:
    """Return the closing line."""
    text = f"{summary['bars_met']} of {summary['bars_judged']} bars met"
    if summary["withheld"]:
        text += f"; {summary['withheld']} rows withheld because a check failed"
    if summary["skipped"]:
        text += f"; {summary['skipped']} rows skipped"
    if summary["failed"]:
        text += f"; {summary['failed']} rows failed"
    if summary["quick"]:
        text += "; quick run: nothing is judged"
    return text
