# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of seqkern: a registry of cases, one interleaving runner, tables, JSON and plots.

Run ``python -m bench`` from the root of the checkout; ``python -m bench --list`` shows the rows.
"""
