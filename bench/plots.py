# SPDX-License-Identifier: Apache-2.0
"""Draw a result document: a bar for each row and rival, and GLA against attention over T."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report import result_text

OURS, RIVAL = "#1f6f8b", "#c9a227"


def _timed(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row
        for row in document["rows"]
        if "ms_p50" in row["ours"] and "ms_p50" in row["rival"] and row["value"] is not None
    ]


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    for i, row in enumerate(rows):
        ours, rival = row["ours"]["ms_p50"], row["rival"]["ms_p50"]
        axes.barh(i - 0.2, ours, 0.38, color=OURS)
        axes.barh(i + 0.2, rival, 0.38, color=RIVAL)
        axes.text(
            max(ours, rival) * 1.08, i, result_text(row), va="center", fontsize=8, color="#333"
        )
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(
        [f"{row['title']}\nvs {row['rival']['label']}" for row in rows], fontsize=7.5
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.set_xlabel("ms per call, median (log scale)")
    axes.set_title("seqkern and what it is compared with")
    axes.barh(0, 0, color=OURS, label="seqkern")
    axes.barh(0, 0, color=RIVAL, label="compared with")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(axis="x", which="major", alpha=0.3)


def _attention(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = sorted((r for r in rows if "SDPA" in r["rival"]["label"]), key=lambda r: r["shape"]["T"])
    lengths = [r["shape"]["T"] for r in rows]
    for key, color, label in (("rival", RIVAL, "causal SDPA"), ("ours", OURS, "chunk_gla")):
        middle = [r[key]["ms_p50"] for r in rows]
        axes.plot(lengths, middle, "o-", color=color, label=label)
        axes.fill_between(
            lengths,
            [r[key]["ms_p20"] for r in rows],
            [r[key]["ms_p80"] for r in rows],
            color=color,
            alpha=0.25,
        )
    for r in rows:
        axes.annotate(
            result_text(r),
            (r["shape"]["T"], r["ours"]["ms_p50"]),
            textcoords="offset points",
            xytext=(4, -13),
            fontsize=8,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("T, tokens")
    axes.set_ylabel("forward + backward, ms, median (band: p20 to p80)")
    axes.set_title("GLA against causal attention, same B, T, H, D")
    axes.legend(fontsize=8)
    axes.grid(which="major", alpha=0.3)


def draw(document: dict[str, Any], path: Path) -> bool:
    """Write the plot as PNG; False when there is nothing to draw or matplotlib is missing."""
    rows = _timed(document)
    if not rows:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    both = any("SDPA" in r["rival"]["label"] for r in rows)
    height = max(4.5, 0.42 * len(rows) + 1.5)
    figure, axes = plt.subplots(
        1, 2 if both else 1, figsize=(15 if both else 9, height), squeeze=False
    )
    _bars(axes[0][0], rows)
    if both:
        _attention(axes[0][1], rows)
    s = document["summary"]
    figure.suptitle(
        f"{s['device']}, ISA {s['isa'].split(';')[0]}, "
        f"{s['threads']} thread(s), torch {s['torch']}",
        fontsize=9,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
