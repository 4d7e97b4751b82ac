"""IR of what a convolution kernel knows about a block of edges before and after it meets channels, edges in vectors.

Before: knot, Hermite functions with derivatives, and the rows of the paths' forms. After: gradients with respect to r
and Y, or to the edges' vectors. All of it stands in the scratch: rows of BLOCK numbers, one per edge of the block.
"""

from __future__ import annotations

import numpy as np

from .conv_forms import Form, Row
from .conv_harmonics import direction, harmonics, harmonics_gradient, harmonics_tangent
from .conv_variants import Variant
from .emitter import Dual, Emitter
from .lanes import sums_of, transpose
from .paths import Path
from .radial_table import HERMITE

BLOCK = 32  # edges of one centre handled together; a multiple of the lanes of every CPU


class EdgeBlock:
    """The edges `start` to `start + n` of one centre.

    Args:
        e: the kernel's emitter.
        pointers: by name, as ConvKernel lists them.
        lmax: of Y.
        forms: how each path is multiplied out.
        variant: of the kernel.
        constants: E, the last interval of a table (int64) and 1 / (knot distance).

    Attributes:
        n_rows: of the scratch.
    """

    def __init__(self, e: Emitter, pointers: dict, lmax: int, forms: dict[Path, Form], variant: Variant, constants):
        self.e, self.p, self.lmax, self.variant = e, pointers, lmax, variant
        self.n_edges, self.last_interval, self.inverse = constants
        self.scratch = pointers["scratch"][0]
        self.rows: list[Row] = list(dict.fromkeys(row for form in forms.values() for row in form.rows))
        self.degrees = sorted({m for row in self.rows for m, _ in row})  # components of Y that occur
        slopes = variant.backward and variant.edge_gradient
        self._kinds = ["h", "dh"] if slopes else ["h"]
        sizes = {"knot": 2, "row": len(self.rows), "sums": self._group_rows() if slopes else 0}
        for kind in self._kinds:
            sizes |= {kind: 6} | ({kind + "'": 6} if variant.dual else {})
        if variant.dual:
            sizes["row'"] = len(self.rows)
        self._bases, self.n_rows = {}, 0
        for name, size in sizes.items():
            self._bases[name] = self.n_rows
            self.n_rows += size

    def begin(self, start, stop) -> None:
        """Computes knots, Hermite functions and rows of the edges from `start` up to `stop`, BLOCK at most."""
        e = self.e
        self.start = start
        self.n = e.b.sub(e.least(e.add(start, BLOCK), stop), start)
        with e.loop(0, self.n, e.lanes) as k:
            edge, mask = e.add(self.start, k), e.mask(e.b.sub(self.n, k))
            length, y, rate, dy = (self._from_vectors if self.variant.vectors else self._given)(edge, mask)
            self._radial(k, edge, mask, length, rate)
            self._combine("row", k, y)
            if self.variant.dual:
                self._combine("row'", k, dy)

    # scratch

    def _save(self, value, kind: str, number: int, k) -> None:
        self.e.store(value, self.scratch, self.e.add(k, BLOCK * (self._bases[kind] + number)))

    def _spread(self, kind: str, number: int, k, width: int):
        value = self.e.load(self.scratch, self.e.add(k, BLOCK * (self._bases[kind] + number)))
        return self.e.splat(value, width)

    def spread(self, kind: str, number: int, k, width: int) -> Dual:
        """A saved number of edge k in every lane, with its tangent in a dual kernel."""
        tangent = self._spread(kind + "'", number, k, width) if self.variant.dual else None
        return Dual(self._spread(kind, number, k, width), tangent)

    def row(self, row: Row, k, width: int) -> Dual:
        """A row of a form in every lane."""
        return self.spread("row", self.rows.index(row), k, width)

    def knot(self, k):
        """The row of T where the interval of edge k begins."""
        return self.e.load_int(self.scratch, k)

    # before the channels

    def _given(self, edge, mask) -> tuple:
        """r, Y and, in a dual kernel, their tangents."""
        out = []
        for mark in ("", "'") if self.variant.dual else ("",):
            out += [self.e.load_masked(self.p["r" + mark][0], edge, mask), self._harmonics("Y" + mark, edge, mask)]
        return tuple(out + [None] * (4 - len(out)))

    def _from_vectors(self, edge, mask) -> tuple:
        """What `_given` gives; dr = u dv, du = (dv - u dr) / r."""
        e, width = self.e, self.e.lanes
        u, length, inverse = self._direction(edge, mask)
        y = harmonics(e, self.lmax, u, width)
        if not self.variant.dual:
            return length, dict(enumerate(y)), None, None
        tangent, rate = [e.load_masked(self.p[name][0], edge, mask) for name in ("vx'", "vy'", "vz'")], None
        for a, b in zip(u, tangent):
            rate = e.fma(a, b, rate)
        turn = [e.mul(e.b.fsub(b, e.mul(a, rate)), inverse) for a, b in zip(u, tangent)]
        return length, dict(enumerate(y)), rate, dict(enumerate(harmonics_tangent(e, self.lmax, u, turn, y, width)))

    def _direction(self, edge, mask):
        # Lanes without an edge hold (1, 1, 1), which gives nothing that floating-point units are slow at.
        vector = [self.e.load_masked(self.p[name][0], edge, mask, 1.0) for name in ("vx", "vy", "vz")]
        return direction(self.e, vector, self.e.lanes)

    def _harmonics(self, name: str, edge, mask) -> dict:
        e = self.e
        return {m: e.load_masked(self.p[name][0], e.add(e.times(self.n_edges, m), edge), mask) for m in self.degrees}

    def _radial(self, k, edge, mask, length, rate) -> None:
        """Knots, and the Hermite functions of t in units of the knot distance with their derivatives."""
        e, width = self.e, self.e.lanes
        inverse = e.splat(self.inverse, width)
        scaled = e.mul(length, inverse)
        whole, highest = e.floor(scaled), e.splat(e.to_number(self.last_interval, 1), width)
        whole = e.b.select(e.b.fcmp_ordered("<", whole, highest), whole, highest)
        t, knots = e.b.fsub(scaled, whole), e.to_int(whole, width)
        if self.variant.tables:
            knots = e.b.add(knots, e.load_ints_masked(self.p["first"][0], edge, mask))
        e.store_int(knots, self.scratch, k)
        powers = self._powers(t)
        rate = None if rate is None else e.mul(rate, inverse)
        for q, coefficients in enumerate(HERMITE):
            polynomials = [coefficients]
            for kind in self._kinds:
                polynomials.append(polynomials[-1][1:] * np.arange(1, len(polynomials[-1])))
                self._save(self._polynomial(polynomials[-2], powers), kind, q, k)
                if self.variant.dual:
                    self._save(e.mul(self._polynomial(polynomials[-1], powers), rate), kind + "'", q, k)

    def _powers(self, t) -> list:
        powers = [None, t, self.e.mul(t, t)]
        return [*powers, self.e.mul(powers[2], t)]

    def _polynomial(self, coefficients, powers: list):
        """Horner's scheme that steps over coefficients that are 0."""
        e, total, gap = self.e, None, 0
        for c in reversed(coefficients):
            if total is not None:
                gap += 1
            if c != 0.0:
                constant = e.const(c, e.lanes)
                total, gap = constant if total is None else e.fma(total, powers[gap], constant), 0
        return e.mul(total, powers[gap]) if gap else total

    def _combine(self, kind: str, k, y: dict) -> None:
        e = self.e
        for number, row in enumerate(self.rows):
            total = y[row[0][0]] if row[0][1] == 1.0 else e.mul(e.const(row[0][1], e.lanes), y[row[0][0]])
            for m, c in row[1:]:
                total = e.fma(e.const(c, e.lanes), y[m], total)
            self._save(total, kind, number, k)

    # after the channels

    def keep_sums(self, k, slope, dy: dict) -> None:
        """Adds up over lanes, and keeps for edge k: dr in units of the knot distance, and dY_m by m."""
        e, parts = self.e, [slope, *(dy[m] for m in self.degrees)]
        size = self._group_rows()
        self._lanes = []  # where each part stands among an edge's sums
        for group in range(0, len(parts), e.lanes):
            total, lanes = sums_of(e, parts[group : group + e.lanes])
            self._lanes += [group + lane for lane in lanes]
            e.store(total, self.scratch, e.add(e.times(k, size), BLOCK * self._bases["sums"] + group))

    def _group_rows(self) -> int:
        return -(-(1 + len(self.degrees)) // self.e.lanes) * self.e.lanes

    def _sums(self, k) -> tuple:
        """dr and dY_m of a vector of edges."""
        e, size, columns = self.e, self._group_rows(), []
        for group in range(0, size, e.lanes):
            first = e.add(e.times(k, size), BLOCK * self._bases["sums"] + group)
            rows = [e.load(self.scratch, e.add(first, size * lane), e.lanes) for lane in range(e.lanes)]
            columns += transpose(e, rows)
        ordered = [columns[lane] for lane in self._lanes]
        return ordered[0], dict(zip(self.degrees, ordered[1:]))

    def end(self) -> None:
        """From the sums of every edge the gradients that leave the kernel."""
        e = self.e
        with e.loop(0, self.n, e.lanes) as k:
            edge, mask = e.add(self.start, k), e.mask(e.b.sub(self.n, k))
            slope, dy = self._sums(k)
            slope = e.mul(slope, e.splat(self.inverse, e.lanes))
            if self.variant.vectors:
                self._vectors_gradient(edge, mask, slope, dy)
            else:
                e.store_masked(slope, self.p["dr"][0], edge, mask)
                for m in range((self.lmax + 1) ** 2):
                    index = e.add(e.times(self.n_edges, m), edge)
                    e.store_masked(dy.get(m, e.const(0, e.lanes)), self.p["dY"][0], index, mask)

    def _vectors_gradient(self, edge, mask, slope, dy: dict) -> None:
        """dL/dvector = dr u + (1 - u u^T) dL/du / r"""
        e = self.e
        u, _, inverse = self._direction(edge, mask)
        du = harmonics_gradient(e, self.lmax, u, harmonics(e, self.lmax, u, e.lanes), dy, e.lanes)
        radial = None
        for a, b in zip(u, du):
            radial = e.fma(a, b, radial)
        along = e.b.fsub(slope, e.mul(radial, inverse))
        for name, a, b in zip(("gx", "gy", "gz"), u, du):
            gradient = e.fma(along, a, e.mul(b, inverse))
            if self.variant.add_vectors:
                gradient = e.b.fadd(e.load_masked(self.p[name][0], edge, mask), gradient)
            e.store_masked(gradient, self.p[name][0], edge, mask)
