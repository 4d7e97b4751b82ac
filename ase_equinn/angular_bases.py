"""Bases in more than one coordinate: spherical Bessel functions times Legendre polynomials or spherical harmonics.

They are the eigenfunctions of a particle in a ball of radius c, ``N_ln j_l(z_ln r / c) Y_lm``, z_ln the n-th root of
j_l: orthonormal over the ball, zero at the cutoff (with a slope: multiply by an envelope) and smooth at its centre.
``l`` counts degrees: l = 3 means degrees 0, 1 and 2.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn

from .angular import LMAX, legendre, spherical_bessel, spherical_bessel_roots, spherical_harmonics
from .radial import check_count, check_cutoff


class _BesselTable(nn.Module):
    """``sqrt(2 / (c^3 j_{l+1}(z_ln)^2)) j_l(z_ln r / c)``: orthonormal over r^2 dr from 0 to c for each degree."""

    def __init__(self, name: str, n: int, l: int, cutoff: float):
        super().__init__()
        self.n = check_count(name, "n", n)
        self.l = check_count(name, "l", l)
        if self.l > LMAX + 1:
            raise ValueError(f"{name}: l counts degrees and may be {LMAX + 1} at most (degrees 0 to {LMAX}), got {l}")
        self.cutoff = check_cutoff(name, cutoff)
        roots = torch.from_numpy(spherical_bessel_roots(self.l - 1, self.n).copy())
        peaks = torch.stack([spherical_bessel(k + 1, z)[:, k + 1] for k, z in enumerate(roots)])
        self.register_buffer("_roots", roots, persistent=False)
        self.register_buffer("_norms", sqrt(2 / self.cutoff**3) / peaks.abs(), persistent=False)

    def forward(self, lengths: Tensor) -> Tensor:
        """(..., l, n) at distances (...)."""
        x = lengths.unsqueeze(-1) / self.cutoff
        rows = [spherical_bessel(k, x * z)[..., k] for k, z in enumerate(self._roots.to(lengths.dtype))]
        return torch.stack(rows, dim=-2) * self._norms.to(lengths.dtype)


def _check_same(name: str, **tensors: Tensor) -> None:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if len(set(shapes.values())) > 1 or not all(value.is_floating_point() for value in tensors.values()):
        got = ", ".join(f"{key} {value.dtype} {shapes[key]}" for key, value in tensors.items())
        raise ValueError(f"{name}: expected floating-point tensors of one shape, got {got}")


class BesselLegendreBasis(nn.Module):
    """The 2-D basis of DimeNet: functions of a distance and an angle, orthonormal over the ball of radius c.

    ``sqrt(2 / (c^3 j_{l+1}(z_ln)^2)) j_l(z_ln r / c) sqrt((2l+1) / 4 pi) P_l(cos a)`` for degrees 0 to l-1 and the
    roots 1 to n of each: the m = 0 part of the 3-D basis. No envelope.

    Args:
        n: number of roots per degree, >= 1.
        l: number of degrees, 1 to 9.
        cutoff: c, Angstrom.

    ``basis(lengths, cos_angle)``: tensors of one shape (...), Angstrom and cosine -> (..., n*l) in 1/Angstrom^1.5,
    the degree being the slow index.

    Raises:
        ValueError: n or l < 1, l > 9, cutoff <= 0 or shapes that differ, with the received value.

    Source: J. Gasteiger, J. Gross, S. Guennemann, Directional message passing, ICLR 2020, eq. 6.
    """

    def __init__(self, n: int, l: int, cutoff: float):
        super().__init__()
        self.radial = _BesselTable("BesselLegendreBasis", n, l, cutoff)
        self.n, self.l, self.cutoff = self.radial.n, self.radial.l, self.radial.cutoff

    def forward(self, lengths: Tensor, cos_angle: Tensor) -> Tensor:
        _check_same("BesselLegendreBasis", lengths=lengths, cos_angle=cos_angle)
        degrees = torch.arange(self.l, dtype=cos_angle.dtype, device=cos_angle.device)
        angular = legendre(self.l - 1, cos_angle) * torch.sqrt((2 * degrees + 1) / (4 * pi))
        return (self.radial(lengths) * angular.unsqueeze(-1)).flatten(-2)

    def extra_repr(self) -> str:
        return f"n={self.n}, l={self.l}, cutoff={self.cutoff:g}"


class BesselHarmonicBasis(nn.Module):
    """The 3-D basis of SphereNet: functions of distance, angle and torsion, orthonormal over the ball of radius c.

    ``sqrt(2 / (c^3 j_{l+1}(z_ln)^2)) j_l(z_ln r / c) Y_lm(theta, phi)`` for degrees 0 to l-1, the roots 1 to n of each
    and m = -l..l; Y_lm real, orthonormal on the sphere, sin(|m| phi) for m < 0 and cos(m phi) for m >= 0, without
    Condon-Shortley phase. No envelope.

    Args:
        n: number of roots per degree, >= 1.
        l: number of degrees, 1 to 9.
        cutoff: c, Angstrom.

    ``basis(lengths, theta, phi)``: tensors of one shape (...), Angstrom and radian (theta polar, phi torsion)
    -> (..., n*l^2) in 1/Angstrom^1.5; the degree is the slowest index, then the root, then m.

    Raises:
        ValueError: n or l < 1, l > 9, cutoff <= 0 or shapes that differ, with the received value.

    Source: Y. Liu et al., Spherical message passing for 3D molecular graphs, ICLR 2022 (arXiv:2102.05013), the basis
    of the torsion; L. Wang et al., ComENet, NeurIPS 35 (2022) uses the same.
    """

    def __init__(self, n: int, l: int, cutoff: float):
        super().__init__()
        self.radial = _BesselTable("BesselHarmonicBasis", n, l, cutoff)
        self.n, self.l, self.cutoff = self.radial.n, self.radial.l, self.radial.cutoff

    def forward(self, lengths: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        _check_same("BesselHarmonicBasis", lengths=lengths, theta=theta, phi=phi)
        sine = torch.sin(theta)  # the polar axis of the harmonics is y, the azimuth starts at z
        direction = torch.stack([sine * torch.sin(phi), torch.cos(theta), sine * torch.cos(phi)], dim=-1)
        harmonics = spherical_harmonics(self.l - 1, direction, normalize=False) / sqrt(4 * pi)
        radial = self.radial(lengths)
        blocks = [
            radial[..., k, :, None] * harmonics[..., None, k * k : (k + 1) ** 2] for k in range(self.l)
        ]  # fmt: skip
        return torch.cat([block.flatten(-2) for block in blocks], dim=-1)

    def extra_repr(self) -> str:
        return f"n={self.n}, l={self.l}, cutoff={self.cutoff:g}"
