# SPDX-License-Identifier: Apache-2.0
"""Errors of a training run."""

from seqkern._runtime.errors import SeqkernError


class TextError(SeqkernError, ValueError):
    """The training text cannot be used."""


class CheckpointError(SeqkernError, RuntimeError):
    """A checkpoint is missing, damaged, of another run, or cannot be written."""


class TrainingError(SeqkernError, RuntimeError):
    """The training itself cannot go on."""
