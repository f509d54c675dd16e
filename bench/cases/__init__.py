# SPDX-License-Identifier: Apache-2.0
"""One module per suite; importing it fills the registry."""
