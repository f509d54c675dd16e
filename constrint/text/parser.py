# SPDX-License-Identifier: Apache-2.0
"""The rule language, from text to a `Model`; `constrint/README.md` describes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from constrint._arguments import text_of
from constrint._numbers import FACTOR_LIMIT, divisors
from constrint.errors import ModelError, RuleTextError
from constrint.model import Model
from constrint.text.expressions import ExpressionParser, shown
from constrint.text.lexer import Source, Token

MAX_FILES = 100


def parse(text: str, name: str = "text") -> Model:
    """Return the model that a text describes.

    Raises:
        RuleTextError: with line, column and a caret, also for a division by zero or numbers that
            grow too large.
        TypeError: if it is no text.
    """
    text, name = text_of("the rules", text), text_of("the name of the rules", name)
    return _finish(_Parser(Source(text, name), Model(), None, ()))


def read_file(path: str | Path) -> Model:
    """Return the model that a file describes; its `include` lines are relative to the file."""
    path = Path(path)
    return _finish(_Parser(Source(_read(path), str(path)), Model(), path, (path.resolve(),)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise RuleTextError(f"cannot be read ({e.strerror or e})", source=str(path)) from e
    except UnicodeDecodeError as e:
        raise RuleTextError("is not text in UTF-8", source=str(path)) from e


def _finish(parser: _Parser) -> Model:
    """Parse, then compile once, so that what is wrong with the rules is told by position."""
    parser.statements()
    model = parser.model
    try:
        model.flat()
        for goal in model.objectives:
            model.flat((), goal)
    except ModelError as e:
        source, token = parser.places.get(id(e.node), (parser.source, None))
        if token is None:
            raise
        raise source.error(str(e), token) from e
    return model


class _Parser(ExpressionParser):
    """Statements; included files get parsers of their own that share the model."""

    def statements(self) -> None:
        """Read everything."""
        while self.token.kind != "end":
            if self.sees(";"):
                self.take()
                continue
            self.statement()
            if self.token.kind != "end":
                self.expect(";", "at the end of a statement")

    def statement(self) -> None:
        """Read one statement."""
        token, after = self.token, self.tokens[min(self.at + 1, len(self.tokens) - 1)]
        named = after.kind in ("name", "backquoted", "number", "string") or after.text in "(-"
        if token.kind == "name" and named and token.text in _STATEMENTS:
            self.take()
            _STATEMENTS[token.text](self, token)
            return
        label = ""
        if token.kind == "string":
            label = self.take().text
            self.expect(":", "between a label and its rule")
        start = self.token
        rule = self.rule(self.expression(0), start)
        self.checked(lambda: self.model.require(rule, label), start)

    def declare(self, token: Token) -> None:
        """Read ``var NAME in DOMAIN`` or ``var NAME divides NUMBER``."""
        name = self.name("of the variable")
        if self.sees("divides"):
            self.take()
            number_token = self.token
            number = self.integer("to divide")
            if not 1 <= abs(number) <= FACTOR_LIMIT:
                self.fail(f"a number from 1 to {FACTOR_LIMIT} is needed", number_token)
            self.checked(lambda: self.model.int(name.text, divisors(number)), name)
            return
        self.expect("in", "before the values of a variable")
        where = self.token
        if self.sees("["):
            values: Sequence[int] = self.integers()
        else:
            first = self.integer("that the range starts with")
            self.expect("..", "between the ends of a range")
            last, step = self.integer("that the range ends with"), 1
            if self.sees("step"):
                self.take()
                step = self.integer("as the step")
                if step < 1:
                    self.fail("a step of at least 1 is needed", where)
            values = range(first, last + 1, step)
            if not values:
                self.fail(f"{first}..{last} is empty", where)
        self.checked(lambda: self.model.int(name.text, values), name)

    def title(self, token: Token) -> None:
        """Read ``model "NAME"``."""
        if self.token.kind != "string":
            self.fail(f"the model's name in quotes is needed, got {shown(self.token)}")
        self.model.name = self.take().text

    def objective(self, token: Token) -> None:
        """Read ``minimize EXPRESSION`` or ``maximize EXPRESSION``."""
        start = self.token
        target = self.number(self.expression(0), start)
        aim = self.model.minimize if token.text == "minimize" else self.model.maximize
        self.checked(lambda: aim(target), start)

    def order(self, token: Token) -> None:
        """Read ``order NAME smallest, NAME largest, ...``."""
        while True:
            name = self.name("to order by")
            var = self.lookup(name)
            if not self.sees("smallest", "largest"):
                self.fail(f"smallest or largest is needed, got {shown(self.token)}")
            way = self.take().text
            self.model.order((var, way))
            if not self.sees(","):
                return
            self.take()

    def include(self, token: Token) -> None:
        """Read ``include "FILE"`` and that file."""
        if self.token.kind != "string":
            self.fail(f"a file name in quotes is needed, got {shown(self.token)}")
        where = self.take()
        if self.path is None:
            self.fail("only a file can include others, and this text is none", where)
        path = self.path.parent / where.text
        # First of all: what has no such name cannot be resolved either.
        text = self.checked(lambda: _read(path), where)
        resolved = path.resolve()
        if resolved in self.opened:
            chain = " > ".join(p.name for p in (*self.opened, resolved))
            self.fail(f"the files include each other in a circle: {chain}", where)
        self.files[0] += 1
        if self.files[0] > MAX_FILES:
            self.fail(f"more than {MAX_FILES} files are included", where)
        inner = _Parser(Source(text, str(path)), self.model, path, (*self.opened, resolved))
        inner.implicit, inner.places, inner.kept = False, self.places, self.kept
        inner.files = self.files
        inner.statements()


_STATEMENTS: dict[str, Callable[[_Parser, Token], None]] = {
    "var": _Parser.declare,
    "model": _Parser.title,
    "minimize": _Parser.objective,
    "maximize": _Parser.objective,
    "order": _Parser.order,
    "include": _Parser.include,
}


__all__ = ["parse", "read_file"]
