"""Harmonics against e3nn, Legendre and spherical Bessel functions against scipy; derivatives at the bad points."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.special import eval_legendre, spherical_jn
from torch.fx.experimental.proxy_tensor import make_fx

from ase_equinn.angular import legendre, spherical_bessel, spherical_bessel_roots, spherical_harmonics
from ase_equinn.irreps import wigner_d

LMAX = 8


def random_vectors(n, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3))).to(dtype)


def random_rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.linalg.det(q)


def block(l):
    return slice(l * l, (l + 1) ** 2)


# Spherical harmonics


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lmax", range(LMAX + 1))
def test_harmonics_are_e3nns(lmax, normalize):
    v = torch.nn.functional.normalize(random_vectors(200)) * torch.linspace(0.3, 1.5, 200)[:, None]
    want = o3.spherical_harmonics(list(range(lmax + 1)), v, normalize, normalization="component")
    got = spherical_harmonics(lmax, v, normalize)
    assert got.shape == (200, (lmax + 1) ** 2) and got.dtype == torch.float64
    assert (got - want).abs().max() < 1e-14 * 1.5**lmax * (lmax + 1) ** 1.5


def test_harmonics_to_degree_two_are_the_closed_forms():
    v = random_vectors(50)
    x, y, z = (v / v.norm(dim=1, keepdim=True)).T
    s = [math.sqrt(k) for k in range(16)]
    want = [
        torch.ones_like(x), s[3] * x, s[3] * y, s[3] * z,
        s[15] * x * z, s[15] * x * y, s[5] * (y * y - (x * x + z * z) / 2), s[15] * y * z, s[15] / 2 * (z * z - x * x),
    ]  # fmt: skip
    assert (spherical_harmonics(2, v) - torch.stack(want, -1)).abs().max() < 1e-14


def test_float32_harmonics_are_within_round_off():
    v = random_vectors(500)
    error = spherical_harmonics(LMAX, v.float()).double() - spherical_harmonics(LMAX, v.float().double())
    assert error.abs().max() < 1e-5  # components up to sqrt(17), eight products of error 6e-8


def test_squares_of_one_degree_add_up_to_2l_plus_1_and_parity_is_exact():
    v = random_vectors(100)
    y, mirrored = spherical_harmonics(LMAX, v), spherical_harmonics(LMAX, -v)
    for l in range(LMAX + 1):
        assert (y[:, block(l)].square().sum(1) - (2 * l + 1)).abs().max() < 1e-14 * (2 * l + 1)
        assert torch.equal(mirrored[:, block(l)], (-1) ** l * y[:, block(l)])


def test_harmonics_turn_with_the_wigner_matrices_of_irreps():
    v, rotation = random_vectors(20), random_rotation(3)
    y, turned = spherical_harmonics(LMAX, v), spherical_harmonics(LMAX, v @ torch.from_numpy(rotation).T)
    for l in range(LMAX + 1):
        d = torch.from_numpy(wigner_d(l, rotation))
        assert (turned[:, block(l)] - y[:, block(l)] @ d.T).abs().max() < 1e-13


def test_harmonics_are_orthogonal_on_the_sphere():
    """Gauss-Legendre x equidistant azimuths integrate polynomials of degree 2 lmax exactly; the mean square is 1."""
    nodes, weights = np.polynomial.legendre.leggauss(LMAX + 1)
    phi = 2 * np.pi * np.arange(2 * LMAX + 1) / (2 * LMAX + 1)
    cos, phi = (a.ravel() for a in np.meshgrid(nodes, phi, indexing="ij"))
    sin = np.sqrt(1 - cos**2)
    y = spherical_harmonics(LMAX, torch.from_numpy(np.stack([sin * np.sin(phi), cos, sin * np.cos(phi)], -1))).numpy()
    gram = np.einsum("r,ra,rb->ab", np.repeat(weights, 2 * LMAX + 1) / (2 * (2 * LMAX + 1)), y, y)
    assert np.abs(gram - np.eye((LMAX + 1) ** 2)).max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lmax", [0, 1, 2, 3, LMAX])
def test_a_vector_of_length_zero_gives_one_and_zeros_and_no_gradient(lmax, dtype):
    v = random_vectors(4, dtype=dtype)
    v[1] = 0.0
    v.requires_grad_()
    y = spherical_harmonics(lmax, v)
    assert y[1].tolist() == [1.0] + [0.0] * ((lmax + 1) ** 2 - 1)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=y.shape)).to(dtype)
    (first,) = torch.autograd.grad((weights * (y + y.pow(3))).sum(), v, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum() + first.sum(), v)
    assert not first[1].any() and not second[1].any()
    assert first.isfinite().all() and second.isfinite().all()
    if lmax > 0:
        assert first[[0, 2, 3]].any(dim=1).all() and second[[0, 2, 3]].any(dim=1).all()


def test_only_the_direction_counts_whatever_the_length():
    v = random_vectors(30)
    want = spherical_harmonics(4, v)
    for factor in (1e-100, 1e-9, 1e9, 1e100):
        assert (spherical_harmonics(4, v * factor) - want).abs().max() < 1e-13


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 5, LMAX])
def test_harmonics_gradcheck_to_second_order(lmax, normalize):
    v = torch.tensor([[0.6, -0.5, 0.7], [0.0, 0.8, 0.0], [1e-3, 0.0, -0.9]], dtype=torch.float64, requires_grad=True)

    def function(v):
        return spherical_harmonics(lmax, v, normalize)

    assert torch.autograd.gradcheck(function, v)
    assert torch.autograd.gradgradcheck(function, v, atol=1e-4)  # derivatives up to 8^2 * 4 in size


def test_unnormalised_harmonics_are_smooth_at_zero():
    v = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: spherical_harmonics(LMAX, v, normalize=False), v)


def test_shapes_input_and_layout():
    v = random_vectors(24).reshape(2, 3, 4, 3)
    before = v.clone()
    y = spherical_harmonics(3, v)
    assert y.shape == (2, 3, 4, 16) and torch.equal(v, before)
    assert torch.allclose(y[1, 2, 3], spherical_harmonics(3, v[1, 2, 3]), rtol=0, atol=1e-14)
    assert spherical_harmonics(3, v[:0]).shape == (0, 3, 4, 16)
    assert spherical_harmonics(2, random_vectors(0)).shape == (0, 9)


def test_constants_made_under_inference_mode_or_by_a_tracer_serve_training():
    from ase_equinn import angular

    def gradient(v):
        leaf = v.detach().requires_grad_()
        return torch.autograd.grad(spherical_harmonics(3, leaf).pow(3).sum(), leaf)[0]

    v = random_vectors(5)
    want = gradient(v)
    angular._constant.cache_clear()
    with torch.inference_mode():
        spherical_harmonics(3, v)
    assert torch.equal(gradient(v), want)
    for mode in ("real", "fake", "symbolic"):
        angular._constant.cache_clear()
        traced = make_fx(gradient, tracing_mode=mode)(v)
        assert torch.allclose(traced(v), want, rtol=1e-13) and torch.equal(gradient(v), want)


@pytest.mark.parametrize("lmax", [-1, 9, 2.0, "2", None, True])
def test_bad_degree_is_refused_with_the_value(lmax):
    with pytest.raises(ValueError, match=rf"lmax must be an integer from 0 to 8, got {lmax!r}"):
        spherical_harmonics(lmax, random_vectors(2))


@pytest.mark.parametrize("vectors, received", [
    (torch.rand(3, 2), r"\(3, 2\)"), (torch.tensor(1.0), r"\(\)"), (torch.rand(3, 4), r"\(3, 4\)"),
    (torch.zeros(2, 3, dtype=torch.int64), "int64"),
])  # fmt: skip
def test_bad_vectors_are_refused_with_shape_and_type(vectors, received):
    with pytest.raises(ValueError, match=f"vectors of shape .* got .*{received}"):
        spherical_harmonics(2, vectors)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    v = random_vectors(300)
    for lmax in range(LMAX + 1):
        assert (spherical_harmonics(lmax, v.cuda()).cpu() - spherical_harmonics(lmax, v)).abs().max() < 1e-13
    x = torch.linspace(0, 30, 500, dtype=torch.float64)
    assert (spherical_bessel(LMAX, x.cuda()).cpu() - spherical_bessel(LMAX, x)).abs().max() < 1e-14


# Legendre polynomials


def test_legendre_is_scipys_and_known_at_the_ends():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).requires_grad_()
    p = legendre(LMAX, x)
    assert p.shape == (101, LMAX + 1)
    for l in range(LMAX + 1):
        assert np.abs(p[:, l].detach().numpy() - eval_legendre(l, x.detach().numpy())).max() < 1e-14
        assert p[-1, l] == 1 and p[0, l] == (-1) ** l
    for l in range(1, LMAX + 1):
        (slope,) = torch.autograd.grad(p[:, l].sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert slope[-1].item() == pytest.approx(l * (l + 1) / 2, rel=1e-13)
        assert curvature[-1].item() == pytest.approx((l - 1) * l * (l + 1) * (l + 2) / 8, rel=1e-12)


def test_legendre_gradcheck_and_addition_theorem():
    x = torch.tensor([-1.0, -0.3, 0.0, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: legendre(6, x), x)
    assert torch.autograd.gradgradcheck(lambda x: legendre(6, x), x)
    a, b = (torch.nn.functional.normalize(random_vectors(40, seed)) for seed in (1, 2))
    products = spherical_harmonics(LMAX, a) * spherical_harmonics(LMAX, b)
    p = legendre(LMAX, (a * b).sum(1))
    for l in range(LMAX + 1):
        assert (products[:, block(l)].sum(1) - (2 * l + 1) * p[:, l]).abs().max() < 5e-13  # slope of P_l: 36


@pytest.mark.parametrize("function", [legendre, spherical_bessel])
@pytest.mark.parametrize("lmax", [-1, 1.5, None])
def test_legendre_and_bessel_refuse_a_bad_degree(function, lmax):
    with pytest.raises(ValueError, match=f"{function.__name__}: lmax .* got {lmax}"):
        function(lmax, torch.rand(3))


# Spherical Bessel functions


@pytest.mark.parametrize("lmax", [0, 1, 2, 4, LMAX, 15, 30, 50])
def test_spherical_bessel_is_scipys(lmax):
    x = torch.cat([torch.linspace(0, 70, 4001), torch.logspace(-3, 2, 500), torch.arange(60) + 1e-9]).double()
    want = np.stack([spherical_jn(l, x.numpy()) for l in range(lmax + 1)], -1)
    assert np.abs(spherical_bessel(lmax, x).numpy() - want).max() < 3e-15
    assert np.abs(spherical_bessel(lmax, x.float()).numpy() - want).max() < 2e-6


def test_small_arguments_keep_their_relative_accuracy():
    """Against 40-digit arithmetic, from 1e-30 to 3: j_l ~ x^l/(2l+1)!! loses no digits."""
    points = [1e-30, 1e-12, 1e-8, 1e-5, 1e-3, 0.03, 0.3, 0.99, 1.0, 1.7, 3.0]
    got = spherical_bessel(LMAX, torch.tensor(points, dtype=torch.float64)).numpy()
    with mp.workdps(60):
        for i, x in enumerate(points):
            for l in range(LMAX + 1):
                want = mp.sqrt(mp.pi / (2 * mp.mpf(x))) * mp.besselj(l + mp.mpf(1) / 2, mp.mpf(x))
                assert abs(got[i, l] / want - 1) < 5e-14 * (l + 1), (x, l)


def test_spherical_bessel_and_its_derivatives_at_zero():
    """j_0 = 1 - x^2/6, j_1 = x/3, j_2 = x^2/15; every other value, slope and curvature at 0 is 0."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    j = spherical_bessel(4, x)
    want = {0: (1, 0, -1 / 3), 1: (0, 1 / 3, 0), 2: (0, 0, 2 / 15)}
    for l in range(5):
        (slope,) = torch.autograd.grad(j[0, l], x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x, retain_graph=True)
        assert [j[0, l].item(), slope.item(), curvature.item()] == pytest.approx(want.get(l, (0, 0, 0)), abs=1e-15)


def test_spherical_bessel_satisfies_its_differential_equation():
    """x^2 j'' + 2 x j' + (x^2 - l(l+1)) j = 0, on both sides of every switch of method at x = 1..lmax."""
    x = torch.tensor([1e-6, 0.1, 0.999999, 1.000001, 2.5, 3.0, 7.999999, 8.000001, 20.0], dtype=torch.float64)
    x.requires_grad_()
    j = spherical_bessel(LMAX, x)
    for l in range(LMAX + 1):
        (slope,) = torch.autograd.grad(j[:, l].sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
        residue = x * x * curvature + 2 * x * slope + (x * x - l * (l + 1)) * j[:, l]
        assert (residue.abs() / (1 + x * x)).max() < 1e-14


def test_spherical_bessel_gradcheck_to_second_order_and_parity():
    x = torch.tensor([0.0, 1e-9, 0.3, 1.0, 2.0, 2.5, 7.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: spherical_bessel(LMAX, x), x)
    assert torch.autograd.gradgradcheck(lambda x: spherical_bessel(LMAX, x), x)
    signs = (-1.0) ** torch.arange(LMAX + 1)
    assert torch.equal(spherical_bessel(LMAX, -x), spherical_bessel(LMAX, x) * signs)


def test_spherical_bessel_shapes_and_integers():
    assert spherical_bessel(3, torch.rand(2, 5)).shape == (2, 5, 4)
    assert spherical_bessel(3, torch.rand(0)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"floating-point tensor, got torch.int64"):
        spherical_bessel(3, torch.arange(4))


def test_roots_are_roots_and_none_is_missed():
    roots = spherical_bessel_roots(LMAX, 10)
    assert roots.shape == (LMAX + 1, 10) and roots.dtype == np.float64
    assert np.abs(roots[0] - np.pi * np.arange(1, 11)).max() < 1e-14
    assert roots[1, :3] == pytest.approx([4.493409457909064, 7.725251836937707, 10.904121659428899], abs=1e-14)
    for l in range(LMAX + 1):
        assert np.abs(spherical_jn(l, roots[l])).max() < 5e-15
        grid = np.linspace(1e-3, roots[l, -1] + 0.1, 4000)
        signs = np.sign(spherical_jn(l, grid))
        assert np.count_nonzero(signs[1:] != signs[:-1]) == 10
    with pytest.raises(ValueError):
        roots[0, 0] = 1.0


@pytest.mark.parametrize("lmax, n, received", [(-1, 3, "-1"), (3, 0, "0"), (3, 1.5, "1.5"), ([1], 3, r"\[1\]")])
def test_roots_refuse_bad_numbers(lmax, n, received):
    with pytest.raises(ValueError, match=f"spherical_bessel_roots: .* got {received}"):
        spherical_bessel_roots(lmax, n)
