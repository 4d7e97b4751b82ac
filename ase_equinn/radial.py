"""Radial bases and cutoff envelopes: functions of an interatomic distance r and a cutoff c, both in Angstrom.

A basis turns distances (E,) into features (E, n); it carries no envelope, so it is in general not zero at the cutoff
(``SmoothFiniteBasis`` is, by construction). An envelope turns distances into weights that are exactly zero at and
beyond the cutoff, with as many derivatives as its continuity class says:

======================  ==========  =======================================================
envelope                class       at the cutoff, exactly zero
======================  ==========  =======================================================
``cosine_envelope``     C1          value, first derivative
``polynomial_envelope``  C2         value, first and second derivative
``bump_envelope``       C-infinity  value and all derivatives
======================  ==========  =======================================================

Everything here is elementwise, works in the dtype and on the device of its input, and can be differentiated twice
everywhere, r = 0 included. Envelopes are powers of t = 1 - r/c, so that their rounding errors fade out with them.
"""

from __future__ import annotations

from math import isfinite, pi, sqrt
from numbers import Integral, Real

import torch
from torch import Tensor, nn

_SMALL = 0.1  # below it sin(x)/x is summed as a series: beyond, cancellation costs its 2nd derivative < eps/x^2


def check_cutoff(name: str, cutoff: float) -> float:
    """The cutoff as a float, if it is a positive finite number; ValueError with the received value otherwise."""
    if isinstance(cutoff, bool) or not isinstance(cutoff, Real) or not (isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"{name}: the cutoff must be a positive number of Angstrom, got {cutoff!r}")
    return float(cutoff)


def check_count(name: str, what: str, value: int, least: int = 1) -> int:
    """The value as an int, if it is an integer >= least; ValueError with the received value otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: {what} must be an integer >= {least}, got {value!r}")
    return int(value)


class _RadialBasis(nn.Module):
    """n functions of the distance; subclasses write ``functions(lengths[:, None]) -> (E, n)``."""

    def __init__(self, n: int, cutoff: float):
        super().__init__()
        self.n = check_count(type(self).__name__, "n", n)
        self.cutoff = check_cutoff(type(self).__name__, cutoff)
        # Small integers are exact in every dtype, so a trip of the module through float32 loses nothing.
        self.register_buffer("_k", torch.arange(1, self.n + 1, dtype=torch.float64), persistent=False)

    def forward(self, lengths: Tensor) -> Tensor:
        """The basis at distances (E,) in Angstrom: (E, n) in the dtype of the distances."""
        if lengths.dim() != 1 or not lengths.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: expected floating-point distances of shape (E,), "
                f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
            )
        return self.functions(lengths.unsqueeze(-1), self._k.to(lengths))

    def functions(self, r: Tensor, k: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"n={self.n}, cutoff={self.cutoff:g}"


class GaussianBasis(_RadialBasis):
    """Gaussians on equidistant centres, each of standard deviation equal to the spacing.

    ``exp(-(r - mu_k)^2 / (2 d^2))``, ``mu_k`` from ``start`` to ``cutoff`` in n points, d their spacing
    (``cutoff - start`` if n = 1). Each has maximum 1.

    Args:
        n: number of functions, >= 1.
        cutoff: centre of the last one, Angstrom.
        start: centre of the first one, Angstrom, less than the cutoff.

    Raises:
        ValueError: n < 1, cutoff <= 0 or start >= cutoff, with the received value.

    Source: K. T. Schuett et al., SchNet, NeurIPS 30 (2017), section 4, "filter-generating networks".
    """

    def __init__(self, n: int, cutoff: float, start: float = 0.0):
        super().__init__(n, cutoff)
        if not isinstance(start, Real) or not isfinite(start) or start >= self.cutoff:
            raise ValueError(f"GaussianBasis: start must be less than the cutoff {self.cutoff:g}, got {start!r}")
        self.start = float(start)
        self.width = (self.cutoff - self.start) / max(self.n - 1, 1)

    def functions(self, r: Tensor, k: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((r - self.start) / self.width - (k - 1)).square())


class BesselBasis(_RadialBasis):
    """Spherical Bessel functions j0 with a node at the cutoff, orthonormal in the ball of radius c.

    ``sqrt(2/c) sin(k pi r / c) / r``, k = 1..n; at r = 0 the value is ``sqrt(2/c) k pi / c``, the slope 0 and the
    curvature ``-sqrt(2/c) (k pi / c)^3 / 3``. The integral of the product of two over r^2 dr from 0 to c is 1 or 0.

    Args:
        n: number of functions, >= 1.
        cutoff: c, Angstrom.
        trainable: let the frequencies ``k pi`` be parameters (``frequencies``, (n,)).

    Raises:
        ValueError: n < 1 or cutoff <= 0, with the received value.

    Source: J. Gasteiger, J. Gross, S. Guennemann, Directional message passing, ICLR 2020, eq. 7.
    """

    def __init__(self, n: int, cutoff: float, trainable: bool = False):
        super().__init__(n, cutoff)
        self.trainable = bool(trainable)
        if self.trainable:
            self.frequencies = nn.Parameter((pi * self._k).to(torch.get_default_dtype()))

    def functions(self, r: Tensor, k: Tensor) -> Tensor:
        wavenumbers = (self.frequencies if self.trainable else pi * k) / self.cutoff
        return sqrt(2 / self.cutoff) * wavenumbers * sinc(wavenumbers * r)


class ChebyshevBasis(_RadialBasis):
    """Chebyshev polynomials of the first kind, T_0 to T_{n-1}, on the interval from 0 to the cutoff.

    ``T_k(2 r / c - 1)``; each runs between -1 and 1, is 1 at the cutoff and (-1)^k at r = 0. They are orthogonal over
    dr / sqrt(r (c - r)): pi for k = 0, pi/2 for the others.

    Args:
        n: number of functions, >= 1; the first is constant.
        cutoff: c, Angstrom.

    Raises:
        ValueError: n < 1 or cutoff <= 0, with the received value.

    Source: N. Artrith, A. Urban, G. Ceder, Phys. Rev. B 96, 014112 (2017), the radial fingerprint.
    """

    def functions(self, r: Tensor, k: Tensor) -> Tensor:
        x = (2 / self.cutoff) * r - 1
        terms = [torch.ones_like(x), x]
        for _ in range(2, self.n):
            terms.append(2 * x * terms[-1] - terms[-2])
        return torch.cat(terms[: self.n], dim=-1)


class SmoothFiniteBasis(_RadialBasis):
    """Bumps of compact support on equidistant inner points; infinitely smooth, zero at r = 0 and from the cutoff on.

    ``1.14136 exp(2 - 2 / (1 - d^2))`` for |d| < 1, else 0, with ``d = r (n + 1) / c - k``, k = 1..n. With this factor
    the sum of squares, averaged over the interval, is close to 1 for large n.

    Args:
        n: number of functions, >= 1.
        cutoff: c, Angstrom.

    Raises:
        ValueError: n < 1 or cutoff <= 0, with the received value.

    Source: M. Geiger, T. Smidt, e3nn (arXiv:2207.09453), ``soft_one_hot_linspace(basis="smooth_finite", cutoff=True)``.
    """

    def functions(self, r: Tensor, k: Tensor) -> Tensor:
        t = 1 - (r * ((self.n + 1) / self.cutoff) - k).square()
        return 1.14136 * _exp_inverse(t, 2.0)


def sinc(x: Tensor) -> Tensor:
    """sin(x) / x, with value, first and second derivative correct to round-off everywhere, x = 0 included."""
    small = x.abs() < _SMALL
    x2 = x.square()
    series = 1 - x2 / 6 * (1 - x2 / 20 * (1 - x2 / 42 * (1 - x2 / 72)))
    safe = x.masked_fill(small, 1.0)
    return torch.where(small, series, torch.sin(safe) / safe)


def _exp_inverse(t: Tensor, strength: float) -> Tensor:
    """exp(strength (1 - 1/t)) for t > 0 and 0 elsewhere: all derivatives vanish at t = 0."""
    outside = t <= 0
    return torch.exp(strength - strength / t.masked_fill(outside, 1.0)).masked_fill(outside, 0.0)


def _to_cutoff(name: str, lengths: Tensor, cutoff: float) -> Tensor:
    """t = max(1 - r/c, 0)."""
    return torch.clamp(1 - lengths / check_cutoff(name, cutoff), min=0)


def cosine_envelope(lengths: Tensor, cutoff: float) -> Tensor:
    """Half a cosine wave from 1 at r = 0 to 0 at the cutoff: ``(1 + cos(pi r / c)) / 2``; C1 at the cutoff.

    Args:
        lengths: distances of any shape, Angstrom.
        cutoff: c, Angstrom.

    Returns:
        Weights in [0, 1] with the shape and dtype of lengths.

    Raises:
        ValueError: cutoff <= 0, with the received value.

    Source: J. Behler, M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007), eq. 3.
    """
    return torch.sin((pi / 2) * _to_cutoff("cosine_envelope", lengths, cutoff)).square()


def polynomial_envelope(lengths: Tensor, cutoff: float, p: int = 6) -> Tensor:
    """The polynomial of degree p + 2 that is 1 - O(r^p) at 0 and zero to second order at the cutoff; C2 there.

    ``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)`` with x = r/c, evaluated in the equal form
    ``(1 - x)^3 sum_{k<p} (k+1)(k+2)/2 x^k``, which has no cancellation near the cutoff.

    Args:
        lengths: distances of any shape, Angstrom.
        cutoff: c, Angstrom.
        p: integer >= 1.

    Returns:
        Weights in [0, 1] with the shape and dtype of lengths.

    Raises:
        ValueError: cutoff <= 0 or p < 1, with the received value.

    Source: J. Gasteiger, J. Gross, S. Guennemann, Directional message passing, ICLR 2020, eq. 8.
    """
    p = check_count("polynomial_envelope", "p", p)
    t = _to_cutoff("polynomial_envelope", lengths, cutoff)
    x = 1 - t
    total = torch.full_like(t, p * (p + 1) / 2)
    for k in range(p - 2, -1, -1):
        total = total * x + (k + 1) * (k + 2) / 2
    return t * t * t * total


def bump_envelope(lengths: Tensor, cutoff: float) -> Tensor:
    """The bump function ``exp(1 - 1/(1 - r^2/c^2))``: 1 at r = 0, zero with all derivatives at the cutoff.

    Args:
        lengths: distances of any shape, Angstrom.
        cutoff: c, Angstrom.

    Returns:
        Weights in [0, 1] with the shape and dtype of lengths.

    Raises:
        ValueError: cutoff <= 0, with the received value.

    Source: O. T. Unke et al., SpookyNet, Nat. Commun. 12, 7273 (2021), the cutoff function.
    """
    t = _to_cutoff("bump_envelope", lengths, cutoff)
    return _exp_inverse(t * (2 - t), 1.0)


BASES = {
    "gaussian": GaussianBasis,
    "bessel": BesselBasis,
    "chebyshev": ChebyshevBasis,
    "smooth_finite": SmoothFiniteBasis,
}
ENVELOPES = {"cosine": cosine_envelope, "polynomial": polynomial_envelope, "bump": bump_envelope}
