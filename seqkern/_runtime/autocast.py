# SPDX-License-Identifier: Apache-2.0
"""A region that autocast does not reach."""

import contextlib

import torch


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Let products keep their type: a definition is not made of autocast's 16 bits."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
