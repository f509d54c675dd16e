# SPDX-License-Identifier: Apache-2.0
"""`seqkern bench`: hands over to the benchmark runner of a source checkout."""

import subprocess
import sys
from pathlib import Path

import click

import seqkern
from seqkern.errors import SeqkernError


class BenchNotFoundError(SeqkernError, FileNotFoundError):
    """The benchmarks are not part of an installed package."""


def find_checkout(start: Path) -> Path:
    """Return the folder that holds ``bench/``: the one of this package, or ``start``.

    Raises:
        BenchNotFoundError: neither is a source checkout.
    """
    for root in (Path(seqkern.__file__).resolve().parent.parent, start):
        if (root / "bench" / "__main__.py").is_file():
            return root
    raise BenchNotFoundError(
        "bench: the benchmark runner is not part of an installed package, and there is no `bench` "
        f"folder in {start}. Run `seqkern bench` or `make bench` from the root of a source "
        "checkout."
    )


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Measure the ops against their peers; all arguments go to ``python -m bench``.

    It runs in the checkout, and takes the files that it is to write as named from here.
    """
    here = Path.cwd()
    root = find_checkout(here)
    command = [sys.executable, "-m", "bench", "--relative-to", str(here), *arguments]
    raise SystemExit(subprocess.call(command, cwd=root))
