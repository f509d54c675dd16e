# SPDX-License-Identifier: Apache-2.0
"""Training a byte-level language model: text, loop, checkpoints, comparison, report."""

from seqkern.train.run import train
from seqkern.train.settings import TrainSettings

__all__ = ["TrainSettings", "train"]
