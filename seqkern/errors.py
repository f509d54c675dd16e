# SPDX-License-Identifier: Apache-2.0
"""The exceptions seqkern raises.

Each message names the argument, what was expected, what was given, and the way out.
"""


class SeqkernError(Exception):
    """Base of every error seqkern raises on purpose."""


class ShapeError(SeqkernError, ValueError):
    """A tensor has the wrong shape, or two tensors do not fit together."""


class DTypeError(SeqkernError, TypeError):
    """A tensor or an argument has a type that the op does not take."""


class OptionError(SeqkernError, ValueError):
    """An option has a value the op does not take, or two options exclude each other."""


class DeviceError(SeqkernError, ValueError):
    """Tensors live on different devices, or on one that cannot serve the call."""


class BackendUnavailableError(SeqkernError, RuntimeError):
    """A backend was named that cannot run here."""


class EliminationError(SeqkernError, RuntimeError):
    """A tridiagonal system holds NaN, or needs the row exchanges that its kernel does without."""


class CheckpointError(SeqkernError, RuntimeError):
    """A training checkpoint is damaged or belongs to another model."""
