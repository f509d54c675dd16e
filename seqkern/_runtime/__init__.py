# SPDX-License-Identifier: Apache-2.0
"""Library loading, CPU features, backend choice, settings and errors."""
