# SPDX-License-Identifier: Apache-2.0
"""The exceptions constrint raises; each message says what was given and what to do instead."""

from __future__ import annotations

# So much of a long line is shown around the place of an error.
SHOWN = 120


class ConstrintError(Exception):
    """Base of every error constrint raises on purpose."""


class ModelError(ConstrintError, ValueError):
    """A model is not well formed: an empty domain, a divisor that may be 0, a foreign variable.

    Attributes:
        node: the expression it is about, or None.
    """

    def __init__(self, message: str, node: object = None):
        super().__init__(message)
        self.node = node


class RuleTextError(ConstrintError, ValueError):
    """A text is not in the rule language.

    Attributes:
        line, column: where, counted from 1.
        source: the name of the file or text.
    """

    def __init__(
        self, message: str, line: int = 1, column: int = 1, text: str = "", source: str = "text"
    ):
        self.line, self.column, self.source = line, column, source
        shown = text.expandtabs(1).replace("\0", "?")
        first = max(0, column - 1 - SHOWN // 2) if len(shown) > SHOWN else 0
        shown = ("..." if first else "") + shown[first : first + SHOWN].rstrip("\r")
        place = column - 1 - first + (3 if first else 0)
        caret = f"\n  {shown}\n  {' ' * place}^" if shown.strip() else ""
        super().__init__(f"{source}:{line}:{column}: {message}{caret}")


class InfeasibleError(ConstrintError, RuntimeError):
    """Values were asked of a model that has no solution; the message names the rules that clash."""


class BudgetError(ConstrintError, RuntimeError):
    """The budget ran out before there was an answer; ask again with more nodes or more time."""
