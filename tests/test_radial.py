"""Radial bases and envelopes against the formulas of the papers in 40-digit arithmetic, to second derivatives."""

import copy

import mpmath as mp
import numpy as np
import pytest
import torch
from e3nn.math import soft_one_hot_linspace
from scipy.special import spherical_jn

from ase_equinn.radial import (
    BASES,
    ENVELOPES,
    BesselBasis,
    ChebyshevBasis,
    GaussianBasis,
    SmoothFiniteBasis,
    bump_envelope,
    cosine_envelope,
    polynomial_envelope,
    sinc,
)

C, N = 5.0, 6
# Zero, tiny, both sides of the switch to a series at k pi r / c = 0.1 (k = 1, 6), mid-range, both sides of the cutoff.
INSIDE = [0.0, 1e-300, 1e-12, 1e-6, 1e-3, 0.0265, 0.0266, 0.1591, 0.1592, 0.7, 2.4, 4.3, C - 1e-3, C - 1e-6]
OUTSIDE = [C, np.nextafter(C, 6), C + 1e-6, C + 1e-3, 7.7, 50.0]


def exact_bump(t):
    return mp.exp(1 - 1 / t) if t > 0 else mp.mpf(0)


def exact_smooth_finite(r, k):
    d = r * (N + 1) / C - k
    return mp.mpf("1.14136") * exact_bump(1 - d * d) ** 2


EXACT_BASES = {
    "gaussian": lambda r, k: mp.exp(-((r - (k - 1) * mp.mpf(C) / (N - 1)) ** 2) / (2 * (mp.mpf(C) / (N - 1)) ** 2)),
    "bessel": lambda r, k: mp.sqrt(mp.mpf(2) / C) * k * mp.pi / C * mp.sinc(k * mp.pi * r / C),
    "chebyshev": lambda r, k: mp.chebyt(k - 1, 2 * r / C - 1),
    "smooth_finite": exact_smooth_finite,
}
EXACT_ENVELOPES = {
    "cosine": lambda r: (1 + mp.cos(mp.pi * r / C)) / 2,
    "polynomial": lambda r: 1 - 28 * (r / C) ** 6 + 48 * (r / C) ** 7 - 21 * (r / C) ** 8,
    "bump": lambda r: exact_bump(1 - (r / C) ** 2),
}


def exact_derivatives(function, points):
    """(3, points): value, first and second derivative. 40 digits leave more than 20 after differences with h = 1e-9."""
    with mp.workdps(40):
        h = mp.mpf("1e-9")
        rows = []
        for point in points:
            low, mid, high = (function(mp.mpf(point) + shift * h) for shift in (-1, 0, 1))
            rows.append([float(mid), float((high - low) / (2 * h)), float((high - 2 * mid + low) / h**2)])
    return np.array(rows).T


def derivatives(function, points, dtype=torch.float64):
    """(3, ...): value, first and second derivative of an elementwise function (points,) -> (points,)."""
    r = torch.tensor(points, dtype=dtype, requires_grad=True)
    value = function(r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    return torch.stack([value, first, second]).detach().numpy()


def assert_close(got, want, tolerance):
    """Each order relative to its own largest magnitude."""
    for order in range(3):
        scale = max(1.0, np.abs(want[order]).max())
        assert np.abs(got[order] - want[order]).max() < tolerance * scale, f"derivative {order}"


def test_the_dictionaries_hold_every_basis_and_envelope():
    assert set(BASES) == set(EXACT_BASES) and set(ENVELOPES) == set(EXACT_ENVELOPES)


@pytest.mark.parametrize("name", BASES)
def test_basis_and_two_derivatives_are_the_formula(name):
    basis = BASES[name](N, C)
    points = INSIDE + [C, 5.3]
    for k in range(1, N + 1):
        got = derivatives(lambda r: basis(r)[:, k - 1], points)
        want = exact_derivatives(lambda r: EXACT_BASES[name](r, k), points)
        # Cancellation in the second derivative of sin(x)/x, at worst eps/0.1^2 at the switch; the series' 1e-14.
        assert_close(got, want, 1e-12)


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_and_two_derivatives_are_the_formula(name):
    got = derivatives(lambda r: ENVELOPES[name](r, C), INSIDE)
    assert_close(got, exact_derivatives(EXACT_ENVELOPES[name], INSIDE), 1e-13)


@pytest.mark.parametrize("p", [1, 2, 5, 9])
def test_polynomial_envelope_is_dimenets_equation_8_for_every_p(p):
    r = np.linspace(0, C, 101)
    x = r / C
    expanded = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    got = polynomial_envelope(torch.from_numpy(r), C, p).numpy()
    assert np.abs(got - expanded).max() < 1e-13  # the expanded form cancels: coefficients up to 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_is_one_at_zero_and_exactly_zero_from_the_cutoff_on(name, dtype):
    for cutoff in (0.3, 1.0, 3.7, C, 6.1, 12.0):
        r = torch.tensor([cutoff, cutoff * (1 + 1e-6), 2 * cutoff, 1e6], dtype=dtype).requires_grad_()
        value = ENVELOPES[name](r, cutoff)
        (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), r)
        assert not value.any() and not first.any()
        assert not second[1:].any()
        if name != "cosine":  # C1: the second derivative of the cosine jumps at the cutoff itself
            assert not second.any()
        assert ENVELOPES[name](torch.zeros(1, dtype=dtype), cutoff).item() == 1.0
        inner = ENVELOPES[name](torch.linspace(0, cutoff, 1001, dtype=dtype), cutoff)
        assert (inner >= 0).all() and (inner.diff() <= 1e-6).all()


def test_continuity_classes_are_those_of_the_table():
    """Just inside the cutoff f ~ t^2, t^3 and faster than every power: the ratio for halved t tells the exponent."""
    for name, power in (("cosine", 2), ("polynomial", 3)):
        f = ENVELOPES[name](torch.tensor([C - 2e-3, C - 1e-3], dtype=torch.float64), C)
        assert abs(torch.log2(f[0] / f[1]).item() - power) < 0.01
    f = bump_envelope(torch.tensor([C - 0.1, C - 0.05], dtype=torch.float64), C)
    assert torch.log2(f[0] / f[1]).item() > 20


def test_polynomial_envelope_has_no_rounding_noise_near_the_cutoff_in_float32():
    """r/c is rounded by 6e-8, times the slope 3*56 t^2/2: 1e-11 at t = 1e-3, where the expanded form is off by 1e-6."""
    r = (C * (1 - torch.linspace(0, 1e-3, 500, dtype=torch.float64))).float()
    error = polynomial_envelope(r, C).double() - polynomial_envelope(r.double(), C)
    assert error.abs().max() < 3e-11


def test_smooth_finite_basis_vanishes_with_its_derivatives_at_zero_and_from_the_cutoff_on():
    basis = SmoothFiniteBasis(N, C)
    for k in range(N):
        assert not derivatives(lambda r: basis(r)[:, k], [0.0] + OUTSIDE).any()


def test_bessel_at_zero_is_the_limit():
    k = np.arange(1, N + 1)
    for column in range(N):
        value, slope, curvature = derivatives(lambda r: BesselBasis(N, C)(r)[:, column], [0.0])[:, 0]
        q = k[column] * np.pi / C
        assert value == pytest.approx(np.sqrt(2 / C) * q, rel=1e-15)
        assert slope == 0.0
        assert curvature == pytest.approx(-np.sqrt(2 / C) * q**3 / 3, rel=1e-14)


def test_bessel_basis_is_orthonormal_over_the_ball():
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r, w = (nodes + 1) * C / 2, weights * C / 2
    f = BesselBasis(N, C)(torch.from_numpy(r)).numpy()
    assert np.abs(np.einsum("r,ra,rb->ab", w * r**2, f, f) - np.eye(N)).max() < 1e-13


def test_bessel_basis_agrees_with_e3nn_and_scipy():
    r = torch.linspace(0.01, 6, 300, dtype=torch.float64)
    got = BesselBasis(N, C)(r)
    assert (got - soft_one_hot_linspace(r, 0, C, N, basis="bessel", cutoff=False)).abs().max() < 1e-14
    q = np.arange(1, N + 1) * np.pi / C
    assert np.abs(got.numpy() - np.sqrt(2 / C) * q * spherical_jn(0, r.numpy()[:, None] * q)).max() < 1e-14


def test_smooth_finite_basis_agrees_with_e3nn():
    r = torch.linspace(-1, 7, 400, dtype=torch.float64)
    want = soft_one_hot_linspace(r, 0, C, N, basis="smooth_finite", cutoff=True)
    assert (SmoothFiniteBasis(N, C)(r) - want).abs().max() < 1e-6  # e3nn takes exp(2) in float32


def test_smooth_finite_basis_has_unit_mean_square():
    r = torch.linspace(0.5, C - 0.5, 2000, dtype=torch.float64)  # two spacings away from the ends
    assert SmoothFiniteBasis(20, C)(r).square().sum(1).mean().item() == pytest.approx(1, abs=0.01)


def test_chebyshev_basis_is_orthogonal_and_bounded():
    m = 40
    s = np.cos((np.arange(m) + 0.5) * np.pi / m)  # the nodes of Gauss-Chebyshev quadrature
    f = ChebyshevBasis(N, C)(torch.from_numpy((s + 1) * C / 2)).numpy()
    assert np.abs(np.pi / m * f.T @ f - np.diag([np.pi] + [np.pi / 2] * (N - 1))).max() < 1e-13
    assert np.abs(f).max() <= 1 + 1e-14
    ends = ChebyshevBasis(N, C)(torch.tensor([0.0, C], dtype=torch.float64))
    assert ends.tolist() == [[(-1.0) ** k for k in range(N)], [1.0] * N]


def test_gaussian_basis_start_and_width():
    basis = GaussianBasis(5, 5.0, start=1.0)
    at_centres = basis(torch.arange(1.0, 6.0))
    assert torch.equal(at_centres.diagonal(), torch.ones(5))
    assert torch.allclose(at_centres.diagonal(1), torch.full((4,), 0.5).neg().exp())  # one spacing = one width
    single = GaussianBasis(1, 4.0, start=1.0)(torch.tensor([1.0, 4.0]))
    assert torch.allclose(single[:, 0], torch.tensor([0.0, -0.5]).exp())


@pytest.mark.parametrize("name", BASES)
def test_basis_gradcheck_to_second_order(name):
    basis = BASES[name](4, C)
    r = torch.tensor([0.0, 1e-9, 0.02, 1.3, C - 1e-2, C, C + 1e-2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, r)
    assert torch.autograd.gradgradcheck(basis, r)


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_gradcheck_to_second_order(name):
    points = [0.0, 1e-9, 0.02, 1.3, C - 1e-2, C + 1e-2] + [C] * (name != "cosine")
    r = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: ENVELOPES[name](r, C), r)
    assert torch.autograd.gradgradcheck(lambda r: ENVELOPES[name](r, C), r)


def test_float32_second_derivatives_are_finite_and_right_near_zero_and_the_cutoff():
    points = [0.0, 1e-30, 1e-6, 1e-3, 0.02, 1.0, C - 1e-3, np.float32(C), C + 1e-3]
    for cls in BASES.values():
        for k in range(N):
            got, want = (
                derivatives(lambda r: cls(N, C)(r)[:, k], np.float32(points), dtype)
                for dtype in (torch.float32, torch.float64)
            )  # fmt: skip
            assert_close(got, want, 2e-4)  # eps/0.1^2 = 6e-6 in sin(x)/x, times (k pi / c)^2


def test_sinc_third_derivative_is_finite():
    x = torch.tensor([0.0, 0.05, 0.5], dtype=torch.float64, requires_grad=True)
    y = sinc(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    z = x.detach()
    assert (y - (z / 5 - z**3 / 42 + z**5 / 1080)).abs().max() < 1e-6  # the next term is x^7/55440


@pytest.mark.parametrize("name", BASES)
def test_dtype_shape_and_state(name):
    basis = BASES[name](N, C)
    assert basis.n == N and basis.cutoff == C and not basis.state_dict()
    for dtype in (torch.float32, torch.float64):
        assert basis(torch.rand(7, dtype=dtype)).dtype == dtype
        assert basis(torch.rand(0, dtype=dtype)).shape == (0, N)
    r = torch.rand(9, dtype=torch.float64)
    want, before = basis(r), r.clone()
    assert want.shape == (9, N) and torch.equal(r, before)
    assert torch.equal(copy.deepcopy(basis).float().double()(r), want)  # a trip through float32 loses nothing
    assert BASES[name](1, C)(r).shape == (9, 1)


def test_trainable_bessel_starts_where_the_fixed_one_is_and_learns():
    basis = BesselBasis(N, C, trainable=True).double()
    r = torch.rand(9, dtype=torch.float64) * C
    assert set(basis.state_dict()) == {"frequencies"}
    assert (basis(r) - BesselBasis(N, C)(r)).abs().max() < 1e-6  # parameters are born in float32

    def function(frequencies):
        return torch.func.functional_call(basis, {"frequencies": frequencies}, r)

    assert torch.autograd.gradcheck(function, basis.frequencies)


@pytest.mark.parametrize("cls", BASES.values())
@pytest.mark.parametrize("n, cutoff, received", [
    (0, C, "0"), (-3, C, "-3"), (2.5, C, "2.5"), (True, C, "True"), ("4", C, "'4'"),
    (N, 0.0, "0.0"), (N, -1.0, "-1.0"), (N, float("nan"), "nan"), (N, float("inf"), "inf"), (N, None, "None"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_the_value(cls, n, cutoff, received):
    with pytest.raises(ValueError, match=rf"{cls.__name__}.* got {received}"):
        cls(n, cutoff)


@pytest.mark.parametrize("start", [C, 6.0, float("nan"), None])
def test_gaussian_start_beyond_the_cutoff_is_refused(start):
    with pytest.raises(ValueError, match=f"start .* got {start}"):
        GaussianBasis(N, C, start=start)


@pytest.mark.parametrize("lengths, received", [
    (torch.rand(3, 1), r"\(3, 1\)"), (torch.rand(3, 3), r"\(3, 3\)"), (torch.tensor(1.0), r"\(\)"),
    (torch.arange(3), "int64"),
])  # fmt: skip
def test_bad_distances_are_refused_with_their_shape_and_type(lengths, received):
    with pytest.raises(ValueError, match=f"distances .* got .*{received}"):
        BesselBasis(N, C)(lengths)


@pytest.mark.parametrize("envelope", [cosine_envelope, polynomial_envelope, bump_envelope])
@pytest.mark.parametrize("cutoff", [0.0, -2.0, float("nan"), "5"])
def test_envelopes_refuse_a_bad_cutoff(envelope, cutoff):
    with pytest.raises(ValueError, match=f"{envelope.__name__}.* got {cutoff!r}"):
        envelope(torch.rand(3), cutoff)


@pytest.mark.parametrize("p", [0, -1, 2.5])
def test_polynomial_envelope_refuses_a_bad_power(p):
    with pytest.raises(ValueError, match=f"p must be an integer .* got {p}"):
        polynomial_envelope(torch.rand(3), C, p)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    r = torch.linspace(0, 6, 500, dtype=torch.float64)
    for cls in BASES.values():
        assert (cls(N, C).cuda()(r.cuda()).cpu() - cls(N, C)(r)).abs().max() < 1e-13
    for envelope in ENVELOPES.values():
        assert (envelope(r.cuda(), C).cpu() - envelope(r, C)).abs().max() < 1e-14
