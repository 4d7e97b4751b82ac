"""IR of the convolution's forward pass: the sums of a few paths stay in registers while the edges pass by."""

from __future__ import annotations

from .conv_channels import Channels
from .emitter import Dual
from .paths import Path

_REGISTERS = 22  # vector accumulators of one pass over the edges


class Forward(Channels):
    """A_i, or its derivative."""

    def of_centre(self, i) -> None:
        """A_i = 0"""
        super().of_centre(i)
        e = self.e
        for i_out, term in enumerate(self.paths.irreps_out):
            for start, stop, width in e.pieces(term.dim):
                with e.piece(start, stop, width) as offset:
                    e.store(e.const(0, width), self.p["out"][i_out], e.add(e.times(self.i, term.dim), offset))

    def of_block(self) -> None:
        for i_in, (mul, _, _) in enumerate(self.paths.irreps_in):
            for group in self._groups(i_in):
                for start, stop, width in self.e.pieces(mul):
                    with self.e.piece(start, stop, width) as channel:
                        self._pass(i_in, group, channel, width)

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

    def _pass(self, i_in: int, group: list[Path], channel, width: int) -> None:
        e, slots = self.e, {}
        for path in group:
            form = self.forms[path]
            for k in range(form.n_sums):
                start = e.const(0, width)
                if form.sums is None:
                    start = e.load(self.p["out"][path.i_out], self.out_index(path, k, channel), width)
                slots[path, k] = e.variable(width)
                e.set(slots[path, k], start)
        with e.loop(0, self.edges.n) as k:
            self.find_table(k)
            x = self.inputs(i_in, self.neighbour(k), channel, width)
            for path in group:
                self._path(path, x, k, channel, width, slots)
        for path in group:
            self._leave(path, [e.get(slots[path, k], width) for k in range(self.forms[path].n_sums)], channel, width)

    def _path(self, path: Path, x: list[Dual], k, channel, width: int, slots: dict) -> None:
        weight = self.weight(*self.coefficients(path, channel, width), k, width)
        t: dict[int, Dual] = {}
        for product in self.forms[path].products:
            if product.row is None:
                self.add_product(slots[path, product.k], weight, x[product.m1], width)
                continue
            if product.m1 not in t:
                t[product.m1] = self.e.dual_fma(weight, x[product.m1])
            self.add_product(slots[path, product.k], self.edges.row(product.row, k, width), t[product.m1], width)

    def _leave(self, path: Path, sums: list, channel, width: int) -> None:
        """Writes a path's sums, coupled where that was left for the end."""
        e, form, pointer = self.e, self.forms[path], self.p["out"][path.i_out]
        if form.sums is None:
            totals = dict(enumerate(sums))
        else:
            totals = {}
            for value, uses in zip(sums, form.sums):
                for m3, c in uses:
                    before = totals.get(m3) or e.load(pointer, self.out_index(path, m3, channel), width)
                    totals[m3] = e.fma(e.const(c, width), value, before)
        for m3, total in totals.items():
            e.store(total, pointer, self.out_index(path, m3, channel))
