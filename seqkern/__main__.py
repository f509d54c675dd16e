# SPDX-License-Identifier: Apache-2.0
"""Lets ``python -m seqkern`` stand in for the `seqkern` command."""

from seqkern.cli import main

main()
