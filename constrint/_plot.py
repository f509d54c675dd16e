# SPDX-License-Identifier: Apache-2.0
"""The feasible region over two variables, colored by the objective, with the optimum marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from constrint.errors import ConstrintError, ModelError
from constrint.expr import Expr, Operand, Var, const, evaluate
from constrint.model import Model
from constrint.result import Result
from constrint.text.writer import expression_text

MAX_SOLUTIONS = 200_000
MAX_TICKS = 24


def best_per_point(
    model: Model,
    x: str,
    y: str,
    by: Expr | None,
    largest: bool,
    max_nodes: int | None = None,
    time_limit: float | None = None,
) -> dict[tuple[int, int], int]:
    """Return the best value of ``by`` (or the number of solutions) at each feasible (x, y)."""
    best: dict[tuple[int, int], int] = {}
    pick = max if largest else min
    solutions = model.solutions(max_nodes=max_nodes, time_limit=time_limit)
    for number, values in enumerate(solutions):
        if number >= MAX_SOLUTIONS:
            raise ModelError(
                f"plot: {model.title} has more than {MAX_SOLUTIONS} solutions; narrow its domains."
            )
        point = values[x], values[y]
        if by is None:
            best[point] = best.get(point, 0) + 1
        else:
            value = evaluate(by, values)
            best[point] = pick(best.get(point, value), value)
    return best


def plot(
    model: Model,
    x: Var | str,
    y: Var | str,
    path: str | Path,
    by: Operand | None = None,
    largest: bool = False,
    result: Result | None = None,
    max_nodes: int | None = None,
    time_limit: float | None = None,
) -> Path:
    """Draw the feasible pairs of two variables into an image file.

    Args:
        x, y: the variables across and up, or their names.
        path: where the picture goes; its suffix chooses the format.
        by: what colors a pair: its best value among the solutions with that pair. Default: the
            model's first objective, or else the number of solutions.
        largest: whether large values of ``by`` are good.
        result: the answer to mark; solved for when left out.
    Raises:
        ConstrintError: matplotlib is missing.
        ModelError: there is nothing to draw, or far too much, or no such format.
    """
    x, y = (v.name if isinstance(v, Var) else model.variable(v).name for v in (x, y))
    target = None if by is None else const(by)
    if target is None and model.objectives:
        target, largest = model.objectives[0].expr, model.objectives[0].largest
    try:
        import matplotlib
    except ImportError as e:
        raise ConstrintError("plot needs matplotlib: pip install matplotlib") from e
    matplotlib.use("Agg")
    path = _picture(path)
    best = best_per_point(model, x, y, target, largest, max_nodes, time_limit)
    if not best:
        raise ModelError(f"plot: {model.title} has no solution to draw.")
    result = result or model.solve(max_nodes=max_nodes, time_limit=time_limit)
    name = "solutions" if target is None else expression_text(target)
    return _draw(model, (x, y), best, result, name if len(name) < 50 else "objective", path)


def _picture(path: str | Path) -> Path:
    """Return the path of a picture; its suffix must be that of a format there is."""
    from matplotlib.backend_bases import FigureCanvasBase

    path, formats = Path(path), FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        endings = ", ".join(f".{name}" for name in sorted(formats))
        raise ModelError(f"plot: the picture must end in one of {endings}; got {str(path)!r}.")
    return path


def _draw(
    model: Model,
    names: tuple[str, str],
    best: dict[tuple[int, int], int],
    result: Result,
    title: str,
    path: Path,
) -> Path:
    import matplotlib.pyplot as plt

    x, y = names
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    columns, rows = sorted({p[0] for p in best}), sorted({p[1] for p in best})
    across = _positions(axes.xaxis, axes.set_xscale, columns)
    up = _positions(axes.yaxis, axes.set_yscale, rows)
    drawn = axes.scatter(
        [across[p[0]] for p in best],
        [up[p[1]] for p in best],
        c=[float(v) for v in best.values()],
        cmap="viridis",
        marker="s",
        s=max(12, min(260, 90_000 / (len(columns) * len(rows)))),
    )
    figure.colorbar(drawn, ax=axes, label=title)
    if result.found is not None:
        at = across[result.found[x]], up[result.found[y]]
        axes.plot(*at, "*", color="#b03030", markersize=16, markeredgecolor="white")
        word = "optimum" if result.status == "optimal" else "answer"
        label = f"{word}: {x} = {result.found[x]}, {y} = {result.found[y]}"
        if result.objective is not None:
            label += f", {result.objective}"
        axes.set_title(f"{model.title}\n{label}", fontsize=9)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(0.08)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _positions(axis: Any, set_scale: Any, values: list[int]) -> dict[int, float]:
    """Place few values evenly with a tick each, and many values to scale."""
    if len(values) <= MAX_TICKS:
        axis.set_ticks(range(len(values)), [str(v) for v in values])
        return {v: float(i) for i, v in enumerate(values)}
    if values[0] > 0 and values[-1] > 100 * values[0]:
        set_scale("log")
    return {v: float(v) for v in values}
