# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure a suite, print its table, write JSON and a plot."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import click
import torch

from bench import machine, plots, registry, report
from bench.runner import Options, Result, Runner
from seqkern._runtime import library
from seqkern._runtime.files import scratch, whole
from seqkern.train.settings import MAX_THREADS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def _run_tests() -> str:
    """Run the op tests on this checkout; "passed" or "failed"."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/ops"]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    return "passed" if done.returncode == 0 else "failed"


def _recycle_memory() -> None:
    """Start again under glibc settings that keep freed memory; returns when they hold already."""
    if not machine.recycles_memory():
        sys.stdout.flush()
        arguments = [sys.executable, "-m", "bench", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **machine.RECYCLING})


def _write(path: Path, document: dict) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(json.dumps(document, indent=1) + "\n")


def _target(option: str, path: Path | None, base: Path) -> Path | None:
    """Return where ``option`` writes, seen from ``base``; refuse what nothing can be written to.

    Raises:
        click.UsageError: a folder has that name, or the disk refuses.
    """
    if path is None:
        return None
    path = base / path
    part = scratch(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as e:
        raise click.UsageError(f"{option}: {path} cannot be written: {e.strerror}.") from e
    return path


def _finite(ctx: click.Context, option: click.Parameter, value: float) -> float:
    """Refuse what click takes to be in any range."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _measure(runner: Runner, rows: list[registry.Row]) -> list[Result]:
    results = []
    for i, row in enumerate(rows, 1):
        click.echo(f"[{i}/{len(rows)}] {row.title} ...", err=True, nl=False)
        result = runner.run(row)
        results.append(result)
        click.echo(f" {report.result_text(result.as_dict())}", err=True)
    return results


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("suite_name", metavar="[SUITE]", required=False)
@click.option("--suite", default=None, help="The suite to run (default: linear_attention).")
@click.option(
    "--only",
    multiple=True,
    help="Rows whose id contains this, or matches it as a shell pattern. May be given again.",
)
@click.option("--list", "list_rows", is_flag=True, help="List the rows and stop.")
@click.option(
    "--seconds-per-row",
    default=6.0,
    show_default=True,
    type=click.FloatRange(min=0.01),
    callback=_finite,
    help="Time budget of one row; warm-up and checks come on top.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_THREADS),
    help="Threads of the rows that do not set their own.",
)
@click.option("--isa", default="", help="Cap our kernels' instruction set (scalar, avx2, ...).")
@click.option("--quick", is_flag=True, help="Smallest sizes: does it run? Nothing is judged.")
@click.option(
    "--recycle-memory",
    is_flag=True,
    help="Keep freed memory in the process (glibc settings, for ours and the peers alike), as "
    "allocators for training do; otherwise the system hands out new pages for every large tensor.",
)
@click.option("--run-tests", is_flag=True, help="Run tests/ops first; no speed-ups if it is red.")
@click.option(
    "--tests",
    "tests_word",
    default="not run",
    type=click.Choice(["passed", "not run"]),
    help="State of the tests to record when they were run before on this commit.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where records go.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path),
    help=f"Where the picture goes ({', '.join(plots.ENDINGS)}).",
)
@click.option("--relative-to", type=click.Path(path_type=Path), default=Path(), hidden=True)
def main(
    suite_name: str | None,
    suite: str | None,
    only: tuple[str, ...],
    list_rows: bool,
    seconds_per_row: float,
    threads: int,
    isa: str,
    quick: bool,
    recycle_memory: bool,
    run_tests: bool,
    tests_word: str,
    json_path: Path | None,
    plot_path: Path | None,
    relative_to: Path,
) -> None:
    """Measure SUITE, turn by turn with its peers, and judge it against its bars.

    Writes bench/results/SUITE.json and .png (with --isa: SUITE-ISA; with --only or --quick nothing
    unless --json or --plot name a file). Exits with 1 when a row or its check fails, not when a
    bar is missed.
    """
    if suite and suite_name and suite != suite_name:
        raise click.UsageError(f"the suite is either {suite_name} or --suite {suite}: name one.")
    name = suite or suite_name or "linear_attention"
    try:
        rows = registry.rows(name, only)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    if not rows:
        raise click.UsageError(f"no row of {name} matches {' '.join(only)}; see --list.")
    if list_rows:
        for row in rows:
            click.echo(row.id)
        return
    if not only and not quick:
        stem = f"{name}-{isa}" if isa else name
        json_path = json_path or RESULTS / f"{stem}.json"
        plot_path = plot_path or RESULTS / f"{stem}.png"
    if plot_path is not None and plot_path.suffix.lower() not in plots.ENDINGS:
        raise click.UsageError(f"--plot must end in {', '.join(plots.ENDINGS)}, got {plot_path}.")
    json_path = _target("--json", json_path, relative_to)
    plot_path = _target("--plot", plot_path, relative_to)
    if recycle_memory:
        _recycle_memory()
    tests = _run_tests() if run_tests else tests_word
    torch.set_num_threads(threads)
    try:
        runner = Runner(Options(seconds_per_row, threads, isa, quick, tests))
    except RuntimeError as e:
        raise click.UsageError(library.reason(e)) from e
    results = _measure(runner, rows)
    document = runner.report(name, results)
    _print(document)
    try:
        if json_path is not None:
            _write(json_path, document)
            click.echo(f"records: {json_path}")
        if plot_path is not None and plots.draw(document, plot_path):
            click.echo(f"plot: {plot_path}")
    except OSError as e:
        raise click.ClickException(f"the results cannot be written: {e.strerror}.") from e
    if document["summary"]["withheld"] or document["summary"]["failed"]:
        raise SystemExit(1)


def _print(document: dict) -> None:
    click.echo()
    click.echo(report.heading(document["summary"]))
    click.echo()
    click.echo(report.table(document["rows"]))
    lines = report.notes(document["rows"])
    if lines:
        click.echo(f"\n{lines}")
    click.echo(f"\n{report.verdict(document['summary'])}")


if __name__ == "__main__":
    main()
