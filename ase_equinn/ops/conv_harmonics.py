"""IR of spherical harmonics and their gradient, a vector of edges at a time: what angular.spherical_harmonics gives.

Y_0 = 1,  Y_1 = sqrt(3) u,  Y_{l+1} = C_l (Y_l (x) u),  C_l the coupling l x 1 -> l+1
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np

from ..irreps import clebsch_gordan
from .emitter import Emitter


@lru_cache(maxsize=None)
def _step(l: int) -> list[tuple[int, int, int, float]]:
    """Non-zero elements (m of Y_{l+1}, m of Y_l, axis, coefficient) of C_l, scaled to sqrt(2l+3) on the polar axis."""
    coupling = clebsch_gordan(l, 1, l + 1)
    coupling = coupling * (sqrt((2 * l + 3) / (2 * l + 1)) / coupling[l, 1, l + 1])
    places = np.ndindex(2 * l + 3, 2 * l + 1, 3)
    return [(m3, m, axis, coupling[m, axis, m3]) for m3, m, axis in places if abs(coupling[m, axis, m3]) > 1e-12]


def direction(e: Emitter, vector: list, width: int) -> tuple:
    """(unit vector, length, 1 / length) of vectors given by components; length 0 gives 1 / length = 0 and so u = 0."""
    squares = None
    for component in vector:
        squares = e.fma(component, component, squares)
    length, zero = e.sqrt(squares), e.const(0, width)
    inverse = e.b.select(e.b.fcmp_ordered("==", squares, zero), zero, e.b.fdiv(e.const(1, width), length))
    return [e.mul(component, inverse) for component in vector], length, inverse


def harmonics(e: Emitter, lmax: int, u: list, width: int) -> list:
    """Y_0..Y_lmax of unit vectors, (lmax+1)^2 values."""
    degrees = [[e.const(1, width)]]
    if lmax > 0:
        degrees.append([e.mul(e.const(sqrt(3), width), component) for component in u])
    for l in range(1, lmax):
        y: list = [None] * (2 * l + 3)
        for m3, m, axis, c in _step(l):
            y[m3] = e.fma(e.mul(degrees[l][m], u[axis]), e.const(c, width), y[m3])
        degrees.append(y)
    return [value for degree in degrees for value in degree]


def harmonics_tangent(e: Emitter, lmax: int, u: list, rate: list, y: list, width: int) -> list:
    """The derivative of Y_0..Y_lmax along the tangent `rate` of u, from Y itself."""
    degrees = [[e.const(0, width)]]
    if lmax > 0:
        degrees.append([e.mul(e.const(sqrt(3), width), component) for component in rate])
    for l in range(1, lmax):
        out: list = [None] * (2 * l + 3)
        for m3, m, axis, c in _step(l):
            product = e.fma(y[l * l + m], rate[axis], e.mul(degrees[l][m], u[axis]))
            out[m3] = e.fma(product, e.const(c, width), out[m3])
        degrees.append(out)
    return [value for degree in degrees for value in degree]


def harmonics_gradient(e: Emitter, lmax: int, u: list, y: list, dy: dict, width: int) -> list:
    """dL/du (3 values) from Y and dy[m] = dL/dY_m, the recurrence run backwards; the values of dy are used up."""
    zero, du = e.const(0, width), [e.const(0, width)] * 3
    dy = {m: dy.get(m, zero) for m in range((lmax + 1) ** 2)}
    for l in range(lmax - 1, 0, -1):
        here, above = l * l, (l + 1) ** 2
        for m3, m, axis, c in _step(l):
            scaled = e.mul(dy[above + m3], e.const(c, width))
            du[axis] = e.fma(scaled, y[here + m], du[axis])
            dy[here + m] = e.fma(scaled, u[axis], dy[here + m])
    if lmax > 0:
        du = [e.fma(e.const(sqrt(3), width), dy[1 + axis], du[axis]) for axis in range(3)]
    return du
