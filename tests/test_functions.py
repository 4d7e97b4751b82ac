"""Emitted functions in ulp against 160-bit arithmetic (mpmath, which torch requires), at their limits against torch."""

import math

import mpmath
import numpy as np
import pytest
import torch
from kernel_calls import LAYOUTS, dtype_of

from ase_equinn.ops import functions
from ase_equinn.ops.emitter import Emitter
from ase_equinn.ops.jit import compile_function

mp = mpmath.mp.clone()
mp.prec = 160


def logistic(x):
    return 1 / (1 + mp.exp(-x))


# name: the exact function, the numbers it is for, and the docstring's bound in ulp
EXACT = {
    "exp": (mp.exp, (-700, 700), 1.0),
    "expm1": (mp.expm1, (-60, 0), 1.5),
    "log1p": (mp.log1p, (-0.5, 0), 2.0),
    "tanh": (mp.tanh, (-30, 30), 3.0),
    "tanh_derivative": (lambda x: mp.sech(x) ** 2, (-350, 350), 5.0),
    "silu": (lambda x: x * logistic(x), (-700, 700), 4.0),
    "softplus": (lambda x: mp.log((1 + mp.exp(x)) / 2), (-700, 700), 3.0),
    "softplus_derivative": (logistic, (-700, 700), 3.0),
}


def apply(name, x, lanes=8):
    """The function of every number in x, in vectors and what remains of them."""
    bits = 8 * x.element_size()
    e = Emitter(name, 2, 1, bits, lanes)
    for k, width in e.vectors(e.integers[0]):
        e.store(getattr(functions, name)(e, e.load(e.pointers[0], k, width), width), e.pointers[1], k)
    y = torch.empty_like(x)
    compile_function(name, e.finish(), 2, 1)(x.data_ptr(), y.data_ptr(), len(x))
    return y


def samples(low, high, bits):
    """Evenly over the range, near the places where ranges are reduced, and tiny ones of both signs."""
    scale = 1.0 if bits == 64 or high - low < 100 else 87 / 700
    torch.manual_seed(0)
    tiny = 10.0 ** (-30 * torch.rand(300, dtype=torch.float64))
    halves = (torch.arange(-40, 40, dtype=torch.float64) + 0.5) * math.log(2)
    x = torch.cat([torch.linspace(low * scale, high * scale, 701, dtype=torch.float64), 8 * torch.randn(500).double()])
    x = torch.cat([x, tiny, -tiny, halves, halves / 2]).to(dtype_of(bits))
    return x[(x >= low * scale) & (x <= high * scale)].contiguous()


def errors(y, exact):
    """|y - exact| in units of the distance of neighbouring numbers."""
    numbers = y.numpy()
    distances = np.spacing(np.abs(np.array([float(value) for value in exact]).astype(numbers.dtype)))
    pairs = zip(numbers.tolist(), exact, distances.tolist(), strict=True)
    return np.array([float(abs(number - value) / distance) for number, value, distance in pairs])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", EXACT)
def test_errors_are_within_the_bounds_of_the_docstrings(name, bits):
    function, (low, high), bound = EXACT[name]
    x = samples(low, high, bits)
    error = errors(apply(name, x), [function(mp.mpf(value)) for value in x.tolist()])
    worst = error.argmax()
    assert error[worst] <= bound, (error[worst], x[worst])


@pytest.mark.parametrize("bits", [32, 64])
def test_silu_derivative(bits):
    """It vanishes at x = -1.278, so its bound is relative to the sum of what it is made of."""
    x = samples(-700, 700, bits)
    points = [mp.mpf(value) for value in x.tolist()]
    exact = [logistic(a) * (1 + a * logistic(-a)) for a in points]
    scale = [logistic(a) * (1 + abs(a) * logistic(-a)) for a in points]
    y, epsilon = apply("silu_derivative", x), torch.finfo(x.dtype).eps
    error = [abs(number - a) / (epsilon * b) for number, a, b in zip(y.tolist(), exact, scale, strict=True)]
    assert max(error) <= 5


def test_exp_among_numbers_below_the_smallest_normal_one():
    for bits, (low, high) in ((32, (-104, -87)), (64, (-746, -708))):
        x = torch.linspace(low, high, 200, dtype=dtype_of(bits))
        y = apply("exp", x)
        assert errors(y, [mp.exp(mp.mpf(value)) for value in x.tolist()]).max() <= 1
        assert y[0] == 0 < y[20] < torch.finfo(x.dtype).tiny


def shifted_softplus(x):
    return torch.nn.functional.softplus(x, threshold=40.0) - math.log(2.0)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("name", "target"),
    [("silu", torch.nn.functional.silu), ("tanh", torch.tanh), ("softplus", shifted_softplus), ("exp", torch.exp)],
)
def test_large_numbers_give_the_limits_and_nan_stays(name, target, bits):
    """As torch has them, up to an ulp or two and what lies below the smallest normal number."""
    dtype = dtype_of(bits)
    large = [40.0, 41.0, 88.0, 90.0, 709.0, 711.0, 1000.0, 1e30, torch.finfo(dtype).max]
    x = torch.tensor([0.0, *large, *(-a for a in large), math.nan], dtype=dtype)
    y, expected = apply(name, x), target(x)
    tiny = 1e-36 if bits == 32 else 1e-300
    torch.testing.assert_close(y, expected, rtol=4 * torch.finfo(dtype).eps, atol=tiny, equal_nan=True)
    assert y[-1].isnan() and not y[:-1].isnan().any()
    if name in ("silu", "exp"):
        assert apply(name, torch.full((1,), -1000.0, dtype=dtype)) == 0


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("name", "limits"), [("silu", (0, 1)), ("tanh", (0, 0)), ("softplus", (0, 1))])
def test_derivatives_have_limits_and_keep_nan(name, limits, bits):
    x = torch.tensor([-1e30, -1000.0, 1000.0, 1e30, math.nan], dtype=dtype_of(bits))
    y = apply(f"{name}_derivative", x).tolist()
    assert y[:4] == [limits[0], limits[0], limits[1], limits[1]] and math.isnan(y[4])


@pytest.mark.parametrize("bits", [32, 64])
def test_absolute_value_and_sign(bits):
    x = torch.tensor([-math.inf, -2.5, -1e-40, -0.0, 0.0, 3.5, math.inf, math.nan], dtype=dtype_of(bits))
    torch.testing.assert_close(apply("absolute", x), x.abs(), rtol=0, atol=0, equal_nan=True)
    expected = torch.tensor([-1.0, -1.0, -1.0, 0.0, 0.0, 1.0, 1.0, math.nan], dtype=x.dtype)
    torch.testing.assert_close(apply("sign", x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("bits", "lanes"), LAYOUTS)
def test_the_width_of_vectors_does_not_matter(bits, lanes):
    """To the bit: what an atom's features are does not depend on which channel they stand in."""
    x = torch.linspace(-9, 9, 67, dtype=dtype_of(bits))
    for name in ("silu", "tanh_derivative", "softplus"):
        assert torch.equal(apply(name, x, lanes), apply(name, x, 1))
