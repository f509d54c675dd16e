# SPDX-License-Identifier: Apache-2.0
"""Text of the rule language cut into tokens that know where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass

from constrint.errors import RuleTextError

FUNCTIONS = ("max", "min", "abs", "ceil_div", "count", "all_different", "divides")
STATEMENTS = ("var", "model", "minimize", "maximize", "order", "include")
KEYWORDS = frozenset(
    (*FUNCTIONS, *STATEMENTS, "in", "and", "or", "not", "step", "smallest", "largest")
)
# Of the largest number there is, see expr.MAX_BITS.
MAX_DIGITS = 1234

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<number>[0-9]+)(?![A-Za-z_])
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | `(?P<quotedname>[A-Za-z_][A-Za-z0-9_]*)`
      | "(?P<string>(?:[^"\\\n]|\\[\\"n])*)"
      | (?P<sign>\.\.|->|=>|==|!=|<=|>=|//|\*\*|[-+*%^<>()\[\],;:|&!~])
    """,
    re.VERBOSE,
)
_ALIASES = {"=>": "->", "**": "^", "and": "&", "or": "|", "not": "!", "~": "!"}
_ESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


@dataclass(frozen=True)
class Token:
    """One token: its kind (number, name, string, sign, end), its text and where it starts."""

    kind: str
    text: str
    line: int
    column: int


@dataclass(frozen=True)
class Source:
    """A text and what to call it in messages."""

    text: str
    name: str = "text"

    def error(self, message: str, token: Token) -> RuleTextError:
        """Return an error that points at a token."""
        lines = self.text.split("\n")
        line = lines[token.line - 1] if token.line <= len(lines) else ""
        return RuleTextError(message, token.line, token.column, line, self.name)


def tokens(source: Source) -> list[Token]:
    """Return the tokens of a text; the last one is of kind "end"."""
    text, found = source.text, []
    at, line, start = 0, 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        here = Token("sign", text[at], line, at - start + 1)
        if match is None:
            raise source.error(_complaint(text, at), here)
        kind, value = match.lastgroup or "", match.group(match.lastgroup or 0)
        if kind == "number" and len(value) > MAX_DIGITS:
            raise source.error(f"a number of {len(value)} digits; {MAX_DIGITS} is the limit", here)
        if kind == "string":
            value = re.sub(r"\\.", lambda m: _ESCAPED[m.group()], value)
        if kind == "name" and value in ("and", "or", "not"):
            kind = "sign"
        if kind == "sign":
            value = _ALIASES.get(value, value)
        if kind != "space":
            kind = "backquoted" if kind == "quotedname" else kind
            found.append(Token(kind, value, line, at - start + 1))
        breaks = text.count("\n", at, match.end())
        if breaks:
            line += breaks
            start = text.rindex("\n", at, match.end()) + 1
        at = match.end()
    found.append(Token("end", "end of text", line, at - start + 1))
    return found


def _complaint(text: str, at: int) -> str:
    char = text[at]
    if char == '"':
        return "this string has no end on its line, or an unknown escape"
    if char == "`":
        return "a name in backquotes is needed, such as `in`"
    if char == "=":
        return "write == for equality"
    if char == "/":
        return "write // for division (it rounds down)"
    if char == "." or char.isdigit():
        return "only whole numbers are known"
    return f"{char!r} is not part of the language"
