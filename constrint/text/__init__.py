# SPDX-License-Identifier: Apache-2.0
"""The rule language: `parse` and `read_file` read models, `model_text` writes them."""

from constrint.text.parser import parse, read_file
from constrint.text.writer import model_text

__all__ = ["model_text", "parse", "read_file"]
