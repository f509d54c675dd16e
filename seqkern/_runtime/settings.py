# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that seqkern reads."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, what holds without it, and what it does."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        """Return the value in the environment, or the default when it is unset or empty."""
        return os.environ.get(self.name, "").strip() or self.default


BACKEND = Setting(
    "SEQKERN_BACKEND",
    "auto",
    'What backend="auto" means: auto, cpu, triton, cuda or reference. Read at import.',
)
CPU_ISA = Setting(
    "SEQKERN_CPU_ISA",
    "",
    "The highest instruction set the CPU kernels may use: scalar, neon, avx2, avx512 or "
    "avx512_bf16. Read by the kernels at their first call; empty means the best one found.",
)
LIBRARY = Setting(
    "SEQKERN_LIBRARY",
    "",
    "Path of the compiled library to load instead of the one in the package. Read at import.",
)

POOL_MB = Setting(
    "SEQKERN_POOL_MB",
    "",
    "MiB of freed outputs of 128 KiB and more that are kept for the next ones, 0 for none; empty "
    "means a sixteenth of the machine's memory. The system may take the pages of all but 64 MiB "
    "whenever it needs them. Read by the kernels at their first such output.",
)

SETTINGS = (BACKEND, CPU_ISA, LIBRARY, POOL_MB)
