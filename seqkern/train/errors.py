# SPDX-License-Identifier: Apache-2.0
"""Errors of a training run."""

from seqkern.errors import CheckpointError, SeqkernError

__all__ = ["CheckpointError", "NothingToDoError", "TextError", "TrainingError"]


class TextError(SeqkernError, ValueError):
    """The training text cannot be used."""


class TrainingError(SeqkernError, RuntimeError):
    """The training itself cannot go on."""


class NothingToDoError(TrainingError):
    """A run has trained for longer than it is asked to."""

    exit_status = 2
