# SPDX-License-Identifier: Apache-2.0
"""What a finished run leaves: a table, a JSON file, a plot and one line of verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seqkern._runtime.files import whole
from seqkern.train.checkpoint import PLOT, RESULT
from seqkern.train.compare import COMPILED, REFERENCE


@dataclass
class Result:
    """Everything measured in a run; ``seconds`` are wall-clock, speeds are per second.

    Attributes:
        settings: the `TrainSettings` of the run, as plain values, with the precision in use.
        text: name, digest and the byte counts of both parts of the text.
        parameters: trainable numbers in the model.
        steps, seconds, epochs: of training.
        bits_per_byte: of the held-out text.
        baselines: bits per byte of the same text, by name.
        train_tokens_per_second, decode_tokens_per_second: of this run.
        step_seconds: the same step timed each way, by name; empty when not asked for.
        step_shape: [sequences, bytes] of that step.
        sample: generated text.
        loss, validation: [step, seconds, bits per byte] along the run.
        machine: versions and processor.
    """

    settings: dict[str, Any]
    text: dict[str, Any]
    parameters: int
    steps: int
    seconds: float
    epochs: float
    bits_per_byte: float
    baselines: dict[str, float]
    train_tokens_per_second: float
    decode_tokens_per_second: float
    sample: str
    machine: dict[str, Any]
    step_seconds: dict[str, float] = field(default_factory=dict)
    step_shape: list[int] = field(default_factory=list)
    loss: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)

    def speedup(self, over: str) -> float | None:
        """Return how many times faster the compiled step is, or None if it was not timed."""
        if COMPILED not in self.step_seconds or over not in self.step_seconds:
            return None
        return self.step_seconds[over] / self.step_seconds[COMPILED]


def verdict(result: Result) -> tuple[bool, str]:
    """Judge a run: good if it beats the uniform model, gzip, xz and, timed, the reference."""
    rivals = {name: result.baselines[name] for name in ("gzip", "xz", "uniform")}
    best = min(rivals, key=lambda name: rivals[name])
    learned = result.bits_per_byte < rivals[best]
    relation = "below" if learned else "not below"
    line = (
        f"{result.bits_per_byte:.2f} bits/byte after {result.seconds:.0f} s of training, "
        f"{relation} {best} ({rivals[best]:.2f})"
    )
    ratio = result.speedup(REFERENCE)
    fast = ratio is None or ratio > 1
    if ratio is not None:
        line += f"; a training step is {ratio:.1f}x the speed of the reference backend"
    elif result.step_seconds:
        line += "; the compiled kernels are not there (`seqkern info` says why)"
        fast = False
    good = learned and fast
    return good, f"{'PASS' if good else 'FAIL'}: {line}"


def table(result: Result) -> str:
    """Lay the figures of a run out as text."""
    text = result.text
    lines = [
        "",
        f"model      {result.settings['layer']}, {result.parameters / 1e6:.2f} M parameters, "
        f"{result.settings['precision']}",
        f"text       {text['name']}: {text['train_bytes']:,} bytes to train on, the last "
        f"{text['held_out_bytes']:,} held out",
        f"training   {result.steps} steps, {result.seconds:.0f} s, {result.epochs:.1f} times "
        "through the text",
        "",
        "bits per byte of the held-out text",
    ]
    scores = {"this model": result.bits_per_byte, **result.baselines}
    lines += [f"  {name:<28}{bits:7.3f}" for name, bits in scores.items()]
    lines += [
        "",
        "tokens per second (1 token = 1 byte)",
        f"  {'training':<28}{result.train_tokens_per_second:9,.0f}",
        f"  {'decoding, one sequence':<28}{result.decode_tokens_per_second:9,.0f}",
    ]
    if result.step_seconds:
        sequences, length = result.step_shape
        lines += ["", f"one training step of {sequences} x {length} bytes"]
        fastest = min(result.step_seconds.values())
        for name, seconds in result.step_seconds.items():
            lines.append(f"  {name:<28}{1e3 * seconds:9,.0f} ms{seconds / fastest:8.1f}x the time")
    lines += ["", "sample"]
    lines += [f"  | {_printable(line)}" for line in result.sample.splitlines()]
    return "\n".join([*lines, ""])


def _printable(line: str) -> str:
    """Replace what could move the cursor or ring the bell of a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def write_json(result: Result, directory: Path) -> Path:
    """Write the whole result as JSON."""
    path = directory / RESULT
    with whole(path) as scratch:
        scratch.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return path


def write_plot(result: Result, directory: Path) -> Path | None:
    """Draw the losses over time with the baselines; None when matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seconds = [point[1] for point in result.loss]
    losses = [point[2] for point in result.loss]
    axes.plot(seconds, losses, color="#b8c4d6", linewidth=0.8, label="training batches")
    axes.plot(
        [point[1] for point in result.validation],
        [point[2] for point in result.validation],
        color="#1f4e9c",
        marker="o",
        markersize=4,
        label="held-out text",
    )
    colors = {"gzip": "#c77700", "xz": "#a63232", "xz after the training text": "#5b8c3a"}
    for name, color in colors.items():
        bits = result.baselines[name]
        axes.axhline(bits, color=color, linewidth=1, linestyle="--", label=f"{name}: {bits:.2f}")
    axes.set_xlabel("training time [s]")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(0, min(8.2, max(losses, default=8.0) * 1.05))
    axes.set_title(
        f"{result.settings['layer']}, {result.parameters / 1e6:.1f} M parameters: "
        f"{result.bits_per_byte:.2f} bits per byte"
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    path = directory / PLOT
    with whole(path) as scratch:
        figure.savefig(scratch, dpi=120)
    return path
