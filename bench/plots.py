# SPDX-License-Identifier: Apache-2.0
"""Draw a result document: ours against peers and against ourselves, GLA against attention over T,
and the share of the FMA peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report import result_text
from seqkern._runtime.files import whole

OURS, PEER, SELF = "#1f6f8b", "#c9a227", "#8fb8c6"
AGAINST_PEERS = "against what runs on a CPU today"
AGAINST_OURS = "against ourselves: what the row compares with"
ENDINGS = (".png", ".pdf", ".svg")
Rows = list[dict[str, Any]]


def _timed(document: dict[str, Any]) -> Rows:
    return [
        row
        for row in document["rows"]
        if "ms_p50" in row["ours"] and "ms_p50" in row["rival"] and row["value"] is not None
    ]


def _bars(axes: Any, rows: Rows, title: str, color: str, label: str) -> None:
    """Two bars a row on a logarithmic axis of ms, and the row's result beside them."""
    for i, row in enumerate(rows):
        ours, rival = row["ours"]["ms_p50"], row["rival"]["ms_p50"]
        axes.barh(i - 0.2, ours, 0.38, color=OURS, label="" if i else "seqkern")
        axes.barh(i + 0.2, rival, 0.38, color=color, label="" if i else label)
        text = result_text(row)
        axes.text(max(ours, rival) * 1.1, i, text, va="center", fontsize=8, color="#333")
    names = [row["title"] for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 4)
    axes.set_xlabel("ms per call, median", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.legend(loc="best", fontsize=8)
    axes.grid(axis="x", which="major", alpha=0.3)


def _attention(axes: Any, rows: Rows) -> None:
    """Time over T of GLA and of causal attention, with bands from p20 to p80."""
    rows = sorted(rows, key=lambda r: r["shape"]["T"])
    lengths = [r["shape"]["T"] for r in rows]
    for key, color, label in (("rival", PEER, "causal SDPA"), ("ours", OURS, "chunk_gla")):
        low, middle, high = ([r[key][q] for r in rows] for q in ("ms_p20", "ms_p50", "ms_p80"))
        axes.plot(lengths, middle, "o-", color=color, label=label)
        axes.fill_between(lengths, low, high, color=color, alpha=0.25)
    for r in rows:
        at = (r["shape"]["T"], r["ours"]["ms_p50"])
        axes.annotate(result_text(r), at, textcoords="offset points", xytext=(5, -12), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("T, tokens", fontsize=8)
    axes.set_ylabel("forward + backward, ms", fontsize=8)
    axes.set_title("GLA against causal attention, same B, T, H, D", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(which="major", alpha=0.3)


def _peak(axes: Any, rows: Rows) -> None:
    """Share of one thread's FMA peak that the forward passes reach, with the bar to reach."""
    for i, row in enumerate(rows):
        share = 100 * row["value"]
        axes.barh(i, share, 0.6, color=OURS)
        axes.text(share + 1, i, result_text(row), va="center", fontsize=8, color="#333")
        if row["bar"]:
            wanted = 100 * float(row["bar"].split()[1])
            axes.plot([wanted, wanted], [i - 0.4, i + 0.4], color="#b03030", lw=2)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 110)
    axes.set_xlabel("% of the float32 FMA peak (red: the bar)", fontsize=8)
    axes.set_title("useful operations of the forward pass", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def _panels(document: dict[str, Any]) -> list[tuple[int, Any]]:
    """Return (number of lines, drawing function) of every panel that has something to show."""
    rows = _timed(document)
    peers = [r for r in rows if r["rival"]["peer"]]
    own = [r for r in rows if not r["rival"]["peer"]]
    attention = [r for r in peers if "SDPA" in r["rival"]["label"]]
    share = [r for r in document["rows"] if r["metric"] == "peak_share" and r["value"] is not None]
    panels: list[tuple[int, Any]] = []
    if peers:
        panels.append((len(peers), lambda axes: _bars(axes, peers, AGAINST_PEERS, PEER, "peer")))
    if len(attention) > 1:
        panels.append((0, lambda axes: _attention(axes, attention)))
    if own:
        panels.append((len(own), lambda axes: _bars(axes, own, AGAINST_OURS, SELF, "the other")))
    if share:
        panels.append((len(share), lambda axes: _peak(axes, share)))
    return panels


def draw(document: dict[str, Any], path: Path) -> bool:
    """Write the plot in the format of its ending.

    Returns False when there is nothing to draw or matplotlib is missing.
    """
    panels = _panels(document)
    if not panels:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    heights = [max(3.5, 0.34 * max(n for n, _ in line) + 1.2) for line in lines]
    columns = min(2, len(panels))
    figure, axes = plt.subplots(
        len(lines),
        columns,
        figsize=(8.5 * columns, sum(heights) + 0.5),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for i, ax in enumerate(axes.flat):
        if i < len(panels):
            panels[i][1](ax)
        else:
            ax.set_visible(False)
    s = document["summary"]
    figure.suptitle(
        f"{s['device']}, ISA {s['isa'].split(';')[0]}, "
        f"{s['threads']} thread(s), torch {s['torch']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch:
        figure.savefig(scratch, dpi=110)
    plt.close(figure)
    return True
