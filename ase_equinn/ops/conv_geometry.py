"""IR of what a convolution kernel knows about a block of edges before and after it meets channels, edges in vectors.

Before: knot, Hermite functions with derivatives, and the matrices M = sum of CG Y. After: gradients with respect to Y, or,
with dr, to the edges' vectors. All of it stands in the scratch: rows of BLOCK numbers, one per edge of the block.
"""

from __future__ import annotations

import numpy as np

from .conv_harmonics import direction, harmonics, harmonics_gradient
from .conv_variants import Entry, Variant
from .emitter import Dual, Emitter
from .paths import ConvPaths, Path
from .radial_table import HERMITE

BLOCK = 32  # edges of one centre handled together; a multiple of the lanes of every CPU


class EdgeBlock:
    """The edges `block` to `block + n` of one centre.

    Args:
        e: the kernel's emitter.
        pointers: by name, as ConvKernel lists them.
        paths, entries: the path table and the elements of its matrices.
        variant: of the kernel.
        constants: E, the last interval of a table (int64) and 1 / (knot distance).
    """

    def __init__(self, e: Emitter, pointers: dict, paths: ConvPaths, entries: dict[Path, list[Entry]], variant: Variant, constants):
        self.e, self.p, self.paths, self.entries, self.variant = e, pointers, paths, entries, variant
        self.n_edges, self.last_interval, self.inverse = constants
        self.scratch, n_rows = pointers["scratch"][0], sum(map(len, entries.values()))
        self._bases = {"knot": 0, "h": 2, "h'": 8, "dh": 14, "dh'": 20, "dr": 26}
        self._bases |= {"M": 27, "M'": 27 + n_rows, "dM": 27 + 2 * n_rows}

    @staticmethod
    def scratch_size(n_rows: int) -> int:
        """Numbers of scratch: knots; h and its tangent, h' and its tangent; dr; M, its tangent, dM."""
        return BLOCK * (27 + 3 * n_rows)

    def begin(self, block, stop) -> None:
        """Computes knots, Hermite functions and matrices of the edges from `block` up to `stop`, BLOCK at most."""
        e = self.e
        self.start = block
        self.n = e.b.sub(e.least(e.add(block, BLOCK), stop), block)
        with e.loop(0, self.n, e.lanes) as k:
            edge, mask = e.add(self.start, k), e.mask(e.b.sub(self.n, k))
            if self.variant.vectors:
                u, length, _ = self._direction(edge, mask)
                y = dict(enumerate(harmonics(e, self.paths.lmax, u, e.lanes)))
            else:
                length, y = e.load_masked(self.p["r"][0], edge, mask), self._harmonics("Y", edge, mask)
            rate = e.load_masked(self.p["r'"][0], edge, mask) if self.variant.dual else None
            self._radial(k, edge, mask, length, rate)
            self._matrices("M", k, y)
            if self.variant.dual:
                self._matrices("M'", k, self._harmonics("Y'", edge, mask))

    # scratch

    def _row(self, kind: str, number: int, k):
        return self.e.add(k, BLOCK * (self._bases[kind] + number))

    def save(self, value, kind: str, number: int, k) -> None:
        self.e.store(value, self.scratch, self._row(kind, number, k))

    def saved(self, kind: str, number: int, k, width: int = 1):
        return self.e.load(self.scratch, self._row(kind, number, k), width)

    def spread(self, kind: str, number: int, k, width: int) -> Dual:
        """A saved number of edge k in every lane, with its tangent in a dual kernel."""
        value = self.e.splat(self.saved(kind, number, k), width)
        tangent = self.e.splat(self.saved(kind + "'", number, k), width) if self.variant.dual else None
        return Dual(value, tangent)

    def knot(self, k):
        """The row of T where the interval of edge k begins."""
        return self.e.load_int(self.scratch, k)

    # before the channels

    def _direction(self, edge, mask):
        # Lanes without an edge hold (1, 1, 1), which gives nothing that floating-point units are slow at.
        vector = [self.e.load_masked(self.p[name][0], edge, mask, 1.0) for name in ("vx", "vy", "vz")]
        return direction(self.e, vector, self.e.lanes)

    def _harmonics(self, name: str, edge, mask) -> dict:
        e = self.e
        used = {m for rows in self.entries.values() for entry in rows for m, _ in entry.terms}
        return {m: e.load_masked(self.p[name][0], e.add(e.times(self.n_edges, m), edge), mask) for m in sorted(used)}

    def _radial(self, k, edge, mask, length, rate) -> None:
        """Knots, and the Hermite functions with their derivatives."""
        e, width = self.e, self.e.lanes
        inverse = e.splat(self.inverse, width)
        scaled = e.mul(length, inverse)
        whole, highest = e.floor(scaled), e.splat(e.to_number(self.last_interval, 1), width)
        whole = e.b.select(e.b.fcmp_ordered("<", whole, highest), whole, highest)
        t, knots = e.b.fsub(scaled, whole), e.to_int(whole, width)
        if self.variant.tables:
            knots = e.b.add(knots, e.load_ints_masked(self.p["first"][0], edge, mask))
        e.store_int(knots, self.scratch, k)
        for q, coefficients in enumerate(HERMITE):
            polynomials = [coefficients]
            for _ in range(2):
                polynomials.append(polynomials[-1][1:] * np.arange(1, len(polynomials[-1])))
            value, slope, curvature = (self._horner(c, t, width) for c in polynomials)
            slope = e.mul(slope, inverse)
            self.save(value, "h", q, k)
            self.save(slope, "dh", q, k)
            if self.variant.dual:
                self.save(e.mul(slope, rate), "h'", q, k)
                self.save(e.mul(e.mul(curvature, e.mul(inverse, inverse)), rate), "dh'", q, k)

    def _horner(self, coefficients, t, width: int):
        out = self.e.const(coefficients[-1], width)
        for c in coefficients[-2::-1]:
            out = self.e.fma(out, t, self.e.const(c, width))
        return out

    def _matrices(self, kind: str, k, y: dict) -> None:
        e = self.e
        for rows in self.entries.values():
            for entry in rows:
                total = None
                for m, c in entry.terms:
                    total = e.fma(e.const(c, e.lanes), y[m], total)
                self.save(total, kind, entry.row, k)

    # after the channels

    def end(self) -> None:
        """From dM (and dr) of every edge the gradients that leave the kernel."""
        e = self.e
        with e.loop(0, self.n, e.lanes) as k:
            edge, mask = e.add(self.start, k), e.mask(e.b.sub(self.n, k))
            dy = self._harmonics_gradient(k)
            if self.variant.vectors:
                self._vectors_gradient(k, edge, mask, dy)
            else:
                e.store_masked(self.saved("dr", 0, k, e.lanes), self.p["dr"][0], edge, mask)
                for m in range((self.paths.lmax + 1) ** 2):
                    index = e.add(e.times(self.n_edges, m), edge)
                    e.store_masked(dy.get(m, e.const(0, e.lanes)), self.p["dY"][0], index, mask)

    def _harmonics_gradient(self, k) -> dict:
        """dY_m = sum of coefficient * dM, for every m that occurs."""
        e, dy = self.e, {}
        for rows in self.entries.values():
            for entry in rows:
                matrix = self.saved("dM", entry.row, k, e.lanes)
                for m, c in entry.terms:
                    dy[m] = e.fma(e.const(c, e.lanes), matrix, dy.get(m))
        return dy

    def _vectors_gradient(self, k, edge, mask, dy: dict) -> None:
        """dL/dvector = dr u + (1 - u u^T) dL/du / r"""
        e, lmax = self.e, self.paths.lmax
        u, _, inverse = self._direction(edge, mask)
        du = harmonics_gradient(e, lmax, u, harmonics(e, lmax, u, e.lanes), dy, e.lanes)
        radial = None
        for a, b in zip(u, du):
            radial = e.fma(a, b, radial)
        along = e.b.fsub(self.saved("dr", 0, k, e.lanes), e.mul(radial, inverse))
        for name, a, b in zip(("gx", "gy", "gz"), u, du):
            gradient = e.fma(along, a, e.mul(b, inverse))
            if self.variant.add_vectors:
                gradient = e.b.fadd(e.load_masked(self.p[name][0], edge, mask), gradient)
            e.store_masked(gradient, self.p[name][0], edge, mask)
