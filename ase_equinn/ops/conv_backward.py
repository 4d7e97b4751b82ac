"""IR of the convolution's backward pass: edge after edge, the gradients of its rows and of r stay in registers."""

from __future__ import annotations

from .conv_channels import BASIS, Channels
from .conv_geometry import BLOCK
from .emitter import Dual
from .lanes import widen
from .paths import Path


class Backward(Channels):
    """What is wanted of dr and dY, or the vectors' gradient, dT and dx; or their derivatives."""

    def __init__(self, *args):
        super().__init__(*args)
        self._coupled, begin = {}, BLOCK * self.edges.n_rows  # where in the scratch the G of each path begin
        for path, form in self.forms.items():
            if form.sums is not None:
                self._coupled[path] = begin + self.n_numbers
                self.n_numbers += form.n_sums * path.mul * (1 + self.variant.g_tangent)

    def of_centre(self, i) -> None:
        """The G of this centre that are not g itself."""
        super().of_centre(i)
        e = self.e
        for path, base in self._coupled.items():
            for start, stop, width in e.pieces(path.mul):
                with e.piece(start, stop, width) as channel:
                    for k, uses in enumerate(self.forms[path].sums):
                        total = None
                        for m3, c in uses:
                            total = e.dual_fma(Dual(e.const(c, width)), self._g(path, m3, channel, width), total)
                        for number, value in zip((k, k + self.forms[path].n_sums), self._parts(total)):
                            e.store(value, self.p["scratch"][0], e.add(channel, base + number * path.mul))

    def _g(self, path: Path, m3: int, channel, width: int) -> Dual:
        index = self.out_index(path, m3, channel)
        tangent = self.e.load(self.p["g'"][path.i_out], index, width) if self.variant.g_tangent else None
        return Dual(self.e.load(self.p["g"][path.i_out], index, width), tangent)

    def _parts(self, dual: Dual) -> list:
        return [*dual] if self.variant.g_tangent else [dual.value]

    def _coupled_gradient(self, path: Path, number: int, channel, width: int) -> Dual:
        """G[number]"""
        e = self.e
        if path not in self._coupled:
            return self._g(path, number, channel, width)
        numbers = (number, number + self.forms[path].n_sums)[: 1 + self.variant.g_tangent]
        places = [e.add(channel, self._coupled[path] + k * path.mul) for k in numbers]
        return Dual(*(e.load(self.p["scratch"][0], place, width) for place in places))

    def of_block(self) -> None:
        e = self.e
        with e.loop(0, self.edges.n) as k:
            j = self.neighbour(k)
            slopes: dict[int, list[Dual]] = {}
            if self.variant.edge_gradient:
                widths = sorted({width for term in self.paths.irreps_in for _, _, width in e.pieces(term.mul)})
                slopes = {width: [self._slot(width) for _ in BASIS] for width in widths}
            self.find_table(k)
            dy: dict = {}
            for path in self.paths.paths:
                self._path(path, k, j, slopes, dy)
            if self.variant.edge_gradient:
                self.edges.keep_sums(k, self._slope(slopes, k), dy)
        if self.variant.edge_gradient:
            self.edges.end()

    def _slope(self, slopes: dict, k):
        """dr of edge k in parts: sum of basis' (coefficient dw), over the channels of all paths."""
        e, total = self.e, self.e.const(0, self.e.lanes)
        for width, slots in slopes.items():
            part = None
            for q, slot in zip(BASIS, slots):
                part = e.dual_fma(self.edges.spread("dh", q, k, width), self._get(slot, width), part)
            total = e.b.fadd(total, widen(e, self.result(part), width))
        return total

    def _path(self, path: Path, k, j, slopes: dict, dy: dict) -> None:
        """One edge, one path, all channels; the gradients of the path's rows are passed on to `dy`."""
        e, totals = self.e, {}
        for start, stop, width in e.pieces(path.mul):
            rows = self.forms[path].rows if self.variant.edge_gradient else []
            slots = {row: e.variable(width) for row in rows}
            for slot in slots.values():
                e.set(slot, e.const(0, width))
            with e.piece(start, stop, width) as channel:
                self._channels(path, k, j, channel, width, slots, slopes.get(width, []))
            for row, slot in slots.items():
                part = widen(e, e.get(slot, width), width)
                totals[row] = e.b.fadd(totals[row], part) if row in totals else part
        for row, total in totals.items():
            for m, c in row:
                if c == 1.0:
                    dy[m] = e.b.fadd(dy[m], total) if m in dy else total
                else:
                    dy[m] = e.fma(e.const(c, e.lanes), total, dy.get(m))

    def _channels(self, path: Path, k, j, channel, width: int, slots: dict, slopes: list[Dual]) -> None:
        e, form = self.e, self.forms[path]
        x = self.inputs(path.i_in, j, channel, width)
        g = [self._coupled_gradient(path, number, channel, width) for number in range(form.n_sums)]
        first, coefficients = self.coefficients(path, channel, width)
        weight = self.weight(first, coefficients, k, width)
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
                index = self.in_index(path.i_in, j, m1, channel)
                e.accumulate(self.result(e.dual_fma(weight, value)), self.p["dx"][path.i_in], index, width)
        if self.variant.table_gradient:
            for q in range(6):
                gradient = self.result(e.dual_fma(self.edges.spread("h", q, k, width), dw))
                e.accumulate(gradient, self.p["dT"][0], self.table_index(q, path, channel), width)
        if not slots:
            return
        t = [e.dual_fma(weight, component) for component in x]
        for product in form.products:
            if product.row is not None:
                self.add_product(slots[product.row], t[product.m1], g[product.k], width)

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
