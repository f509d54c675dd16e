# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``python -m constrint``."""

import sys

from constrint._cli import main

if __name__ == "__main__":
    sys.exit(main())
