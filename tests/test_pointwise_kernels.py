"""Pointwise kernels against torch in float64: values, gradients by autograd, layouts, and what they must leave alone.

Rows are wider than what is used of them, a range of atoms from the middle is handled, and everything outside must keep
its bits. 27 channels are 16 + 8 + 2 + 1, so that every width of vector is used.
"""

import math

import pytest
import torch
from kernel_calls import LAYOUTS, TOLERANCE, call, dtype_of

from ase_equinn.ops import pointwise_kernels as kernels
from ase_equinn.ops.pointwise_kernels import Output

ATOMS, FIRST, LAST, N = 7, 2, 5, 27
FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.nn.functional.softplus(x, threshold=40.0) - math.log(2.0),
    "abs": torch.abs,
    "scale": lambda x: x,
}
layouts = pytest.mark.parametrize(("bits", "lanes"), LAYOUTS)
accumulates = pytest.mark.parametrize("accumulate", [False, True])


class Rows:
    """Random rows (ATOMS, dim, stride), of which the first n columns are used; and the same in float64."""

    def __init__(self, bits, stride, n=N, dim=1):
        self.tensor = torch.randn(ATOMS, dim, stride, dtype=torch.float64).to(dtype_of(bits))
        self.before, self.n, self.bits, self.stride = self.tensor.clone(), n, bits, stride

    @property
    def exact(self):
        return self.before[FIRST:LAST, :, : self.n].double()

    def assert_is(self, expected, accumulate=False):
        """expected (LAST - FIRST, dim, n), in addition to what was there if accumulate; nothing else has changed."""
        expected = expected + self.exact if accumulate else expected
        inside = self.tensor[FIRST:LAST, :, : self.n].double()
        assert (inside - expected).abs().max() <= TOLERANCE[self.bits] * expected.abs().max()
        guarded = self.tensor.clone()
        guarded[FIRST:LAST, :, : self.n] = self.before[FIRST:LAST, :, : self.n]
        assert torch.equal(guarded, self.before)


def run(kernel, inputs, outputs, integers=()):
    """Calls the kernel; its inputs keep their bits."""
    call(kernel, [getattr(item, "tensor", item) for item in [*inputs, *outputs]], FIRST, LAST, *integers)
    for item in inputs:
        if isinstance(item, Rows):
            assert torch.equal(item.tensor, item.before)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def wanted(flags):
    """Outputs with strides of their own for flags that are None where an output is absent."""
    return [None if flag is None else Output(stride, flag) for flag, stride in zip(flags, (41, 33), strict=True)]


FLAGS = [(False, False), (True, False), (False, True), (True, True), (None, True), (False, None)]


@layouts
@pytest.mark.parametrize("function", FUNCTIONS)
def test_unary(function, bits, lanes):
    x, y = Rows(bits, 30), Rows(bits, 41)
    run(kernels.Unary(function, N, 30, 41, 1.7, bits=bits, lanes=lanes), [x], [y])
    y.assert_is(1.7 * FUNCTIONS[function](x.exact))


@layouts
@accumulates
@pytest.mark.parametrize("function", FUNCTIONS)
def test_unary_backward(function, accumulate, bits, lanes):
    x, g, dx = Rows(bits, 30), Rows(bits, 27), Rows(bits, 41)
    run(kernels.UnaryBackward(function, N, 30, 27, 41, -0.6, accumulate, bits=bits, lanes=lanes), [x, g], [dx])
    leaf = x.exact.requires_grad_()
    dx.assert_is(torch.autograd.grad(-0.6 * FUNCTIONS[function](leaf), leaf, g.exact)[0], accumulate)


@layouts
def test_added_constant(bits, lanes):
    x, y, g, dx = Rows(bits, 30), Rows(bits, 41), Rows(bits, 31), Rows(bits, 28)
    run(kernels.Unary("add", N, 30, 41, 2.5, bits=bits, lanes=lanes), [x], [y])
    y.assert_is(x.exact + 2.5)
    run(kernels.UnaryBackward("add", N, 30, 31, 28, 2.5, True, bits=bits, lanes=lanes), [x, g], [dx])
    dx.assert_is(g.exact, accumulate=True)


@pytest.mark.parametrize("bits", [32, 64])
def test_in_place(bits):
    x = Rows(bits, 30)
    call(kernels.Unary("tanh", N, 30, 30, bits=bits, lanes=8), [x.tensor, x.tensor], FIRST, LAST)
    x.assert_is(torch.tanh(x.exact))


def test_unknown_function():
    with pytest.raises(ValueError, match="'sinh'"):
        kernels.Unary("sinh", N, N, N, bits=64, lanes=8)


@layouts
@pytest.mark.parametrize("dim", [1, 3])
def test_gate(dim, bits, lanes):
    x, s, y = Rows(bits, 30, dim=dim), Rows(bits, 29), Rows(bits, 41, dim=dim)
    run(kernels.Gate(dim, N, 30, 29, 41, bits=bits, lanes=lanes), [x, s], [y])
    y.assert_is(x.exact * s.exact)


@layouts
@pytest.mark.parametrize("flags", FLAGS)
def test_gate_backward(flags, bits, lanes):
    dim = 3
    x, s, g = Rows(bits, 30, dim=dim), Rows(bits, 29), Rows(bits, 28, dim=dim)
    outputs, (dx, ds) = wanted(flags), (Rows(bits, 41, dim=dim), Rows(bits, 33))
    kernel = kernels.GateBackward(dim, N, 30, 29, 28, *outputs, bits=bits, lanes=lanes)
    leaves = [x.exact.requires_grad_(), s.exact.requires_grad_()]
    gradients = torch.autograd.grad(leaves[0] * leaves[1], leaves, g.exact)
    check_outputs(kernel, [x, s, g], [dx, ds], flags, gradients)


def check_outputs(kernel, inputs, outputs, flags, gradients):
    kept = [(*item, flag) for *item, flag in zip(outputs, gradients, flags, strict=True) if flag is not None]
    assert kernel.n_pointers == len(inputs) + len(kept)
    run(kernel, inputs, [rows for rows, _, _ in kept])
    for rows, gradient, flag in kept:
        rows.assert_is(gradient, flag)


@layouts
@accumulates
@pytest.mark.parametrize("dim", [1, 3])
def test_add(dim, accumulate, bits, lanes):
    x, y = Rows(bits, 30, dim=dim), Rows(bits, 41, dim=dim)
    run(kernels.Add(N, 30, 41, -1.3, accumulate, dim, bits=bits, lanes=lanes), [x], [y])
    y.assert_is(-1.3 * x.exact, accumulate)


@layouts
def test_clear(bits, lanes):
    y = Rows(bits, 41, dim=2)
    y.tensor[FIRST] = y.before[FIRST] = math.inf  # which zero times does not make zero
    call(kernels.Clear(N, 41, 2, bits=bits, lanes=lanes), [y.tensor], FIRST, LAST)
    assert (y.tensor[FIRST:LAST, :, :N] == 0).all()
    y.tensor[FIRST:LAST, :, :N] = y.before[FIRST:LAST, :, :N]
    assert torch.equal(y.tensor, y.before)


@layouts
def test_divide(bits, lanes):
    x, s, y = Rows(bits, 30), Rows(bits, 3, n=1), Rows(bits, 41)
    run(kernels.Divide(N, 30, 3, 41, bits=bits, lanes=lanes), [x, s], [y])
    y.assert_is(x.exact / s.exact)


@layouts
@pytest.mark.parametrize("flags", FLAGS)
def test_divide_backward(flags, bits, lanes):
    x, s, y, g = Rows(bits, 30), Rows(bits, 3, n=1), Rows(bits, 29), Rows(bits, 28)
    y.tensor[FIRST:LAST, :, :N] = y.before[FIRST:LAST, :, :N] = (x.exact / s.exact).to(y.tensor.dtype)
    outputs, (dx, ds) = wanted(flags), (Rows(bits, 41), Rows(bits, 33, n=1))
    kernel = kernels.DivideBackward(N, 3, 29, 28, *outputs, bits=bits, lanes=lanes)
    leaves = [x.exact.requires_grad_(), s.exact.requires_grad_()]
    gradients = torch.autograd.grad(leaves[0] / leaves[1], leaves, g.exact)
    check_outputs(kernel, [s, y, g], [dx, ds], flags, gradients)


@layouts
def test_gather(bits, lanes):
    table, species, y = torch.randn(4, 29, dtype=dtype_of(bits)), torch.tensor([0, 1, 3, 3, 0, 2, 1]), Rows(bits, 41)
    run(kernels.Gather(N, 29, 41, bits=bits, lanes=lanes), [table], [y, species])
    y.assert_is(table[species][FIRST:LAST, None, :N].double())


@layouts
@accumulates
@pytest.mark.parametrize("n_parts", [1, 3])
def test_total(n_parts, accumulate, bits, lanes):
    """Parts end up zero where they were read and keep what surrounds it; their order is the order of the sum."""
    parts, y = torch.randn(n_parts, 9, 30, dtype=dtype_of(bits)), Rows(bits, 41)
    before = parts.clone()
    kernel = kernels.Total(N, n_parts, 30, 41, accumulate, bits=bits, lanes=lanes)
    call(kernel, [parts, y.tensor], FIRST, LAST, 9 * 30)
    y.assert_is(before[:, FIRST:LAST, None, :N].double().sum(0), accumulate)
    total = y.before[FIRST:LAST, 0, :N] if accumulate else torch.zeros(LAST - FIRST, N, dtype=before.dtype)
    for part in before[:, FIRST:LAST, :N]:
        total = total + part
    assert torch.equal(y.tensor[FIRST:LAST, 0, :N], total)
    before[:, FIRST:LAST, :N] = 0
    assert torch.equal(parts, before)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [1, 3, 64])
def test_other_numbers_of_channels_and_an_empty_range(n, bits):
    x, s, y, ds = Rows(bits, n, n), Rows(bits, 1, n=1), Rows(bits, n, n), Rows(bits, 1, n=1)
    kernel = kernels.DivideBackward(n, 1, n, n, None, Output(1, False), bits=bits, lanes=8)
    run(kernel, [s, y, x], [ds])
    ds.assert_is(-(x.exact * y.exact).sum(2, keepdim=True) / s.exact)
    call(kernels.Clear(n, n, bits=bits, lanes=8), [x.tensor], 3, 3)
    assert torch.equal(x.tensor, x.before)
