# SPDX-License-Identifier: Apache-2.0
"""`seqkern check`: every op against its definition in float64, on this machine."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import torch

import seqkern
from seqkern._runtime import environment, library
from seqkern.cli._check_cases import CASES, Case, sizes
from seqkern.errors import BackendUnavailableError, OptionError
from seqkern.testing import Budget, Shape, compare, pooled, run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OUTPUTS = ("o", "ht")
_DRAWS = 4


@contextlib.contextmanager
def capped(isa: str) -> Iterator[str]:
    """Cap the kernels at an instruction set inside the block; yields the one in use.

    Raises:
        BackendUnavailableError: it is not compiled in, or this CPU cannot run it.
    """
    if isa:
        try:
            torch.ops.seqkern.set_isa_cap(isa)
        except RuntimeError as error:
            raise BackendUnavailableError(f"check: {library.reason(error)}") from None
    info = library.cpu_info() or {}
    try:
        yield info["in_use"]
    finally:
        if isa:
            torch.ops.seqkern.set_isa_cap("")


def check(case: Case, shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """Compare one op with its definition; errors are relative to the largest true value.

    The worst error over a few draws stands against what is allowed over the same draws, so that one
    draw on which the reference is lucky decides nothing.
    """
    draws = []
    for seed in range(_DRAWS):
        x = case.inputs(shape, dtype, seed)
        truth = run(case.op, x.double(), backend="reference")
        peer = run(case.op, x, backend="reference")
        budgets = compare(run(case.op, x, backend="cpu"), truth, no_worse_than=peer)
        draws.append((budgets, truth))
    worst = pooled(draws)
    gradients = [b for b in worst if b.tensor not in _OUTPUTS]
    over = [b for b in worst if not b.ok]
    return {
        "op": case.title,
        "dtype": str(dtype).removeprefix("torch."),
        "output": _nearest_to_limit([b for b in worst if b.tensor in _OUTPUTS]),
        "gradient": _nearest_to_limit(gradients) if case.differentiable else None,
        "ok": not over,
        "over": [str(b) for b in over],
    }


def _nearest_to_limit(budgets: Sequence[Budget]) -> dict[str, Any]:
    """Describe the tensor that uses most of what it is allowed."""
    worst = max(budgets, key=lambda b: b.error / b.allowed if b.allowed else float(not b.ok))
    return {
        "tensor": worst.tensor,
        "measure": worst.measure,
        "error": worst.error,
        "allowed": worst.allowed,
    }


def render(row: Mapping[str, Any]) -> str:
    """Lay one row of the table out."""
    output, gradient = row["output"], row["gradient"]
    second = f"{'none':<36}"
    if gradient is not None:
        second = f"{gradient['tensor']:<16}{gradient['error']:<10.1e}{gradient['allowed']:<10.1e}"
    return (
        f"{row['op']:<36}{row['dtype']:<10}{output['error']:<10.1e}{output['allowed']:<10.1e}"
        f"{second}{'ok' if row['ok'] else 'FAILED'}"
    )


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes: a few seconds.")
@click.option(
    "--isa",
    default="",
    metavar="NAME",
    help="Cap the kernels at an instruction set (scalar, avx2, ...), or all in turn.",
)
@click.option("--only", default="", metavar="TEXT", help="Ops whose name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(quick: bool, isa: str, only: str, as_json: bool) -> None:
    """Compare every op with its reference on this machine.

    The truth is the reference in float64. An op passes if its error is at most twice that of the
    reference in the op's own dtype, plus a rounding floor; errors are relative to the largest
    value of the tensor that is nearest to its limit. The exit status is 1 if any op fails.
    """
    problem = library.load_error()
    if problem is not None:
        raise BackendUnavailableError(f"check: {problem}. {library.rebuild_hint()}")
    cases = [case for case in CASES if only in case.title]
    if not cases:
        titles = ", ".join(dict.fromkeys(case.title for case in CASES))
        raise OptionError(f"check: no op's name contains {only!r}; there are: {titles}.")
    rows = []
    for name in _isas() if isa == "all" else [isa]:
        with capped(name) as in_use:
            if not as_json:
                _print_header(in_use)
            for case in cases:
                for dtype in DTYPES.values():
                    row = {"isa": in_use, **check(case, sizes(quick), dtype)}
                    rows.append(row)
                    _print_row(row, as_json)
    failed = sum(not row["ok"] for row in rows)
    if as_json:
        report = {"seqkern": seqkern.__version__, "torch": torch.__version__, "rows": rows}
        report |= {"cpu": environment.cpu_model(), "python": platform.python_version()}
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(f"\n{len(rows) - failed} of {len(rows)} are within what is allowed")
    raise SystemExit(1 if failed or not rows else 0)


def _isas() -> list[str]:
    """Return the compiled instruction sets that this CPU runs."""
    compiled = (library.cpu_info() or {"compiled": []})["compiled"]
    usable = []
    for name in compiled:
        with contextlib.suppress(BackendUnavailableError), capped(name):
            usable.append(name)
    return usable


def _print_header(isa: str) -> None:
    click.echo(f"\n{environment.cpu_model()}, {isa}, {torch.get_num_threads()} threads")
    click.echo(
        f"{'op':<36}{'dtype':<10}{'output':<10}{'allowed':<10}{'worst gradient':<26}{'allowed':<10}"
    )


def _print_row(row: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        return
    click.echo(render(row))
    for line in row["over"]:
        click.echo(f"    {line}")
