"""The 2-D and 3-D bases: orthonormal by quadrature, equal to scipy's functions, smooth at the centre of the ball."""

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre, sph_harm_y, spherical_jn

from ase_equinn.angular import spherical_bessel_roots
from ase_equinn.angular_bases import BesselHarmonicBasis, BesselLegendreBasis

C = 4.0


def ball(n_radial, n_polar, n_azimuth=1):
    """Nodes (r, cos theta, phi) and weights of a quadrature over the ball of radius C, volume element included."""
    x, wx = np.polynomial.legendre.leggauss(n_radial)
    cos, wc = np.polynomial.legendre.leggauss(n_polar)
    phi = 2 * np.pi * np.arange(n_azimuth) / n_azimuth
    r = (x + 1) * C / 2
    weights = np.einsum("r,c,p->rcp", wx * C / 2 * r**2, wc, np.full(n_azimuth, 2 * np.pi / n_azimuth))
    return (*(torch.from_numpy(a.ravel()) for a in np.meshgrid(r, cos, phi, indexing="ij")), weights.ravel())


def test_two_dimensional_basis_is_orthonormal_over_the_ball():
    n, l = 5, 6
    r, cos, _, weights = ball(50, 10)
    f = BesselLegendreBasis(n, l, C)(r, cos).numpy()
    assert f.shape == (r.numel(), n * l)
    assert np.abs(np.einsum("r,ra,rb->ab", weights, f, f) - np.eye(n * l)).max() < 1e-12


def test_three_dimensional_basis_is_orthonormal_over_the_ball():
    n, l = 3, 4
    r, cos, phi, weights = ball(30, 6, 8)
    f = BesselHarmonicBasis(n, l, C)(r, torch.acos(cos), phi).numpy()
    assert f.shape == (r.numel(), n * l * l)
    assert np.abs(np.einsum("r,ra,rb->ab", weights, f, f) - np.eye(n * l * l)).max() < 1e-12


def radial(l, k, r):
    z = spherical_bessel_roots(l, k)[l, k - 1]
    return np.sqrt(2 / C**3) / abs(spherical_jn(l + 1, z)) * spherical_jn(l, z * r / C)


def coordinates(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, C, n), rng.uniform(0, np.pi, n), rng.uniform(-np.pi, np.pi, n)


def test_order_of_the_two_dimensional_basis_is_degree_then_root():
    r, theta, _ = coordinates()
    got = BesselLegendreBasis(3, 4, C)(torch.from_numpy(r), torch.from_numpy(np.cos(theta))).numpy()
    for l in range(4):
        for k in range(1, 4):
            want = radial(l, k, r) * np.sqrt((2 * l + 1) / (4 * np.pi)) * eval_legendre(l, np.cos(theta))
            assert np.abs(got[:, 3 * l + k - 1] - want).max() < 1e-13


def test_order_of_the_three_dimensional_basis_is_degree_then_root_then_m():
    """Real harmonics from scipy's complex ones: sqrt(2) (-1)^m times the imaginary (m < 0) or real (m > 0) part."""
    r, theta, phi = coordinates()
    got = BesselHarmonicBasis(2, 4, C)(*(torch.from_numpy(a) for a in (r, theta, phi))).numpy()
    column = 0
    for l in range(4):
        for k in (1, 2):
            for m in range(-l, l + 1):
                y = sph_harm_y(l, abs(m), theta, phi)
                y = y.real if m == 0 else np.sqrt(2) * (-1) ** m * (y.imag if m < 0 else y.real)
                assert np.abs(got[:, column] - radial(l, k, r) * y).max() < 1e-13, (l, k, m)
                column += 1
    assert column == got.shape[1]


def test_two_dimensional_basis_is_the_m_0_part_of_the_three_dimensional_one():
    r, theta, phi = (torch.from_numpy(a) for a in coordinates())
    flat, full = BesselLegendreBasis(2, 9, C), BesselHarmonicBasis(2, 9, C)
    columns = [2 * l * l + k * (2 * l + 1) + l for l in range(9) for k in range(2)]
    assert (full(r, theta, phi)[:, columns] - flat(r, torch.cos(theta))).abs().max() < 1e-13


@pytest.mark.parametrize("basis", [BesselLegendreBasis(3, 5, C), BesselHarmonicBasis(3, 5, C)])
def test_bases_vanish_at_the_cutoff_and_only_degree_zero_at_the_centre(basis):
    angles = [torch.tensor([0.3], dtype=torch.float64)] * (1 + isinstance(basis, BesselHarmonicBasis))
    assert basis(torch.tensor([C], dtype=torch.float64), *angles).abs().max() < 1e-14
    centre = basis(torch.zeros(1, dtype=torch.float64), *angles)[0]
    assert (centre[:3] > 0).all() and not centre[3:].any()


def test_two_dimensional_basis_gradcheck_to_second_order():
    basis = BesselLegendreBasis(2, 4, C)
    r = torch.tensor([0.0, 1e-9, 1e-3, 1.7, C - 1e-6, C, C + 1e-3], dtype=torch.float64, requires_grad=True)
    cos = torch.tensor([0.1, 1.0, -1.0, 0.5, -0.3, 0.0, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, (r, cos))
    assert torch.autograd.gradgradcheck(basis, (r, cos))


def test_three_dimensional_basis_gradcheck_to_second_order():
    basis = BesselHarmonicBasis(2, 3, C)
    r = torch.tensor([0.0, 1e-9, 1.7, C, C + 1e-3], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.0, np.pi, 1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    phi = torch.tensor([0.0, -np.pi, 1.0, 4.0, np.pi], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, (r, theta, phi))
    assert torch.autograd.gradgradcheck(basis, (r, theta, phi))


def test_second_derivatives_at_zero_distance_are_the_analytic_ones():
    """j_0(q r) -> -q^2/3, j_2(q r) -> 2 q^2/15, j_1 and j_3 -> 0."""
    basis = BesselLegendreBasis(1, 4, C)
    r = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    f = basis(r, torch.ones(1, dtype=torch.float64))[0]
    roots = spherical_bessel_roots(3, 1)[:, 0]
    factor = {0: -1 / 3, 2: 2 / 15}
    for l in range(4):
        (slope,) = torch.autograd.grad(f[l], r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, r, retain_graph=True)
        norm = np.sqrt(2 / C**3 * (2 * l + 1) / (4 * np.pi)) / abs(spherical_jn(l + 1, roots[l]))
        assert curvature.item() == pytest.approx(norm * (roots[l] / C) ** 2 * factor.get(l, 0), rel=1e-12, abs=1e-15)


def test_shapes_types_and_state():
    r, theta, phi = torch.rand(2, 5), torch.rand(2, 5), torch.rand(2, 5)
    flat, full = BesselLegendreBasis(3, 2, C), BesselHarmonicBasis(3, 2, C)
    assert flat(r, theta).shape == (2, 5, 6) and flat(r, theta).dtype == torch.float32
    assert full(r, theta, phi).shape == (2, 5, 12)
    assert flat(r[:0], theta[:0]).shape == (0, 5, 6)
    assert not flat.state_dict() and not full.state_dict()
    assert (flat.n, flat.l, flat.cutoff) == (3, 2, C) == (full.n, full.l, full.cutoff)
    exact = flat(r.double(), theta.double())
    assert (flat.float()(r, theta) - exact).abs().max() < 1e-6


@pytest.mark.parametrize("cls", [BesselLegendreBasis, BesselHarmonicBasis])
@pytest.mark.parametrize("n, l, cutoff, received", [
    (0, 3, C, "0"), (2, 0, C, "0"), (2, 10, C, "10"), (2, -1, C, "-1"), (1.5, 2, C, "1.5"), (2, 2, 0.0, "0.0"),
    (2, 2, -3, "-3"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_the_value(cls, n, l, cutoff, received):
    with pytest.raises(ValueError, match=f"{cls.__name__}: .* got {received}"):
        cls(n, l, cutoff)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got lengths .*\(3,\), cos_angle .*\(3, 1\)"):
        BesselLegendreBasis(2, 2, C)(torch.rand(3), torch.rand(3, 1))
    with pytest.raises(ValueError, match=r"phi torch.int64 \(3,\)"):
        BesselHarmonicBasis(2, 2, C)(torch.rand(3), torch.rand(3), torch.arange(3))


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    r, theta, phi = (torch.from_numpy(a) for a in coordinates())
    flat, full = BesselLegendreBasis(3, 4, C), BesselHarmonicBasis(3, 4, C)
    want = flat(r, torch.cos(theta)), full(r, theta, phi)
    got = flat.cuda()(r.cuda(), torch.cos(theta).cuda()), full.cuda()(r.cuda(), theta.cuda(), phi.cuda())
    for a, b in zip(got, want):
        assert (a.cpu() - b).abs().max() < 1e-13
