# SPDX-License-Identifier: Apache-2.0
"""``python -m constrint FILE``: solve a model written in the rule language."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from constrint import backend
from constrint.errors import BudgetError, ConstrintError
from constrint.explain import Conflict
from constrint.model import Model
from constrint.result import Result, Status
from constrint.text import parse, read_file

SOLVED, INFEASIBLE, ERROR, EXHAUSTED, INTERRUPTED = 0, 1, 2, 3, 130


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"seconds must be a number of at least 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m constrint",
        description="Solve a model written in the rule language.",
        epilog="Exit status: 0 solved, 1 no solution, 2 an error in the file or the command, "
        "3 the budget ran out first, 130 Ctrl-C.",
    )
    parser.add_argument("file", metavar="FILE", help="the model; - reads standard input")
    parser.add_argument("--all", action="store_true", help="print every solution")
    parser.add_argument("--count", action="store_true", help="print the number of solutions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--explain", action="store_true", help="without a solution name the rules that clash"
    )
    parser.add_argument("--time-limit", type=_seconds, metavar="S", help="give up after S seconds")
    parser.add_argument("--nodes", type=int, metavar="N", help="give up after N nodes")
    parser.add_argument(
        "--plot",
        nargs=3,
        metavar=("X", "Y", "PNG"),
        help="draw the solutions over two variables, colored by the objective (needs matplotlib)",
    )
    parser.add_argument("--version", action="version", version=f"constrint ({backend()} engine)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    try:
        options = _parser().parse_args(arguments)
        if options.file == "-":
            model = parse(sys.stdin.read(), "standard input")
        else:
            model = read_file(options.file)
        return _run(model, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BudgetError as e:
        print(f"budget: {e}", file=sys.stderr)
        return EXHAUSTED
    except BrokenPipeError:
        # Whoever read the output has left; Python would complain again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except (ConstrintError, UnicodeDecodeError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return ERROR


def _run(model: Model, options: argparse.Namespace) -> int:
    budget = {"max_nodes": options.nodes, "time_limit": options.time_limit}
    if options.count:
        number = model.count(**budget)
        print(json.dumps({"count": number}) if options.json else number)
        return SOLVED if number else INFEASIBLE
    if options.all:
        return _print_all(model, options, budget)
    result = model.solve(**budget)
    clash = None
    if result.status == Status.INFEASIBLE and options.explain:
        clash = _clash(model, options)
    if options.json:
        print(json.dumps(_as_json(result, clash), indent=1))
    else:
        print(result if clash is None else clash)
    if result and options.plot:
        from constrint._plot import plot

        x, y, path = options.plot
        plot(model, x, y, path, result=result, **budget)
        print(f"plot: {path}", file=sys.stderr)
    if result:
        return SOLVED
    return INFEASIBLE if result.status == Status.INFEASIBLE else EXHAUSTED


def _print_all(model: Model, options: argparse.Namespace, budget: dict[str, Any]) -> int:
    number = 0
    for values in model.solutions(**budget):
        number += 1
        line = json.dumps(values) if options.json else _line(values)
        print(line)
    if not number:
        clash = _clash(model, options) if options.explain else None
        if clash is not None:
            print(json.dumps({"conflict": _conflict(clash)}) if options.json else clash)
        elif not options.json:
            print(f"{model.title}: no solution")
    return SOLVED if number else INFEASIBLE


def _clash(model: Model, options: argparse.Namespace) -> Conflict:
    return model.conflict(10.0 if options.time_limit is None else options.time_limit)


def _line(values: dict[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _conflict(clash: Conflict) -> dict[str, Any]:
    return {
        "rules": list(clash.rules),
        "domains": list(clash.domains),
        "lines": list(clash.lines),
        "minimal": clash.minimal,
    }


def _as_json(result: Result, clash: Conflict | None) -> dict[str, Any]:
    stats = result.stats
    found: dict[str, Any] = {
        "status": str(result.status),
        "values": result.found,
        "objectives": list(result.objectives),
        "bounds": list(result.bounds),
        "nodes": stats.nodes,
        "propagations": stats.propagations,
        "seconds": stats.seconds,
        "backend": stats.backend,
    }
    if clash is not None:
        found["conflict"] = _conflict(clash)
    return found
