# SPDX-License-Identifier: Apache-2.0
"""The pool behind large outputs: blocks are used again, never while somebody still holds them."""

import os
import subprocess
import sys

import pytest
import torch

from seqkern.ops import chunk_simple_gla

PROGRAM = """
import sys, torch
from seqkern.ops import chunk_simple_gla
v = torch.randn(1, int(sys.argv[1]), 4, 64)
first = chunk_simple_gla(v, v, v)[0]
address, copy = first.data_ptr(), first.clone()
held = chunk_simple_gla(v, v, v)[0]
assert held.data_ptr() != address
del first
again = chunk_simple_gla(v, v, v)[0]
assert torch.equal(again, copy) and torch.equal(held, copy)
print(again.data_ptr() == address)
"""


FORKS = """
import os, signal, threading, torch
from seqkern.ops import rms_norm
x, weight = torch.randn(40_000, 64), torch.ones(64)
def work():
    while True:
        rms_norm(x, weight)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
for _ in range(150):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        rms_norm(x[:1000], weight)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


# Tokens of 1 KiB: the smallest outputs of the pool, smaller than a huge page, and larger.
SIZES = [128, 1000, 4096]


def reused(megabytes, tokens):
    environment = {**os.environ, "SEQKERN_POOL_MB": megabytes, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("megabytes", ["64", "", "99999999999999999999"])
@pytest.mark.parametrize("tokens", SIZES)
def test_a_freed_block_serves_the_next_output(tokens, megabytes):
    assert reused(megabytes, tokens) == "True"


@pytest.mark.parametrize("megabytes", ["0", "-1", "1 GB"])
@pytest.mark.parametrize("tokens", SIZES)
def test_no_pool_gives_the_same_results(tokens, megabytes):
    assert reused(megabytes, tokens) in {"True", "False"}


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([4096] * 30, id="more than stays unmarked"),
        pytest.param(range(128, 4 * 520, 4), id="more sizes than blocks are kept"),
    ],
)
def test_many_blocks(sizes):
    """What waits for long, and what is given back: neither may show in the next results."""
    v = torch.randn(1, max(sizes), 4, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        results = [chunk_simple_gla(x, x, x)[0] for x in (v[:, :T] for T in sizes)]
        last = results[-1].clone()
        for result in results:
            T = result.shape[1]
            assert torch.equal(result, last[:, :T])
        del results, result


@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_outlive_their_inputs_and_each_other(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        v = torch.randn(1, 4096, 4, 64, generator=torch.Generator().manual_seed(0))
        results = [chunk_simple_gla(v * i, v, v)[0] for i in range(1, 6)]
        expected = [r.clone() for r in results]
        del results[::2]
        more = [chunk_simple_gla(v * 7, v, v)[0] for _ in range(3)]
        assert all(torch.equal(m, more[0]) for m in more)
        for result, copy in zip(results, expected[1::2], strict=True):
            assert torch.equal(result, copy)
    finally:
        torch.set_num_threads(before)


def test_a_child_has_outputs_while_other_threads_have_theirs():
    """`fork` copies no thread, but whatever lock one of them holds."""
    environment = {**os.environ, "SEQKERN_POOL_MB": "8", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FORKS], env=environment, check=True, timeout=120)
