# SPDX-License-Identifier: Apache-2.0
"""What the tests of all ops share: dtypes, comparisons, layouts in memory, derivatives."""

import itertools

import pytest
import torch

from seqkern.errors import DeviceError, DTypeError, SeqkernError, ShapeError
from seqkern.testing import Inputs, compare, grads_of, pooled, run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
DRAWS = 12


def sequences_of(batch, T):
    """Steps, number of sequences, and the options that pack them if ``T`` is their lengths."""
    if isinstance(T, int):
        return T, batch, {}
    return sum(T), len(T), {"cu_seqlens": torch.tensor([0, *T]).cumsum(0)}


def leaves_of(x):
    """Leaves of autograd with the values of the tensors of ``x``."""
    return {name: t.detach().clone().requires_grad_() for name, t in x.tensors.items()}


def assert_same(a, b):
    """Equal names, shapes, dtypes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_all_equal(a, b):
    """`assert_same` for tensors in a row."""
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(one, other), i


def assert_right(op, draw, rowwise=(), factor=2):
    """Compare ``op`` with its definition on ``draw(seed)``: inputs, truth and peers.

    The first draw decides where it is within every budget; where not, DRAWS of them are judged
    together, see `seqkern.testing.pooled`. Returns the results on the first draw.
    """
    draws, first = [], {}
    for seed in range(DRAWS):
        x, truth, peers = draw(seed)
        got = run(op, x, backend="cpu")
        for name, result in got.items():
            assert result.isfinite().all(), name
        first = first or got
        draws.append(
            (compare(got, truth, no_worse_than=peers, factor=factor, rowwise=rowwise), truth)
        )
        if seed == 0 and all(budget.ok for budget in draws[0][0]):
            return first
    over = [str(budget) for budget in pooled(draws) if not budget.ok]
    assert not over, "over the allowed error, relative:\n" + "\n".join(over)
    return first


def sliced(t):
    """A slice of a wider tensor, so that every stride but the last is odd."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def last_strided(t):
    """The last axis is not contiguous."""
    wide = torch.full((*t.shape, 2), float("nan"), dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


def time_before_batch(t):
    """The first two axes swapped in memory."""
    return t if t.dim() < 2 else t.transpose(0, 1).contiguous().transpose(0, 1)


def heads_before_time(t):
    """The second and third axis swapped in memory, as after a view of [B, H, T, D]."""
    return t if t.dim() < 3 else t.transpose(1, 2).contiguous().transpose(1, 2)


def first_and_last_swapped(t):
    """The first axis is contiguous, and the last the slowest."""
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def first_axis_last(t):
    """The first axis is contiguous, and the others keep their order."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


# Each returns the same numbers with other strides.
RESTRIDE = (
    sliced,
    last_strided,
    time_before_batch,
    heads_before_time,
    first_and_last_swapped,
    first_axis_last,
)


def assert_strides_change_nothing(op, x, restride):
    """The same bits with every tensor and cotangent restrided; returns what came of those."""
    odd = {name: restride(t) for name, t in x.tensors.items()}
    results = []
    for tensors, do, dht in ((x.tensors, x.do, x.dht), (odd, restride(x.do), restride(x.dht))):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outs = op(**leaves, **x.options, output_final_state=True)
        results.append([*outs, *grads_of(outs, list(leaves.values()), (do, dht))])
    assert_all_equal(*results)
    return results[1]


def assert_packed_equals_separate(case, x):
    """A packed call gives each sequence the bits that it gets alone, and parameters the sum."""
    packed, T, totals = run(case.op, x), x.do.shape[case.time["o"]], {}
    options = {name: value for name, value in x.options.items() if name != "cu_seqlens"}
    for i, (begin, end) in enumerate(itertools.pairwise(x.options["cu_seqlens"].tolist())):

        def own(name, t, i=i, begin=begin, end=end):
            if name in case.states:
                return t.narrow(case.state_axis, i, 1)
            return case.steps(name, t, T, begin, end)

        tensors, named = ({n: own(n, t) for n, t in d.items()} for d in (x.tensors, options))
        alone = run(case.op, Inputs(tensors, named, own("o", x.do), own("ht", x.dht)))
        for name, got in alone.items():
            argument = name if name in ("o", "ht") else name.removeprefix("d")
            if argument in case.time or argument in case.states:
                assert torch.equal(got, own(argument, packed[name])), (name, i)
            else:
                totals[name] = totals.get(name, 0) + got.float()
    for name, total in totals.items():
        eps, scale = torch.finfo(packed[name].dtype).eps, total.abs().max().item()
        torch.testing.assert_close(packed[name].float(), total, rtol=0, atol=8 * eps * scale)


def far_apart(t):
    """The same numbers, the second of the first axis 2**31 elements behind the first."""
    try:
        storage = torch.empty(2**31 + t[0].numel(), dtype=t.dtype)
    except RuntimeError:
        pytest.skip("this machine does not lend that much address space")
    far = storage.as_strided(t.shape, (2**31, *t[0].contiguous().stride()))
    return far.copy_(t)


def assert_compiles(op, inputs, same=assert_same):
    """One dynamic graph serves all ``inputs``, forwards and backwards, with eager's bits."""
    torch._dynamo.reset()

    def call(**named):
        return op(**named)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in inputs:
        same(run(compiled, x), run(op, x))


def assert_gradients_have_the_shapes(outs, leaves):
    """Every leaf has a gradient of its own shape; on meta tensors that is all there is to see."""
    for leaf, grad in zip(leaves, torch.autograd.grad(outs, leaves, outs), strict=True):
        assert grad.shape == leaf.shape


def assert_gradcheck(function, x):
    """First and second derivatives of ``function`` agree with finite differences in float64."""
    x = x.double()
    leaves = leaves_of(x)

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return function(**named, **x.options, output_final_state=True)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


def assert_second_derivatives(op, x, shared=(), digits=1e-4):
    """``create_graph=True`` gives the reference's first and second derivatives.

    The inputs named in ``shared`` are one tensor, which is itself computed.
    """
    results = []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        tensors = dict(leaves)
        if shared:
            tensors |= dict.fromkeys(shared, 1.5 * leaves[shared[0]])
        for name in shared[1:]:
            del leaves[name]
        inputs = list(leaves.values())
        outs = op(**tensors, **x.options, output_final_state=True, backend=backend)
        loss = sum(out.abs().double().pow(3).sum() for out in outs)
        first = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        total = sum(grad.abs().double().square().sum() for grad in first)
        second = torch.autograd.grad(total, inputs, materialize_grads=True)
        results.append([*first, *second])
    for a, b in zip(*results, strict=True):
        scale = b.detach().abs().max().item()
        torch.testing.assert_close(a, b, rtol=digits, atol=digits * scale)


# What no argument may be, and the beginning and kind of what is said of it.
MISFITS = {
    "a list": (lambda t: t.tolist(), DTypeError, "must be a torch.Tensor, got list"),
    "integers": (lambda t: t.int(), DTypeError, "must be float32, bfloat16, float16 or float64"),
    "sparse": (lambda t: t.to_sparse(), DTypeError, "must be a dense tensor, got"),
    "elsewhere": (lambda t: t.to("meta"), DeviceError, "must be on the device of"),
    "of one axis more": (lambda t: t.unsqueeze(-1), ShapeError, "must be"),
}


def assert_names_the_misfit(op, named, misfit):
    """Every argument of ``named`` in turn is what none may be, and the error says which it was.

    The first of them says where the others must be.
    """
    spoil, error, message = MISFITS[misfit]
    first = next(iter(named))
    for name, t in named.items():
        if misfit == "elsewhere" and name == first:
            continue
        with pytest.raises(error, match=f"`{name}` {message}"):
            op(**{**named, name: spoil(t)})


def assert_refuses_longer_tensors(compiled, arguments):
    """A compiled op refuses tensors that do not fit each other: it would leave their memory."""
    for i, t in enumerate(arguments):
        for axis in range(t.dim() if isinstance(t, torch.Tensor) else 0):
            longer = torch.cat([t, t.narrow(axis, 0, 1)], axis)
            with pytest.raises(RuntimeError, match="must"):
                compiled(*arguments[:i], longer, *arguments[i + 1 :])


def assert_refuses(row):
    """A row is a call, the error that it must raise, and a part of what that says."""
    call, error, message = row
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, SeqkernError)
    assert message in str(caught.value)
