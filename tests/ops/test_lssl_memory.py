# SPDX-License-Identifier: Apache-2.0
"""A long kernel is never held together with its states: H=256, N=128, L=16000 in under 200 MB."""

import os
import subprocess
import sys

import pytest

from seqkern._runtime import library

LIMIT = 200e6
PROGRAM = """
import torch
from seqkern.ops import hippo, lssl_kernel
torch.set_num_threads(1)

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])

def run(L):
    A, B = hippo("legs", 128)
    A = A._replace(P=A.P.clone().requires_grad_())
    C = torch.ones(256, 1, 128, requires_grad=True)
    dt = torch.logspace(-3, -1, 256).requires_grad_()
    lssl_kernel(A, B, C, dt, L).sum().backward()
    assert C.grad.isfinite().all() and dt.grad.isfinite().all()

run(100)
before = peak()
run(16000)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.skipif(library.load_error() is not None, reason="needs the compiled library")
def test_long_kernel_memory():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The kernel and its gradient alone are 33 MB; all states would be 2.1 GB.
    assert 30e6 < int(done.stdout) < LIMIT
