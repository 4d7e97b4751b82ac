"""Irreducible representations of O(3): parsing, Clebsch-Gordan coefficients, Wigner D.

Conventions (all of the package follows them)
---------------------------------------------
* The basis of degree l is that of the real spherical harmonics, m = -l..l, in e3nn's order and signs; for l = 1 it is
  (x, y, z), so the l = 1 matrix of a rotation is the rotation itself.
* Parity p = +1 is "e", p = -1 is "o"; Y_l has parity (-1)^l.
* Features are lists with one tensor per irrep, channel-innermost: the block ``mul x l`` has shape (n, 2l+1, mul).
* Component normalisation: components of a feature have unit variance, |Y_l|^2 = 2l+1.

The coefficients are computed on demand (exact integer arithmetic under the square roots) and cached: a triple with
l <= 4 takes milliseconds, so no table is shipped.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import factorial, sqrt
from typing import Iterable, NamedTuple

import numpy as np

_TERM = re.compile(r"^(?:(\d+)x)?(\d+)([eo])$")


class MulIr(NamedTuple):
    """``mul`` copies of the irrep of degree ``l`` and parity ``p`` (+1 or -1)."""

    mul: int
    l: int
    p: int

    @property
    def dim(self) -> int:
        return self.mul * (2 * self.l + 1)

    def __str__(self) -> str:
        return f"{self.mul}x{self.l}{'e' if self.p == 1 else 'o'}"


class Irreps(tuple):
    """An ordered direct sum of irreps, ``Irreps("64x0e+32x1o")``.

    Args:
        irreps: a string such as ``"64x0e + 32x1o"`` (``"1o"`` means ``"1x1o"``), or MulIr-like triples (mul, l, p).

    Raises:
        ValueError: a term that does not read as ``<mul>x<l><e|o>``, with the term.
    """

    def __new__(cls, irreps: str | Iterable[tuple[int, int, int]] = "") -> "Irreps":
        if isinstance(irreps, str):
            terms = [_parse(term.strip(), irreps) for term in irreps.split("+")] if irreps.strip() else []
        else:
            terms = [MulIr(int(mul), int(l), int(p)) for mul, l, p in irreps]
            for term in terms:
                if term.mul < 0 or term.l < 0 or term.p not in (1, -1):
                    raise ValueError(f"irreps: expected (mul >= 0, l >= 0, p = +1 or -1), got {tuple(term)}")
        return super().__new__(cls, terms)

    @property
    def dim(self) -> int:
        return sum(term.dim for term in self)

    @property
    def lmax(self) -> int:
        return max((term.l for term in self), default=0)

    def count(self, l: int, p: int) -> int:  # noqa: E741
        """The total multiplicity of the irrep (l, p)."""
        return sum(term.mul for term in self if (term.l, term.p) == (l, p))

    def simplify(self) -> "Irreps":
        """The same sum with one term per irrep, ordered by l, then e before o; empty terms dropped."""
        keys = sorted({(t.l, -t.p) for t in self if t.mul})
        return Irreps([(self.count(l, -q), l, -q) for l, q in keys])

    def D(self, rotation: np.ndarray) -> np.ndarray:
        """The block-diagonal (dim, dim) matrix of an element of O(3), in mul-major order (each copy one block).

        Args:
            rotation: (3, 3) orthogonal matrix; an improper one multiplies odd irreps by -1.
        """
        rotation = np.asarray(rotation, dtype=np.float64)
        sign = np.sign(np.linalg.det(rotation))
        out = np.zeros((self.dim, self.dim))
        start = 0
        for mul, l, p in self:
            block = wigner_d(l, sign * rotation) * (sign if p == -1 else 1.0)
            for _ in range(mul):
                out[start : start + 2 * l + 1, start : start + 2 * l + 1] = block
                start += 2 * l + 1
        return out

    def __str__(self) -> str:
        return "+".join(str(term) for term in self)

    def __repr__(self) -> str:
        return f"Irreps({str(self)!r})"


def _parse(term: str, whole: str) -> MulIr:
    match = _TERM.match(term.replace(" ", ""))
    if match is None:
        raise ValueError(f"irreps: cannot read {term!r} in {whole!r}; write e.g. '64x0e+32x1o'")
    mul, l, p = match.groups()
    return MulIr(int(mul) if mul else 1, int(l), 1 if p == "e" else -1)


@lru_cache(maxsize=None)
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """The real coupling tensor C[m1, m2, m3] of Frobenius norm 1, invariant under D^l1 x D^l2 x D^l3.

    Obtained from the complex Clebsch-Gordan coefficients by the change to the real basis on each index.

    Args:
        l1, l2, l3: degrees with |l1-l2| <= l3 <= l1+l2.

    Returns:
        (2 l1+1, 2 l2+1, 2 l3+1) float64, read-only; e3nn's ``o3.wigner_3j`` including its sign.

    Raises:
        ValueError: the triangle condition does not hold.

    Source: Racah's formula, Varshalovich et al., Quantum Theory of Angular Momentum (1988), eq. 8.2.1(5).
    """
    if min(l1, l2, l3) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"clebsch_gordan: |l1-l2| <= l3 <= l1+l2 is needed, got l1={l1}, l2={l2}, l3={l3}")
    complex_cg = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            complex_cg[l1 + m1, l2 + m2, l3 + m1 + m2] = _racah(l1, m1, l2, m2, l3)
    q1, q2, q3 = (_real_to_complex(l) for l in (l1, l2, l3))
    real = np.einsum("ai,bj,ck,abc->ijk", q1, q2, q3.conj(), complex_cg)
    if np.abs(real.imag).max() > 1e-12:
        raise ArithmeticError(f"clebsch_gordan({l1}, {l2}, {l3}) is not real: {np.abs(real.imag).max()}")
    out = np.ascontiguousarray(real.real)
    out[np.abs(out) < 1e-14] = 0.0
    out /= np.linalg.norm(out)
    out.setflags(write=False)
    return out


def _racah(j1: int, m1: int, j2: int, m2: int, j3: int) -> float:
    m3 = m1 + m2
    f = factorial
    prefactor = Fraction(
        (2 * j3 + 1) * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3) * f(j3 + m3) * f(j3 - m3),
        f(j1 + j2 + j3 + 1) * f(j1 - m1) * f(j1 + m1) * f(j2 - m2) * f(j2 + m2),
    )
    total = Fraction(0)
    for v in range(max(0, j2 - j1 + m3, m1 - j1), min(j2 + j3 + m1, j3 - j1 + j2, j3 + m3) + 1):
        total += Fraction(
            (-1) ** (v + j2 + m2) * f(j2 + j3 + m1 - v) * f(j1 - m1 + v),
            f(v) * f(j3 - j1 + j2 - v) * f(j3 + m3 - v) * f(v + j1 - j2 - m3),
        )
    return float(total) * sqrt(prefactor)


def _real_to_complex(l: int) -> np.ndarray:  # noqa: E741
    """Columns: real harmonics of degree l expressed in the complex ones (Condon-Shortley), times (-i)^l."""
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    q[l, l] = 1.0
    for m in range(1, l + 1):
        q[l - m, l + m] = 1 / sqrt(2)
        q[l - m, l - m] = -1j / sqrt(2)
        q[l + m, l + m] = (-1) ** m / sqrt(2)
        q[l + m, l - m] = 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * q


def wigner_d(l: int, rotation: np.ndarray) -> np.ndarray:  # noqa: E741
    """The matrix D of a proper rotation on degree l: Y_l(R r) = D Y_l(r).

    Built up from D^1 = R by the coupling l x 1 -> l+1, so it is exact to round-off for every l.

    Args:
        rotation: (3, 3) proper rotation acting on column vectors.

    Returns:
        (2l+1, 2l+1) float64.

    Raises:
        ValueError: the matrix is not a proper rotation.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9):
        raise ValueError(f"wigner_d: expected an orthogonal 3x3 matrix, got {rotation.tolist()}")
    if np.linalg.det(rotation) < 0:
        raise ValueError("wigner_d: expected a proper rotation, got determinant -1")
    out = np.ones((1, 1))
    for degree in range(l):
        coupling = clebsch_gordan(degree, 1, degree + 1)
        out = (2 * degree + 3) * np.einsum("abi,ac,bd,cdj->ij", coupling, out, rotation, coupling, optimize=True)
    return out
