"""IR of the fused convolution: forward, backward, and the derivatives of both, from one path table.

With the weight w(r) interpolated in a table T, per edge e = (i, j), path p and channel c, the products of the path's form
(conv_forms) and G[k] = sum of c g_i[m3] over its sums,

    t[m1] = w x_j[m1]                 s[k] += row t[m1]              A_i[m3] += c s[k]                            (forward)
    u[m1] = sum of row G[k]           dx_j[m1] += w u[m1]            drow += t[m1] G[k]
    dw = sum_m1 u[m1] x_j[m1]         dr += w' dw                    dT[q] += basis_q dw       (backward, g = dL/dA)

Messages and weights live in registers. The kernels are written in dual arithmetic: with tangents of x, Y, r (and T) they
yield the derivative of the same outputs in that direction, which is what differentiating the backward pass needs.

The radial table is quintic Hermite: per knot the value, first and second derivative in units of the knot distance. The
functions of the two values add up to 1, so that w = T_0 + h_3 (T_3 - T_0) + ... is a product less.
"""

from __future__ import annotations

from llvmlite import ir

from .conv_forms import Form, forms
from .conv_geometry import BLOCK, EdgeBlock
from .conv_variants import Variant
from .emitter import Dual, Emitter
from .lanes import widen
from .paths import ConvPaths, Path

_REGISTERS = 22  # vector accumulators of one pass over the edges
_BASIS = (3, 1, 2, 4, 5)  # the Hermite functions that `_coefficients` go with


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

    Attributes:
        n_rows: what `scratch_size` takes.
    """

    def __init__(self, paths: ConvPaths, variant: Variant, bits: int, lanes: int):
        variant.check()
        self.paths, self.variant = paths, variant
        self.forms = forms(paths, constant=variant.vectors)
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
        self.edges = EdgeBlock(self.e, self.p, paths, self.forms, variant, constants)
        self._coupled, size = {}, BLOCK * self.edges.n_rows  # where in the scratch the G of each path begin
        for path, form in self.forms.items():
            if variant.backward and form.sums is not None:
                self._coupled[path] = size
                size += form.n_sums * path.mul
        self.n_rows = -(-size // BLOCK)

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
        return BLOCK * n_rows

    def source(self) -> str:
        e, row_ptr = self.e, self.p["row_ptr"][0]
        with e.loop(self.first, self.last) as i:
            self.i = i
            start, stop = e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))
            if self.variant.backward:
                self._couple()
            else:
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
        e, (mul, l_out, _) = self.e, self.paths.irreps_out[path.i_out]
        return e.add(e.times(e.add(e.times(self.i, 2 * l_out + 1), m3), mul), e.add(channel, path.start))

    def _in_index(self, i_in: int, j, m1: int, channel):
        e, (mul, l_in, _) = self.e, self.paths.irreps_in[i_in]
        return e.add(e.times(e.add(e.times(j, 2 * l_in + 1), m1), mul), channel)

    def _inputs(self, i_in: int, j, channel, width: int) -> list[Dual]:
        """x_j[m1], one per m1."""
        e, out = self.e, []
        for m1 in range(2 * self.paths.irreps_in[i_in].l + 1):
            index = self._in_index(i_in, j, m1, channel)
            tangent = e.load(self.p["x'"][i_in], index, width) if self.variant.dual else None
            out.append(Dual(e.load(self.p["x"][i_in], index, width), tangent))
        return out

    def _neighbour(self, k):
        return self.e.load_int(self.p["neighbour"][0], self.e.add(self.edges.start, k))

    def _find_table(self, k) -> None:
        self.table = self.e.times(self.edges.knot(k), 3 * self.paths.n_weights)

    def _table_index(self, q: int, path: Path, channel):
        return self.e.add(self.table, self.e.add(channel, q * self.paths.n_weights + path.weight))

    # radial functions

    def _coefficients(self, path: Path, channel, width: int) -> tuple[Dual, list[Dual]]:
        """T_0 and what the functions of _BASIS are multiplied with: w = T_0 + sum of basis * coefficient."""
        parts = []
        for q in range(6):
            index = self._table_index(q, path, channel)
            tangent = self.e.load(self.p["T'"][0], index, width) if self.variant.table_tangent else None
            parts.append(Dual(self.e.load(self.p["T"][0], index, width), tangent))
        step = Dual(*(None if a is None else self.e.b.fsub(b, a) for a, b in zip(parts[0], parts[3])))
        return parts[0], [step, *(parts[q] for q in _BASIS[1:])]

    def _weight(self, first: Dual, coefficients: list[Dual], k, width: int) -> Dual:
        for q, coefficient in zip(_BASIS, coefficients):
            first = self.e.dual_fma(self.edges.spread("h", q, k, width), coefficient, first)
        return first

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
        groups, used = [], []
        for path in sorted(self.paths.of_input(i_in), key=lambda path: -self.forms[path].n_sums):
            size = self.forms[path].n_sums
            fitting = [number for number, total in enumerate(used) if total + size <= _REGISTERS]
            if not fitting:
                groups.append([])
                used.append(0)
            number = fitting[0] if fitting else -1
            groups[number].append(path)
            used[number] += size
        return groups

    def _forward_pass(self, i_in: int, group: list[Path], channel, width: int) -> None:
        e, slots = self.e, {}
        for path in group:
            form = self.forms[path]
            for k in range(form.n_sums):
                slots[path, k] = e.variable(width)
                start = e.const(0, width) if form.sums else e.load(self.p["out"][path.i_out], self._out_index(path, k, channel), width)
                e.set(slots[path, k], start)
        with e.loop(0, self.edges.n) as k:
            self._find_table(k)
            x = self._inputs(i_in, self._neighbour(k), channel, width)
            for path in group:
                self._forward_path(path, x, k, channel, width, slots)
        for path in group:
            self._leave(path, [e.get(slots[path, k], width) for k in range(self.forms[path].n_sums)], channel, width)

    def _forward_path(self, path: Path, x: list[Dual], k, channel, width: int, slots: dict) -> None:
        weight = self._weight(*self._coefficients(path, channel, width), k, width)
        t: dict[int, Dual] = {}
        for product in self.forms[path].products:
            if product.row is None:
                self._add_product(slots[path, product.k], weight, x[product.m1], width)
                continue
            if product.m1 not in t:
                t[product.m1] = self.e.dual_fma(weight, x[product.m1])
            self._add_product(slots[path, product.k], self.edges.row(product.row, k, width), t[product.m1], width)

    def _leave(self, path: Path, sums: list, channel, width: int) -> None:
        """Writes a path's sums, coupled where that was left for the end."""
        e, form, pointer = self.e, self.forms[path], self.p["out"][path.i_out]
        if form.sums is None:
            totals = dict(enumerate(sums))
        else:
            totals = {}
            for value, uses in zip(sums, form.sums):
                for m3, c in uses:
                    before = totals.get(m3) or e.load(pointer, self._out_index(path, m3, channel), width)
                    totals[m3] = e.fma(e.const(c, width), value, before)
        for m3, total in totals.items():
            e.store(total, pointer, self._out_index(path, m3, channel))

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

    def _couple(self) -> None:
        """The G of this centre that are not g itself."""
        e = self.e
        for path, base in self._coupled.items():
            for start, stop, width in e.pieces(path.mul):
                with e.piece(start, stop, width) as channel:
                    for k, uses in enumerate(self.forms[path].sums):
                        total = None
                        for m3, c in uses:
                            g = e.load(self.p["g"][path.i_out], self._out_index(path, m3, channel), width)
                            total = e.fma(e.const(c, width), g, total)
                        e.store(total, self.p["scratch"][0], e.add(channel, base + k * path.mul))

    def _coupled_gradient(self, path: Path, number: int, channel, width: int) -> Dual:
        """G[number]"""
        e = self.e
        if path in self._coupled:
            index = e.add(channel, self._coupled[path] + number * path.mul)
            return Dual(e.load(self.p["scratch"][0], index, width))
        return Dual(e.load(self.p["g"][path.i_out], self._out_index(path, number, channel), width))

    def _backward(self) -> None:
        e = self.e
        with e.loop(0, self.edges.n) as k:
            j = self._neighbour(k)
            widths = sorted({width for term in self.paths.irreps_in for _, _, width in e.pieces(term.mul)})
            slopes = {width: [self._slot(width) for _ in _BASIS] for width in widths}
            self._find_table(k)
            dy: dict = {}
            for path in self.paths.paths:
                self._backward_path(path, k, j, slopes, dy)
            self.edges.keep_sums(k, self._slope(slopes, k), dy)
        self.edges.end()

    def _slope(self, slopes: dict, k):
        """dr of edge k in parts: sum of basis' (coefficient dw), over the channels of all paths."""
        e, total = self.e, self.e.const(0, self.e.lanes)
        for width, slots in slopes.items():
            part = None
            for q, slot in zip(_BASIS, slots):
                part = e.dual_fma(self.edges.spread("dh", q, k, width), self._get(slot, width), part)
            total = e.b.fadd(total, widen(e, self._result(part), width))
        return total

    def _backward_path(self, path: Path, k, j, slopes: dict, dy: dict) -> None:
        """One edge, one path, all channels; the gradients of the path's rows are passed on to `dy`."""
        e, totals = self.e, {}
        for start, stop, width in e.pieces(path.mul):
            slots = {row: e.variable(width) for row in self.forms[path].rows}
            for slot in slots.values():
                e.set(slot, e.const(0, width))
            with e.piece(start, stop, width) as channel:
                self._backward_channels(path, k, j, channel, width, slots, slopes[width])
            for row, slot in slots.items():
                part = widen(e, e.get(slot, width), width)
                totals[row] = e.b.fadd(totals[row], part) if row in totals else part
        for row, total in totals.items():
            for m, c in row:
                if c == 1.0:
                    dy[m] = e.b.fadd(dy[m], total) if m in dy else total
                else:
                    dy[m] = e.fma(e.const(c, e.lanes), total, dy.get(m))

    def _backward_channels(self, path: Path, k, j, channel, width: int, slots: dict, slopes: list[Dual]) -> None:
        e, form = self.e, self.forms[path]
        x = self._inputs(path.i_in, j, channel, width)
        g = [self._coupled_gradient(path, number, channel, width) for number in range(form.n_sums)]
        first, coefficients = self._coefficients(path, channel, width)
        weight = self._weight(first, coefficients, k, width)
        u: dict[int, Dual] = {}
        for product in form.products:
            if product.row is None:
                u[product.m1] = g[product.k]
            else:
                u[product.m1] = e.dual_fma(self.edges.row(product.row, k, width), g[product.k], u.get(product.m1))
        dw = None
        for m1, value in u.items():
            dw = e.dual_fma(value, x[m1], dw)
        for slot, coefficient in zip(slopes, coefficients):
            self._set(slot, e.dual_fma(coefficient, dw, self._get(slot, width)))
        if self.variant.x_gradient:
            for m1, value in u.items():
                index = self._in_index(path.i_in, j, m1, channel)
                e.accumulate(self._result(e.dual_fma(weight, value)), self.p["dx"][path.i_in], index, width)
        if self.variant.table_gradient:
            for q in range(6):
                gradient = self._result(e.dual_fma(self.edges.spread("h", q, k, width), dw))
                e.accumulate(gradient, self.p["dT"][0], self._table_index(q, path, channel), width)
        t = [e.dual_fma(weight, component) for component in x] if slots else []
        for product in form.products:
            if product.row is not None:
                self._add_product(slots[product.row], t[product.m1], g[product.k], width)

    # slots of dual numbers

    def _slot(self, width: int) -> Dual:
        slot = Dual(self.e.variable(width), self.e.variable(width) if self.variant.dual else None)
        self._set(slot, Dual(*(None if part is None else self.e.const(0, width) for part in slot)))
        return slot

    def _get(self, slot: Dual, width: int) -> Dual:
        return Dual(*(None if part is None else self.e.get(part, width) for part in slot))

    def _set(self, slot: Dual, value: Dual) -> None:
        for part, number in zip(slot, value):
            if part is not None:
                self.e.set(part, number)
