# SPDX-License-Identifier: Apache-2.0
"""Limits and rough speeds of GPUs, as the tile models need them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        multiprocessors: SMs; a cooperative launch may have that many blocks of one per SM.
        registers: 32-bit registers per SM.
        shared_bytes: most shared memory that one block may opt in to.
        max_threads: threads per block.
        flops_per_sm: 16-bit matrix operations per microsecond and SM (a fused multiply-add is two).
        l2_bytes: bytes per microsecond that all SMs together take from the L2 cache.
        sync_us: one barrier across the whole grid, in microseconds.
    """

    name: str
    multiprocessors: int
    registers: int
    shared_bytes: int
    max_threads: int = 1024
    flops_per_sm: int = 2_000_000
    l2_bytes: int = 4_000_000
    sync_us: float = 1.5


# Limits: the CUDA programming guide's tables of compute capabilities. Speeds: data-sheet matrix
# throughput over the SMs; L2 and barrier times are rough, for ranking tiles and not for prediction.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("V100", 80, 65536, 98304, flops_per_sm=1_560_000, l2_bytes=2_000_000, sync_us=1.8),
        Gpu("A100", 108, 65536, 166912, flops_per_sm=2_890_000, l2_bytes=4_000_000, sync_us=1.6),
        Gpu("RTX 4090", 128, 65536, 101376, flops_per_sm=1_290_000, l2_bytes=5_000_000),
        Gpu("H100", 132, 65536, 232448, flops_per_sm=7_490_000, l2_bytes=5_500_000, sync_us=1.2),
        Gpu("H200", 132, 65536, 232448, flops_per_sm=7_490_000, l2_bytes=5_500_000, sync_us=1.2),
        Gpu("B200", 148, 65536, 232448, flops_per_sm=15_200_000, l2_bytes=9_000_000, sync_us=1.2),
    )
}
