"""IR of the fused convolution: forward, backward, and the derivatives of both, from one path table.

With w(r) interpolated in a table T and M[e] = sum_m CG Y_m(e), per edge e = (i, j), path p and channel c,

    t[m1] = w x_j[m1]                A_i[m3]  += M[m3, m1] t[m1]                     (forward)
    u[m1] = M[m3, m1] g_i[m3]        dx_j[m1] += w u[m1],   dM[m3, m1] += t[m1] g_i[m3],
                                     dw = u[m1] x_j[m1],    dr += dw w',   dT[q] += basis_q dw     (backward, g = dL/dA)

Messages and weights live in registers. The kernels are written in dual arithmetic: with tangents of x, Y, r (and T) they
yield the derivative of the same outputs in that direction, which is what differentiating the backward pass needs.

The radial table is quintic Hermite: per knot the value, first and second derivative in units of the knot distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir

from ..irreps import clebsch_gordan
from .emitter import Dual, Emitter
from .paths import ConvPaths, Path
from .radial_table import HERMITE

BLOCK = 32  # edges of one centre handled together
_REGISTERS = 22  # vector accumulators of one pass over the edges


class Entry(NamedTuple):
    """Element (m3, m1) of a path's matrix M = sum of coefficient * Y_m over `terms`; `row` of the scratch holds it."""

    m3: int
    m1: int
    row: int
    terms: list[tuple[int, float]]


def entries(paths: ConvPaths) -> dict[Path, list[Entry]]:
    """The non-zero elements of every path's matrix, numbered through."""
    out, row = {}, 0
    for path in paths.paths:
        l_in, l_out = paths.irreps_in[path.i_in].l, paths.irreps_out[path.i_out].l
        coupling = clebsch_gordan(l_in, path.l_sh, l_out) * np.sqrt(2 * l_out + 1)
        out[path] = []
        for m3 in range(2 * l_out + 1):
            for m1 in range(2 * l_in + 1):
                terms = [(path.l_sh**2 + m2, c) for m2, c in enumerate(coupling[m1, :, m3]) if abs(c) > 1e-12]
                if terms:
                    out[path].append(Entry(m3, m1, row, terms))
                    row += 1
    return out


class Variant(NamedTuple):
    """Which function of the family: what it returns and which inputs have tangents."""

    backward: bool
    dual: bool = False  # x, Y and r have tangents, and the outputs are derivatives along them
    table_tangent: bool = False  # T has one as well
    x_gradient: bool = True
    table_gradient: bool = False
    tables: bool = False  # every edge has a table of its own, which begins at a row of T

    @property
    def name(self) -> str:
        flags = ("dual", "table_tangent", "x_gradient", "table_gradient", "tables")
        return "_".join(["backward" if self.backward else "forward", *(f for f in flags if getattr(self, f))])


class ConvKernel:
    """Emits one variant.

    Pointers, in this order: row_ptr, neighbour (int64); scratch; r (E,), Y (n_sh, E), T (knots, 3, n_weights), x...;
    if dual their tangents in the same order (T's only with table_tangent); forward: out...; backward: g..., dr, dY,
    dT (with table_gradient), dx... (with x_gradient); last the first rows of the edges' tables (int64, with tables).
    Integers: first and last centre, E, knots of a table - 1, and the bits of 1 / (knot distance) as float64.

    dx and dT are added to, everything else is overwritten.
    """

    def __init__(self, paths: ConvPaths, variant: Variant, bits: int, lanes: int):
        self.paths, self.variant = paths, variant
        self.entries = entries(paths)
        self.n_rows = sum(map(len, self.entries.values()))
        n_in, n_out = len(paths.irreps_in), len(paths.irreps_out)
        counts = {"row_ptr": 1, "neighbour": 1, "scratch": 1, "r": 1, "Y": 1, "T": 1, "x": n_in}
        if variant.dual:
            counts |= {"r'": 1, "Y'": 1, "T'": int(variant.table_tangent), "x'": n_in}
        if variant.backward:
            counts |= {"g": n_out, "dr": 1, "dY": 1, "dT": int(variant.table_gradient), "dx": n_in * variant.x_gradient}
        else:
            counts |= {"out": n_out}
        counts |= {"first": int(variant.tables)}
        self.n_pointers, self.n_integers = sum(counts.values()), 5
        self.e = Emitter(variant.name, self.n_pointers, self.n_integers, bits, lanes)
        pointers = iter(self.e.pointers)
        self.p = {name: [next(pointers) for _ in range(count)] for name, count in counts.items()}
        self.first, self.last, self.n_edges, self.n_intervals, inverse = self.e.integers
        self.inverse = self.e.b.bitcast(inverse, ir.DoubleType())
        if bits == 32:
            self.inverse = self.e.b.fptrunc(self.inverse, self.e.number)

    @staticmethod
    def scratch_size(n_rows: int) -> int:
        """Numbers of scratch that one thread needs: knots; h and its tangent, h' and its tangent; M, its tangent, dM."""
        return BLOCK * (2 + 24 + 3 * n_rows)

    def source(self) -> str:
        e, row_ptr = self.e, self.p["row_ptr"][0]
        with e.loop(self.first, self.last) as i:
            self.i = i
            start, stop = e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))
            if not self.variant.backward:
                self._clear()
            with e.loop(start, stop, BLOCK) as block:
                self.block = block
                self.n = e.b.sub(e.least(e.add(block, BLOCK), stop), block)
                self._geometry()
                if self.variant.backward:
                    self._backward()
                else:
                    self._forward()
        return e.finish()

    # scratch: rows of BLOCK numbers, one per edge of the block

    def _row(self, kind: str, number: int, k):
        base = {"knot": 0, "h": 2, "h'": 8, "dh": 14, "dh'": 20}
        base |= {"M": 26, "M'": 26 + self.n_rows, "dM": 26 + 2 * self.n_rows}
        return self.e.add(k, BLOCK * (base[kind] + number))

    def _save(self, value, kind: str, number: int, k) -> None:
        self.e.store(value, self.p["scratch"][0], self._row(kind, number, k))

    def _saved(self, kind: str, number: int, k, width: int = 1):
        return self.e.load(self.p["scratch"][0], self._row(kind, number, k), width)

    def _spread(self, kind: str, number: int, k, width: int) -> Dual:
        """A saved number of edge k in every lane, with its tangent in a dual kernel."""
        value = self.e.splat(self._saved(kind, number, k), width)
        tangent = self.e.splat(self._saved(kind + "'", number, k), width) if self.variant.dual else None
        return Dual(value, tangent)

    def _geometry(self) -> None:
        """Per edge of the block: knot, Hermite functions with derivatives, and the matrices M."""
        e, scratch = self.e, self.p["scratch"][0]
        for k, width in e.vectors(self.n):
            edge = e.add(self.block, k)
            inverse = e.splat(self.inverse, width)
            scaled = e.mul(e.load(self.p["r"][0], edge, width), inverse)
            highest = e.to_number(e.b.sub(self.n_intervals, e.int(1)), 1)
            whole = e.floor(scaled)
            highest = e.splat(highest, width)
            whole = e.b.select(e.b.fcmp_ordered("<", whole, highest), whole, highest)
            t = e.b.fsub(scaled, whole)
            knots = e.to_int(whole, width)
            for lane in range(width):
                knot = e.b.extract_element(knots, e.int(lane)) if width > 1 else knots
                if self.variant.tables:
                    knot = e.add(knot, e.load_int(self.p["first"][0], e.add(edge, lane)))
                e.store_int(knot, scratch, e.add(k, lane))
            rate = e.load(self.p["r'"][0], edge, width) if self.variant.dual else None
            for q, coefficients in enumerate(HERMITE):
                polynomials = [coefficients]
                for _ in range(2):
                    polynomials.append(polynomials[-1][1:] * np.arange(1, len(polynomials[-1])))
                value, slope, curvature = (self._horner(c, t, width) for c in polynomials)
                slope = e.mul(slope, inverse)
                self._save(value, "h", q, k)
                self._save(slope, "dh", q, k)
                if self.variant.dual:
                    self._save(e.mul(slope, rate), "h'", q, k)
                    self._save(e.mul(e.mul(curvature, e.mul(inverse, inverse)), rate), "dh'", q, k)
            for kind in ("M", "M'") if self.variant.dual else ("M",):
                self._matrices(kind, k, edge, width)

    def _horner(self, coefficients, t, width: int):
        out = self.e.const(coefficients[-1], width)
        for c in coefficients[-2::-1]:
            out = self.e.fma(out, t, self.e.const(c, width))
        return out

    def _matrices(self, kind: str, k, edge, width: int) -> None:
        e, source = self.e, self.p["Y'" if kind == "M'" else "Y"][0]
        used = {m for rows in self.entries.values() for entry in rows for m, _ in entry.terms}
        y = {m: e.load(source, e.add(e.times(self.n_edges, m), edge), width) for m in sorted(used)}
        for rows in self.entries.values():
            for entry in rows:
                total = None
                for m, c in entry.terms:
                    total = e.fma(e.const(c, width), y[m], total)
                self._save(total, kind, entry.row, k)

    # addresses

    def _out_index(self, path: Path, m3: int, channel):
        mul, l_out, _ = self.paths.irreps_out[path.i_out]
        return self.e.add(self.e.times(self.e.add(self.e.times(self.i, 2 * l_out + 1), m3), mul), self.e.add(channel, path.start))

    def _inputs(self, i_in: int, j, channel, width: int) -> list[Dual]:
        """x_j[m1], one per m1."""
        e = self.e
        mul, l_in, _ = self.paths.irreps_in[i_in]
        out = []
        for m1 in range(2 * l_in + 1):
            index = e.add(e.times(e.add(e.times(j, 2 * l_in + 1), m1), mul), channel)
            tangent = e.load(self.p["x'"][i_in], index, width) if self.variant.dual else None
            out.append(Dual(e.load(self.p["x"][i_in], index, width), tangent))
        return out

    def _table_index(self, k, q: int, path: Path, channel):
        knot = self.e.load_int(self.p["scratch"][0], k)
        return self.e.add(self.e.times(self.e.add(self.e.times(knot, 3), q), self.paths.n_weights), self.e.add(channel, path.weight))

    def _weight(self, kinds: tuple[str, ...], path: Path, k, channel, width: int) -> list[Dual]:
        """sum_q basis_q T[q] for each of the bases "h" (the weight) and "dh" (its derivative with respect to r)."""
        e, out = self.e, [None] * len(kinds)
        for q in range(6):
            index = self._table_index(k, q, path, channel)
            tangent = e.load(self.p["T'"][0], index, width) if self.variant.table_tangent else None
            value = Dual(e.load(self.p["T"][0], index, width), tangent)
            out = [e.dual_fma(self._spread(kind, q, k, width), value, total) for kind, total in zip(kinds, out)]
        return out

    def _result(self, dual: Dual):
        return dual.tangent if self.variant.dual else dual.value

    # forward

    def _clear(self) -> None:
        e = self.e
        for i_out, term in enumerate(self.paths.irreps_out):
            for start, stop, width in e.pieces(term.dim):
                with e.piece(start, stop, width) as offset:
                    e.store(e.const(0, width), self.p["out"][i_out], e.add(e.times(self.i, term.dim), offset))

    def _forward(self) -> None:
        for i_in, (mul, _, _) in enumerate(self.paths.irreps_in):
            for group in self._groups(i_in):
                for start, stop, width in self.e.pieces(mul):
                    with self.e.piece(start, stop, width) as channel:
                        self._forward_pass(i_in, group, channel, width)

    def _groups(self, i_in: int) -> list[list[Path]]:
        """The paths of an input block, split so that the sums of each group fit into registers."""
        groups, used = [], _REGISTERS
        for path in self.paths.of_input(i_in):
            size = 2 * self.paths.irreps_out[path.i_out].l + 1
            if used + size > _REGISTERS:
                groups.append([])
                used = 0
            groups[-1].append(path)
            used += size
        return groups

    def _forward_pass(self, i_in: int, group: list[Path], channel, width: int) -> None:
        e, sums = self.e, {}
        for path in group:
            for m3 in range(2 * self.paths.irreps_out[path.i_out].l + 1):
                slot, place = e.variable(width), (self.p["out"][path.i_out], self._out_index(path, m3, channel))
                e.set(slot, e.load(*place, width))
                sums[path, m3] = slot, place
        with e.loop(0, self.n) as k:
            j = e.load_int(self.p["neighbour"][0], e.add(self.block, k))
            x = self._inputs(i_in, j, channel, width)
            for path in group:
                (weight,) = self._weight(("h",), path, k, channel, width)
                t = [e.dual_fma(weight, component) for component in x]
                for entry in self.entries[path]:
                    slot = sums[path, entry.m3][0]
                    matrix = self._spread("M", entry.row, k, width)
                    self._add_product(slot, matrix, t[entry.m1], width)
        for slot, place in sums.values():
            e.store(e.get(slot, width), *place)

    def _add_product(self, slot, a: Dual, b: Dual, width: int) -> None:
        """slot += a b, or its derivative in a dual kernel."""
        e = self.e
        if not self.variant.dual:
            e.set(slot, e.fma(a.value, b.value, e.get(slot, width)))
            return
        for one, other in ((a.value, b.tangent), (a.tangent, b.value)):
            if one is not None and other is not None:
                e.set(slot, e.fma(one, other, e.get(slot, width)))

    # backward

    def _backward(self) -> None:
        e = self.e
        with e.loop(0, self.n) as k:
            edge = e.add(self.block, k)
            j = e.load_int(self.p["neighbour"][0], edge)
            widths = sorted({width for term in self.paths.irreps_in for _, _, width in e.pieces(term.mul)})
            slopes = {width: e.variable(width) for width in widths}
            for width, slot in slopes.items():
                e.set(slot, e.const(0, width))
            for path in self.paths.paths:
                self._backward_path(path, k, j, slopes)
            total = e.const(0, 1)
            for width, slot in slopes.items():
                total = e.b.fadd(total, e.sum(e.get(slot, width), width))
            e.store(total, self.p["dr"][0], edge)
        self._harmonics_gradient()

    def _backward_path(self, path: Path, k, j, slopes: dict) -> None:
        """One edge, one path: all channels, the products dM reduced over them."""
        e, rows = self.e, {}
        for start, stop, width in e.pieces(path.mul):
            sums = {entry.row: e.variable(width) for entry in self.entries[path]}
            for slot in sums.values():
                e.set(slot, e.const(0, width))
            with e.piece(start, stop, width) as channel:
                self._backward_channels(path, k, j, channel, width, sums, slopes[width])
            for row, slot in sums.items():
                part = e.sum(e.get(slot, width), width)
                rows[row] = e.b.fadd(rows[row], part) if row in rows else part
        for row, total in rows.items():
            self._save(total, "dM", row, k)

    def _backward_channels(self, path: Path, k, j, channel, width: int, sums: dict, slope) -> None:
        e = self.e
        x = self._inputs(path.i_in, j, channel, width)
        l_out = self.paths.irreps_out[path.i_out].l
        g = [Dual(e.load(self.p["g"][path.i_out], self._out_index(path, m3, channel), width)) for m3 in range(2 * l_out + 1)]
        weight, derivative = self._weight(("h", "dh"), path, k, channel, width)
        u: dict[int, Dual] = {}
        for entry in self.entries[path]:
            u[entry.m1] = e.dual_fma(self._spread("M", entry.row, k, width), g[entry.m3], u.get(entry.m1))
        dw = None
        for m1, value in u.items():
            dw = e.dual_fma(value, x[m1], dw)
        self._add_product(slope, dw, derivative, width)
        if self.variant.x_gradient:
            mul, l_in, _ = self.paths.irreps_in[path.i_in]
            for m1, value in u.items():
                index = e.add(e.times(e.add(e.times(j, 2 * l_in + 1), m1), mul), channel)
                e.accumulate(self._result(e.dual_fma(weight, value)), self.p["dx"][path.i_in], index, width)
        if self.variant.table_gradient:
            for q in range(6):
                gradient = self._result(e.dual_fma(self._spread("h", q, k, width), dw))
                e.accumulate(gradient, self.p["dT"][0], self._table_index(k, q, path, channel), width)
        t = [e.dual_fma(weight, component) for component in x]
        for entry in self.entries[path]:
            self._add_product(sums[entry.row], t[entry.m1], g[entry.m3], width)

    def _harmonics_gradient(self) -> None:
        """dY_m = sum of coefficient * dM."""
        e, uses = self.e, {}
        for rows in self.entries.values():
            for entry in rows:
                for m, c in entry.terms:
                    uses.setdefault(m, []).append((entry.row, c))
        for k, width in e.vectors(self.n):
            for m in range((self.paths.lmax + 1) ** 2):
                total = e.const(0, width)
                for row, c in uses.get(m, ()):
                    total = e.fma(e.const(c, width), self._saved("dM", row, k, width), total)
                index = e.add(e.times(self.n_edges, m), e.add(self.block, k))
                e.store(total, self.p["dY"][0], index)
