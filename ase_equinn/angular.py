"""Special functions: real spherical harmonics, Legendre polynomials, spherical Bessel functions and their roots.

The harmonics are polynomials in the components of a direction, in the basis of irreps.py: order m = -l..l, polar axis
y, l = 1 is sqrt(3) (x, y, z). In spherical coordinates, u = (sin(theta) sin(phi), cos(theta), sin(theta) cos(phi)),
they are ``N_lm P_l^|m|(cos theta)`` times sin(|m| phi) for m < 0 and cos(m phi) for m >= 0, without Condon-Shortley
phase. Component normalisation: the squares of the 2l+1 components of one degree add up to 2l+1.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, sqrt
from numbers import Integral

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .irreps import clebsch_gordan
from .ops.symbols import is_symbolic
from .radial import check_count

LMAX = 8


def check_lmax(name: str, lmax: int, most: int = LMAX) -> int:
    """The degree as an int, if it is an integer from 0 to most; ValueError with the received value otherwise."""
    if isinstance(lmax, bool) or not isinstance(lmax, Integral) or not 0 <= lmax <= most:
        raise ValueError(f"{name}: lmax must be an integer from 0 to {most}, got {lmax!r}")
    return int(lmax)


def spherical_harmonics(lmax: int, vectors: Tensor, normalize: bool = True) -> Tensor:
    """Real spherical harmonics of degree 0 to lmax: ``sum_m Y_lm(r)^2 = 2l+1``, e3nn's basis, order and signs.

    Degrees 0 to 2 are one product of (1, r) (x) (1, r) with a constant matrix; each further degree is
    ``Y_{l+1} = C (Y_l (x) r)``, C the coupling l x 1 -> l+1. So all are homogeneous polynomials of degree l.

    Args:
        lmax: highest degree, 0 to 8.
        vectors: (..., 3), any length.
        normalize: divide by the length first. If False, the result is |r|^l times that of the direction.

    Returns:
        (..., (lmax+1)^2) with the dtype of vectors; twice differentiable. A vector of length 0 gives 1 for l = 0 and 0
        with zero gradient for l > 0 (normalised). In memory the component is the slow index: ask for ``.contiguous()``
        where that matters.

    Raises:
        ValueError: lmax outside 0..8, or vectors not floating point of shape (..., 3), with the received value.

    Source: the recurrence is e3nn's (arXiv:2207.09453, section on spherical harmonics), here on stacked components.
    """
    lmax = check_lmax("spherical_harmonics", lmax)
    if is_symbolic(vectors) and normalize:
        return vectors.harmonics(lmax)
    if vectors.dim() < 1 or vectors.shape[-1] != 3 or not vectors.is_floating_point():
        raise ValueError(
            f"spherical_harmonics: expected floating-point vectors of shape (..., 3), "
            f"got {vectors.dtype} of shape {tuple(vectors.shape)}"
        )
    rows = _polynomials(lmax, vectors.reshape(-1, 3).T.contiguous(), normalize)
    return rows.T.reshape(*vectors.shape[:-1], (lmax + 1) ** 2)


def _polynomials(lmax: int, v: Tensor, normalize: bool) -> Tensor:
    """((lmax+1)^2, E) from v (3, E): with components outermost every step runs along the vectors, 5 times faster."""
    if lmax == 0:
        return pad(v[:0], (0, 0, 1, 0), value=1.0)
    if normalize:
        squares = v.square().sum(0, keepdim=True)
        v = v * squares.masked_fill(squares == 0, inf).rsqrt()  # 1/sqrt(inf) = 0, and so are its derivatives
    if lmax == 1:
        return pad(sqrt(3) * v, (0, 0, 1, 0), value=1.0)
    v1 = pad(v, (0, 0, 1, 0), value=1.0)
    out = [_matrix(1, v) @ _product(v1, v1)]
    y = out[0][4:]
    for l in range(2, lmax):
        y = _matrix(l, v) @ _product(y, v)
        out.append(y)
    return out[0] if lmax == 2 else torch.cat(out)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) * b).flatten(0, 1)


def _matrix(l: int, like: Tensor) -> Tensor:
    """The constant matrix of one step, in the dtype and on the device of a tensor, from the cache."""
    # A tracer's symbolic tensor must neither meet a cached real constant nor leave its own in the cache.
    build = _constant if type(like) is Tensor else _constant.__wrapped__
    return build(l, like.dtype, like.device)


@lru_cache(maxsize=None)
def _constant(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a constant born in inference mode could never be used in training
        matrix = np.ascontiguousarray(_first_degrees() if l == 1 else _raise_degree(l))
        return torch.as_tensor(matrix, dtype=dtype, device=device)


@lru_cache(maxsize=None)
def _raise_degree(l: int) -> np.ndarray:
    """(2l+3, 3(2l+1)): Y_{l+1} = this @ (Y_l (x) u), scaled to be sqrt(2l+3) on the polar axis."""
    coupling = clebsch_gordan(l, 1, l + 1)
    scale = sqrt((2 * l + 3) / (2 * l + 1)) / coupling[l, 1, l + 1]
    return (scale * coupling).reshape(3 * (2 * l + 1), 2 * l + 3).T


def _first_degrees() -> np.ndarray:
    """(9, 16): Y_0..Y_2 = this @ ((1, u) (x) (1, u))."""
    out = np.zeros((9, 4, 4))
    out[0, 0, 0] = 1.0
    out[1:4, 0, 1:] = sqrt(3) * np.eye(3)
    out[4:, 1:, 1:] = sqrt(3) * _raise_degree(1).reshape(5, 3, 3)
    return out.reshape(9, 16)


def legendre(lmax: int, cos: Tensor) -> Tensor:
    """Legendre polynomials P_0 to P_lmax, with ``P_l(1) = 1``, by ``(l+1) P_{l+1} = (2l+1) x P_l - l P_{l-1}``.

    Args:
        lmax: highest degree, >= 0.
        cos: cosines of angles, any shape (...).

    Returns:
        (..., lmax+1) with the dtype of cos; a polynomial, so any value of cos is allowed.

    Raises:
        ValueError: lmax negative or no integer, with the received value.

    Source: NIST Digital Library of Mathematical Functions, 18.9.1 with table 18.9.1 (Legendre).
    """
    lmax = check_lmax("legendre", lmax, most=1000)
    terms = [torch.ones_like(cos), cos]
    for l in range(1, lmax):
        terms.append(((2 * l + 1) * cos * terms[-1] - l * terms[-2]) / (l + 1))
    return torch.stack(terms[: lmax + 1], dim=-1)


def spherical_bessel(lmax: int, x: Tensor) -> Tensor:
    """Spherical Bessel functions of the first kind j_0 to j_lmax, accurate to round-off for small and large x alike.

    ``j_0 = sin(x)/x``; upward ``j_{l+1} = (2l+1)/x j_l - j_{l-1}`` where |x| > l+1, and ``j_{l+1} = r_{l+1} j_l``
    elsewhere, with the continued fraction ``r_l = x / (2l+1 - x r_{l+1})`` run downward. The derivative is the sum
    ``j_l' = (l j_{l-1} - (l+1) j_{l+1}) / (2l+1)``, so that it holds at x = 0 and can be taken any number of times.

    Args:
        lmax: highest degree, 0 to 50.
        x: any shape (...), floating point.

    Returns:
        (..., lmax+1) with the dtype of x.

    Raises:
        ValueError: lmax outside 0..50 or x not floating point, with the received value.

    Source: NIST Digital Library of Mathematical Functions, 10.51.1, 10.51.2 and 10.74(iv).
    """
    lmax = check_lmax("spherical_bessel", lmax, most=50)
    if not x.is_floating_point():
        raise ValueError(f"spherical_bessel: expected a floating-point tensor, got {x.dtype}")
    return _SphericalBessel.apply(x, lmax)


class _SphericalBessel(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, lmax: int) -> Tensor:
        small = x.clamp(-lmax, lmax)  # where |x| > lmax the ratios are not used, and could have poles
        ratio, ratios = torch.zeros_like(x), []
        # 12 + lmax/4 more steps converge the fraction to float64 for |x| <= lmax <= 50.
        for l in range(lmax + 12 + lmax // 4 if lmax else 0, 0, -1):
            ratio = small / (2 * l + 1 - small * ratio)
            ratios.append(ratio)
        safe = x.masked_fill(x == 0, 1.0)
        below, j = torch.cos(safe) / safe, torch.where(x == 0, 1.0, torch.sin(safe) / safe)
        out = [j]
        for l in range(lmax):
            upward = (2 * l + 1) / safe * j - below
            below, j = j, torch.where(x.abs() > l + 1, upward, ratios[-1 - l] * j)
            out.append(j)
        return torch.stack(out, dim=-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.lmax = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        j = _SphericalBessel.apply(x, ctx.lmax + 1)
        l = torch.arange(ctx.lmax + 1, dtype=x.dtype, device=x.device)
        slope = (l * pad(j[..., :-2], (1, 0)) - (l + 1) * j[..., 1:]) / (2 * l + 1)
        return (grad * slope).sum(-1), None


def spherical_bessel_roots(lmax: int, n: int) -> np.ndarray:
    """The first n positive roots of j_0 to j_lmax, each a zero to round-off; those of j_0 are k pi.

    The roots of j_l interlace with those of j_{l-1}, which brackets every one of them.

    Args:
        lmax: highest degree, 0 to 50.
        n: number of roots of each, >= 1.

    Returns:
        (lmax+1, n) float64, ascending along the second axis, read-only.

    Raises:
        ValueError: lmax outside 0..50 or n < 1, with the received value.

    Source: NIST Digital Library of Mathematical Functions, 10.21(i) (interlacing).
    """
    return _roots(check_lmax("spherical_bessel_roots", lmax, most=50), check_count("spherical_bessel_roots", "n", n))


@lru_cache(maxsize=None)
def _roots(lmax: int, n: int) -> np.ndarray:
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    roots = np.pi * np.arange(1, n + lmax + 1)
    rows = [roots[:n]]
    for l in range(1, lmax + 1):
        roots = np.array([brentq(lambda x: spherical_jn(l, x), a, b, xtol=1e-14) for a, b in zip(roots, roots[1:])])
        rows.append(roots[:n])
    out = np.stack(rows)
    out.setflags(write=False)
    return out
