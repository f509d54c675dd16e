# SPDX-License-Identifier: Apache-2.0
"""Whether autocast is on, and a region that it does not reach."""

import contextlib

import torch


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Let products keep their type: a definition is not made of autocast's 16 bits."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def autocasts(device_type: str) -> bool:
    """Tell whether autocast is on for a device type, of which some know no autocast."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
