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

from llvmlite import ir

from .conv_geometry import BLOCK, EdgeBlock
from .conv_variants import Variant, entries
from .emitter import Dual, Emitter
from .paths import ConvPaths, Path

_REGISTERS = 22  # vector accumulators of one pass over the edges


class ConvKernel:
    """Emits one variant.

    Pointers, in this order: row_ptr, neighbour (int64); scratch; r (E,), Y (n_sh, E), T (knots, 3, n_weights), x...;
    if dual their tangents in the same order (T's only with table_tangent); forward: out...; backward: g..., dr, dY,
    dT (with table_gradient), dx... (with x_gradient); last the first rows of the edges' tables (int64, with tables).
    With vectors, vx, vy, vz (E,) each stand in place of r, Y, and gx, gy, gz (E,), the gradient with respect to the
    vectors, in place of dr, dY; lengths and Y are then those of `angular`, edges of length 0 included.
    Integers: first and last centre, E, knots of a table - 1, and the bits of 1 / (knot distance) as float64.

    dx and dT (and gx, gy, gz with add_vectors) are added to, everything else is overwritten. `neighbour` holds rows of x
    and dx, which need not be atoms; the others' rows are centres or edges.
    """

    def __init__(self, paths: ConvPaths, variant: Variant, bits: int, lanes: int):
        variant.check()
        self.paths, self.variant = paths, variant
        self.entries = entries(paths)
        self.n_rows = sum(map(len, self.entries.values()))
        counts = self._pointer_counts()
        self.n_pointers, self.n_integers = sum(counts.values()), 5
        self.e = Emitter(variant.name, self.n_pointers, self.n_integers, bits, lanes)
        pointers = iter(self.e.pointers)
        self.p = {name: [next(pointers) for _ in range(count)] for name, count in counts.items()}
        self.first, self.last, n_edges, n_intervals, inverse = self.e.integers
        inverse = self.e.b.bitcast(inverse, ir.DoubleType())
        if bits == 32:
            inverse = self.e.b.fptrunc(inverse, self.e.number)
        constants = n_edges, self.e.b.sub(n_intervals, self.e.int(1)), inverse
        self.edges = EdgeBlock(self.e, self.p, paths, self.entries, variant, constants)

    def _pointer_counts(self) -> dict[str, int]:
        variant, n_in, n_out = self.variant, len(self.paths.irreps_in), len(self.paths.irreps_out)
        geometry, slopes = (("vx", "vy", "vz"), ("gx", "gy", "gz")) if variant.vectors else (("r", "Y"), ("dr", "dY"))
        counts = dict.fromkeys(("row_ptr", "neighbour", "scratch", *geometry, "T"), 1) | {"x": n_in}
        if variant.dual:
            counts |= {"r'": 1, "Y'": 1, "T'": int(variant.table_tangent), "x'": n_in}
        if variant.backward:
            counts |= {"g": n_out} | dict.fromkeys(slopes, 1)
            counts |= {"dT": int(variant.table_gradient), "dx": n_in * variant.x_gradient}
        else:
            counts |= {"out": n_out}
        return counts | {"first": int(variant.tables)}

    @staticmethod
    def scratch_size(n_rows: int) -> int:
        """Numbers of scratch that one thread needs."""
        return EdgeBlock.scratch_size(n_rows)

    def source(self) -> str:
        e, row_ptr = self.e, self.p["row_ptr"][0]
        with e.loop(self.first, self.last) as i:
            self.i = i
            start, stop = e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))
            if not self.variant.backward:
                self._clear()
            with e.loop(start, stop, BLOCK) as block:
                self.edges.begin(block, stop)
                if self.variant.backward:
                    self._backward()
                else:
                    self._forward()
        return e.finish()

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
        knot = self.edges.knot(k)
        return self.e.add(self.e.times(self.e.add(self.e.times(knot, 3), q), self.paths.n_weights), self.e.add(channel, path.weight))

    def _weight(self, kinds: tuple[str, ...], path: Path, k, channel, width: int) -> list[Dual]:
        """sum_q basis_q T[q] for each of the bases "h" (the weight) and "dh" (its derivative with respect to r)."""
        e, out = self.e, [None] * len(kinds)
        for q in range(6):
            index = self._table_index(k, q, path, channel)
            tangent = e.load(self.p["T'"][0], index, width) if self.variant.table_tangent else None
            value = Dual(e.load(self.p["T"][0], index, width), tangent)
            out = [e.dual_fma(self.edges.spread(kind, q, k, width), value, total) for kind, total in zip(kinds, out)]
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
        with e.loop(0, self.edges.n) as k:
            j = e.load_int(self.p["neighbour"][0], e.add(self.edges.start, k))
            x = self._inputs(i_in, j, channel, width)
            for path in group:
                (weight,) = self._weight(("h",), path, k, channel, width)
                t = [e.dual_fma(weight, component) for component in x]
                for entry in self.entries[path]:
                    slot = sums[path, entry.m3][0]
                    matrix = self.edges.spread("M", entry.row, k, width)
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
        with e.loop(0, self.edges.n) as k:
            j = e.load_int(self.p["neighbour"][0], e.add(self.edges.start, k))
            widths = sorted({width for term in self.paths.irreps_in for _, _, width in e.pieces(term.mul)})
            slopes = {width: e.variable(width) for width in widths}
            for width, slot in slopes.items():
                e.set(slot, e.const(0, width))
            for path in self.paths.paths:
                self._backward_path(path, k, j, slopes)
            total = e.const(0, 1)
            for width, slot in slopes.items():
                total = e.b.fadd(total, e.sum(e.get(slot, width), width))
            self.edges.save(total, "dr", 0, k)
        self.edges.end()

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
            self.edges.save(total, "dM", row, k)

    def _backward_channels(self, path: Path, k, j, channel, width: int, sums: dict, slope) -> None:
        e = self.e
        x = self._inputs(path.i_in, j, channel, width)
        l_out = self.paths.irreps_out[path.i_out].l
        g = [Dual(e.load(self.p["g"][path.i_out], self._out_index(path, m3, channel), width)) for m3 in range(2 * l_out + 1)]
        weight, derivative = self._weight(("h", "dh"), path, k, channel, width)
        u: dict[int, Dual] = {}
        for entry in self.entries[path]:
            u[entry.m1] = e.dual_fma(self.edges.spread("M", entry.row, k, width), g[entry.m3], u.get(entry.m1))
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
                gradient = self._result(e.dual_fma(self.edges.spread("h", q, k, width), dw))
                e.accumulate(gradient, self.p["dT"][0], self._table_index(k, q, path, channel), width)
        t = [e.dual_fma(weight, component) for component in x]
        for entry in self.entries[path]:
            self._add_product(sums[entry.row], t[entry.m1], g[entry.m3], width)
