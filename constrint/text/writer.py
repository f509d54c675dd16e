# SPDX-License-Identifier: Apache-2.0
"""Models, rules and expressions as text in the rule language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from constrint.expr import Expr, Rule, Var
from constrint.text.lexer import KEYWORDS

if TYPE_CHECKING:
    from constrint.model import Model

# How tightly an operator binds; `%` takes whole sums on both sides.
REMAINDER, SUM, PRODUCT, SIGN, POWER, ATOM = range(4, 10)
IMPLIES, OR, AND, NOT = range(4)
_BINARY = {"*": PRODUCT, "//": PRODUCT, "%": REMAINDER, "**": POWER}


def name_text(name: str) -> str:
    """Return a name, in backquotes where it is a word of the language."""
    return f"`{name}`" if name in KEYWORDS else name


def quoted(text: str) -> str:
    """Return a string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def expression_text(expr: Expr) -> str:
    """Return an expression as text."""
    return _expression(expr)[0]


def rule_text(rule: Rule) -> str:
    """Return a rule as text."""
    return _rule(rule)[0]


def _wrap(part: tuple[str, int], least: int) -> str:
    text, binds = part
    return text if binds >= least else f"({text})"


def _expression(expr: Expr) -> tuple[str, int]:
    op, args = expr.op, expr.args
    if op == "const":
        return str(expr.value), (ATOM if expr.value >= 0 else SIGN)
    if isinstance(expr, Var):
        return name_text(expr.name), ATOM
    if op == "bool":
        return f"count({rule_text(args[0])})", ATOM
    parts = [_expression(a) for a in args]
    if op in ("max", "min"):
        return f"{op}({', '.join(text for text, _ in parts)})", ATOM
    if op == "neg":
        return f"-{_wrap(parts[0], POWER)}", SIGN
    if op == "+":
        return "".join(_terms(expr, parts)), SUM
    if op == "*":
        first, *rest = parts
        return " * ".join([_wrap(first, PRODUCT), *(_wrap(p, SIGN) for p in rest)]), PRODUCT
    if op == "//":
        return f"{_wrap(parts[0], PRODUCT)} // {_wrap(parts[1], SIGN)}", PRODUCT
    if op == "%":
        # Brackets that the language does not need: other languages read `a + b % c` differently.
        return f"{_wrap(parts[0], POWER)} % {_wrap(parts[1], POWER)}", REMAINDER
    return f"{_wrap(parts[0], ATOM)} ^ {_wrap(parts[1], ATOM)}", POWER


def _terms(expr: Expr, parts: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield the terms of a sum with their signs; `a + -b` reads `a - b`."""
    for k, (arg, part) in enumerate(zip(expr.args, parts, strict=True)):
        if k == 0:
            yield _wrap(part, PRODUCT)
        elif arg.op == "neg":
            yield f" - {_wrap(_expression(arg.args[0]), PRODUCT)}"
        elif arg.op == "const" and arg.value < 0:
            yield f" - {-arg.value}"
        else:
            yield f" + {_wrap(part, PRODUCT)}"


def _rule(rule: Rule) -> tuple[str, int]:
    op, args = rule.op, rule.args
    if op in ("and", "or"):
        if not args:
            return ("0 == 0" if op == "and" else "0 == 1"), ATOM
        binds, sign = (AND, " & ") if op == "and" else (OR, " | ")
        if len(args) == 1:
            return _rule(args[0])
        return sign.join(_wrap(_rule(a), binds + 1) for a in args), binds
    if op == "not":
        return f"!({rule_text(args[0])})", ATOM
    if op == "implies":
        first, second = (_wrap(_rule(a), IMPLIES + 1) for a in args)
        return f"{first} -> {second}", IMPLIES
    texts = [expression_text(a) for a in args]
    if op == "in":
        if not rule.values:
            return "0 == 1", ATOM
        return f"{texts[0]} in [{', '.join(map(str, rule.values))}]", ATOM
    if op == "alldifferent":
        if not args:
            return "0 == 0", ATOM
        return f"all_different({', '.join(texts)})", ATOM
    return f"{texts[0]} {op} {texts[1]}", ATOM


def domain_text(values: Sequence[int]) -> str:
    """Return a domain as text."""
    if isinstance(values, range) and (values.step == 1 or values[0] + values.step < values[-1]):
        step = "" if values.step == 1 else f" step {values.step}"
        return f"{values[0]}..{values[-1]}{step}"
    return f"[{', '.join(map(str, values))}]"


def model_text(model: Model) -> str:
    """Return a whole model as text; `parse` gives back a model of the same meaning."""
    lines = [f"model {quoted(model.name)};"] if model.name else []
    for var, domain in zip(model.variables, model.domains, strict=True):
        lines.append(f"var {name_text(var.name)} in {domain_text(domain)};")
    for item in model.rules:
        label = f"{quoted(item.label)}: " if item.label else ""
        lines.append(f"{label}{rule_text(item.rule)};")
    for goal in model.objectives:
        word = "maximize" if goal.largest else "minimize"
        lines.append(f"{word} {expression_text(goal.expr)};")
    if model.ordering:
        choices = ", ".join(f"{name_text(v.name)} {way}" for v, way in model.ordering)
        lines.append(f"order {choices};")
    return "".join(f"{line}\n" for line in lines)
