# SPDX-License-Identifier: Apache-2.0
"""The properties share the input makers of the op tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "ops"))
