# SPDX-License-Identifier: Apache-2.0
"""A training run of a few steps on a tiny model."""

from seqkern.train import TrainSettings

TINY = TrainSettings(
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    mlp_size=24,
    context=24,
    batch=2,
    steps=12,
    precision="float32",
)
