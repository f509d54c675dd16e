# SPDX-License-Identifier: Apache-2.0
"""An exact solver for models of integer variables: products, divisibility, logic, objectives.

>>> from constrint import Model, divides
>>> m = Model("a tile")
>>> rows, columns = m.int("rows", [8, 16, 32]), m.int("columns", 1, 64)
>>> m.require(rows * columns <= 500, "it fits")
<rows * columns <= 500>
>>> m.require(divides(columns, 96), "columns divide the width")
<96 % columns == 0>
>>> m.maximize(rows * columns).solve().values
{'rows': 32, 'columns': 12}
"""

from constrint._numbers import divisors
from constrint._plot import plot
from constrint._search import backend
from constrint.errors import (
    BudgetError,
    ConstrintError,
    InfeasibleError,
    ModelError,
    RuleTextError,
)
from constrint.explain import Conflict, Violation, WhyNot
from constrint.expr import (
    Expr,
    Rule,
    Var,
    all_different,
    all_of,
    any_of,
    ceil_div,
    divides,
    maximum,
    minimum,
    total,
)
from constrint.model import Model
from constrint.result import Result, Stats, Status
from constrint.text import model_text, parse, read_file

__all__ = [
    "BudgetError",
    "Conflict",
    "ConstrintError",
    "Expr",
    "InfeasibleError",
    "Model",
    "ModelError",
    "Result",
    "Rule",
    "RuleTextError",
    "Stats",
    "Status",
    "Var",
    "Violation",
    "WhyNot",
    "all_different",
    "all_of",
    "any_of",
    "backend",
    "ceil_div",
    "divides",
    "divisors",
    "maximum",
    "minimum",
    "model_text",
    "parse",
    "plot",
    "read_file",
    "total",
]
