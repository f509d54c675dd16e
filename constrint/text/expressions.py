# SPDX-License-Identifier: Apache-2.0
"""Expressions and rules of the rule language, read by precedence."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from operator import add
from pathlib import Path
from typing import NoReturn, TypeVar

from constrint.errors import ConstrintError, RuleTextError
from constrint.expr import (
    COMPARISONS,
    Expr,
    Rule,
    Var,
    all_different,
    ceil_div,
    const,
    divides,
    maximum,
    minimum,
)
from constrint.model import Model
from constrint.text.lexer import FUNCTIONS, KEYWORDS, Source, Token, tokens

# Names of a text without `var` lines get this domain, as in the first rule files of this kind.
IMPLICIT = range(1, (1 << 30) + 1)
MAX_NESTING = 60
MAX_VALUES = 1 << 20

Node = Expr | Rule | list[int]
T = TypeVar("T")

_LEVELS: dict[str, int] = {"->": 1, "|": 2, "&": 3}
_LEVELS |= dict.fromkeys((*COMPARISONS, "in"), 5)
_LEVELS |= {"%": 6, "+": 7, "-": 7, "*": 8, "//": 8, "^": 10}
_NOT, _MINUS = 4, 9


class ExpressionParser:
    """Reads tokens, expressions and rules of one text into a model."""

    def __init__(self, source: Source, model: Model, path: Path | None, opened: tuple[Path, ...]):
        self.source, self.model, self.path, self.opened = source, model, path, opened
        self.tokens = tokens(source)
        self.at = self.depth = 0
        self.known: dict[str, Var] = {}
        self.implicit = not any(
            t.kind == "name" and t.text in ("var", "include") for t in self.tokens
        )
        # Where a node that may turn out impossible stands; the node is kept so that its id stays.
        self.places: dict[int, tuple[Source, Token]] = {}
        self.kept: list[Node] = []
        self.files = [0]

    @property
    def token(self) -> Token:
        """The token to be read next."""
        return self.tokens[self.at]

    def take(self) -> Token:
        """Read one token."""
        token = self.token
        if token.kind != "end":
            self.at += 1
        return token

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Complain about a token, by default the next one."""
        raise self.source.error(message, token or self.token)

    def sees(self, *texts: str) -> bool:
        """Say whether the next token is one of these signs or words."""
        return self.token.kind in ("sign", "name") and self.token.text in texts

    def expect(self, text: str, why: str) -> Token:
        """Read a certain sign or word."""
        if not self.sees(text):
            self.fail(f"`{text}` is needed {why}, got {shown(self.token)}")
        return self.take()

    def checked(self, make: Callable[[], T], token: Token) -> T:
        """Build something; if the model refuses, complain about ``token``."""
        try:
            return make()
        except RuleTextError:
            raise
        except (ConstrintError, TypeError, ValueError) as e:
            raise self.source.error(str(e), token) from e

    def name(self, what: str) -> Token:
        """Read a name."""
        token = self.token
        if token.kind == "name" and token.text in KEYWORDS:
            self.fail(f"`{token.text}` is a word of the language; write it in backquotes as a name")
        if token.kind not in ("name", "backquoted"):
            self.fail(f"the name {what} is needed, got {shown(token)}")
        return self.take()

    def integer(self, what: str) -> int:
        """Read a whole number with its sign."""
        sign = 1
        while self.sees("-"):
            self.take()
            sign = -sign
        if self.token.kind != "number":
            self.fail(f"the number {what} is needed, got {shown(self.token)}")
        return sign * int(self.take().text)

    def integers(self) -> list[int]:
        """Read a list of whole numbers in square brackets; ``a..b`` in it stands for a range."""
        start = self.take()
        found: list[int] = []
        while not self.sees("]"):
            first = self.integer("in a list")
            last = first
            if self.sees(".."):
                self.take()
                last = self.integer("that a range ends with")
            if len(found) + last - first >= MAX_VALUES:
                self.fail(f"a list of more than {MAX_VALUES} values", start)
            found.extend(range(first, last + 1))
            if not self.sees("]"):
                self.expect(",", "between the values of a list")
        self.take()
        if not found:
            self.fail("an empty list", start)
        return found

    def rule(self, node: Node, token: Token) -> Rule:
        """Require a node to be a rule."""
        if not isinstance(node, Rule):
            self.fail("a rule is needed here, such as x <= 3; this is a number", token)
        return node

    def number(self, node: Node, token: Token) -> Expr:
        """Require a node to be an expression."""
        if isinstance(node, Rule):
            self.fail("a number is needed here; write count(...) for 1 where a rule holds", token)
        if isinstance(node, list):
            if len(node) != 1:
                self.fail("a list of several values stands only beside ==, != and in", token)
            return const(node[0])
        return node

    def expression(self, least: int) -> Node:
        """Read an expression whose operators bind at least as tightly as ``least``."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            self.fail(f"nested more than {MAX_NESTING} levels deep")
        start = self.token
        left = self.prefix()
        while self.sees(*_LEVELS) and _LEVELS[self.token.text] >= least:
            if self.sees("+", "-"):
                left = self.sum_after(self.number(left, start))
                continue
            token = self.take()
            level = _LEVELS[token.text]
            if level == 5 and least == 5:
                self.fail("comparisons do not chain; write two rules joined by &", token)
            right_start = self.token
            right = self.expression(level if token.text in ("->", "^") else level + 1)
            left = self.join(token, left, start, right, right_start)
            if level == 5 and self.sees(*COMPARISONS, "in"):
                self.fail("comparisons do not chain; write two rules joined by &")
        self.depth -= 1
        return left

    def sum_after(self, first: Expr) -> Expr:
        """Read the terms that are added to ``first``; all at once, for a sum may have thousands."""
        terms = list(first.args) if first.op == "+" else [first]
        while self.sees("+", "-"):
            token = self.take()
            start = self.token
            term = self.number(self.expression(_LEVELS["+"] + 1), start)
            if token.text == "-":
                term = -term
            self.remember(term, token)
            if len(terms) == 1 and terms[0].op == term.op == "const":
                terms = [self.checked(partial(add, terms[0], term), token)]
            else:
                terms.append(term)
        node = Expr("+", tuple(terms)) if len(terms) > 1 else terms[0]
        self.remember(node, token)
        return node

    def prefix(self) -> Node:
        """Read signs and negations, and what they stand before."""
        token = self.token
        if self.sees("-", "+"):
            negative = False
            while self.sees("-", "+"):
                negative ^= self.take().text == "-"
            start = self.token
            inner = self.number(self.expression(_MINUS), start)
            return -inner if negative else inner
        if self.sees("!"):
            negated = False
            while self.sees("!"):
                self.take()
                negated = not negated
            start = self.token
            rule = self.rule(self.expression(_NOT), start)
            return ~rule if negated else rule
        return self.atom(token)

    def atom(self, token: Token) -> Node:
        """Read a number, a name, a call, a list or something in brackets."""
        if token.kind == "number":
            self.take()
            return self.checked(lambda: const(int(token.text)), token)
        if self.sees("("):
            self.take()
            inner = self.expression(0)
            self.expect(")", "to close the bracket")
            return inner
        if self.sees("["):
            return self.integers()
        if token.kind == "name" and token.text in FUNCTIONS:
            return self.call(self.take())
        if token.kind in ("name", "backquoted") and (
            token.kind == "backquoted" or token.text not in KEYWORDS
        ):
            return self.lookup(self.take())
        self.fail(f"a number, a name or a bracket is needed, got {shown(token)}")

    def call(self, token: Token) -> Node:
        """Read the arguments of a function and apply it."""
        self.expect("(", f"after {token.text}")
        args: list[tuple[Node, Token]] = []
        while True:
            start = self.token
            args.append((self.expression(0), start))
            if not self.sees(","):
                break
            self.take()
        self.expect(")", "to close the bracket")
        wanted = {"abs": 1, "count": 1, "ceil_div": 2, "divides": 2}.get(token.text)
        if wanted is not None and len(args) != wanted:
            self.fail(f"{token.text} takes {wanted} argument(s), got {len(args)}", token)
        if token.text == "count":
            return self.checked(self.rule(*args[0]).count, token)
        numbers = [self.number(*a) for a in args]
        node = self.checked(lambda: _CALLS[token.text](*numbers), token)
        self.remember(node, token)
        return node

    def lookup(self, token: Token) -> Var:
        """Return the variable of a name."""
        known = self.model.variables
        if len(self.known) < len(known):
            self.known.update((v.name, v) for v in known[len(self.known) :])
        if token.text in self.known:
            return self.known[token.text]
        if self.implicit:
            return self.model.int(token.text, IMPLICIT)
        near = difflib.get_close_matches(token.text, self.known, 1)
        hint = f"; did you mean `{near[0]}`?" if near else "; declare it with a var line before"
        self.fail(f"unknown name `{token.text}`{hint}", token)

    def join(self, token: Token, left: Node, start: Token, right: Node, right_start: Token) -> Node:
        """Apply a binary operator."""
        op = token.text
        if op in ("->", "|", "&"):
            a, b = self.rule(left, start), self.rule(right, right_start)
            pick = {"->": a.implies, "|": a.__or__, "&": a.__and__}[op]
            return self.checked(lambda: pick(b), token)
        if op in ("in", "==", "!=") and (isinstance(right, list) or isinstance(left, list)):
            return self.membership(token, left, start, right, right_start)
        if op == "in":
            self.fail("a list such as [1, 2, 4] is needed after in", right_start)
        x, y = self.number(left, start), self.number(right, right_start)
        node = self.checked(lambda: _OPERATORS[op](x, y), token)
        self.remember(node, token)
        return node

    def membership(
        self, token: Token, left: Node, start: Token, right: Node, right_start: Token
    ) -> Rule:
        """Apply == or != or in to an expression and a list."""
        if isinstance(left, list) and not isinstance(right, list) and token.text != "in":
            left, right, start = right, left, right_start
        if not isinstance(right, list):
            self.fail("a list such as [1, 2, 4] is needed after in", right_start)
        x, values = self.number(left, start), right
        if len(values) == 1 and token.text != "in":
            return x == values[0] if token.text == "==" else x != values[0]
        rule = self.checked(lambda: x.isin(values), token)
        return ~rule if token.text == "!=" else rule

    def remember(self, node: Node, token: Token) -> None:
        """Note where a node stands, and those that it was made of and that no token names."""
        self.kept.append(node)
        stack: list[Node] = [node]
        while stack:
            item = stack.pop()
            if not isinstance(item, list) and id(item) not in self.places:
                self.places[id(item)] = (self.source, token)
                if item.op not in ("var", "const"):
                    stack.extend(item.args)


_OPERATORS: dict[str, Callable[[Expr, Expr], Expr | Rule]] = {
    "*": Expr.__mul__,
    "//": Expr.__floordiv__,
    "%": Expr.__mod__,
    "^": Expr.__pow__,
    "==": Expr.__eq__,
    "!=": Expr.__ne__,
    "<": Expr.__lt__,
    "<=": Expr.__le__,
    ">": Expr.__gt__,
    ">=": Expr.__ge__,
}
_CALLS: dict[str, Callable[..., Expr | Rule]] = {
    "max": maximum,
    "min": minimum,
    "abs": abs,
    "ceil_div": ceil_div,
    "all_different": all_different,
    "divides": divides,
}


def shown(token: Token) -> str:
    """Return a token as messages quote it."""
    return token.text if token.kind == "end" else f"`{token.text}`"
