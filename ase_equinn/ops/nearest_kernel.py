"""The distance of each atom's features from the nearest of some points."""

from __future__ import annotations

from .emitter import Emitter

TILE = 4  # vectors of points that are looked at together: their sums do not wait for one another


class NearestKernel:
    """out_i = min_c sum_a ((x_ia - origin_a) scale_a - point_ca)^2 for the atoms i = atom_first ..., infinite where that is nan.

    Pointers: x, whose rows of k numbers are `row` numbers apart; origin (k,); scale (k,); points (k, n_points); scratch (k,);
    out (n,), all of one kind; atom, int64. Integers: first and last of atom, row, k, n_points, which is a multiple of
    TILE * lanes: pad with points that are far away.
    """

    name, n_pointers, n_integers = "nearest", 7, 5

    def __init__(self, *, bits: int, lanes: int):
        self.bits, self.e = bits, Emitter(self.name, self.n_pointers, self.n_integers, bits, lanes)

    def source(self) -> str:
        e, b = self.e, self.e.b
        x, origin, scale, points, scratch, out, atom = e.pointers
        first, last, apart, k, n_points = e.integers
        best, sums = e.variable(e.lanes), [e.variable(e.lanes) for _ in range(TILE)]
        with e.loop(first, last) as m:
            i = e.load_int(atom, m)
            row = e.times(i, apart)
            for a, width in e.vectors(k):
                moved = b.fsub(e.load(x, e.add(row, a), width), e.load(origin, a, width))
                e.store(e.mul(moved, e.load(scale, a, width)), scratch, a)
            e.set(best, e.const(float("inf"), e.lanes))
            with e.loop(0, n_points, TILE * e.lanes) as c:
                for slot in sums:
                    e.set(slot, e.const(0.0, e.lanes))
                with e.loop(0, k) as a:
                    number, start = e.splat(e.load(scratch, a), e.lanes), e.add(e.times(a, n_points), c)
                    for q, slot in enumerate(sums):
                        away = b.fsub(number, e.load(points, e.add(start, q * e.lanes), e.lanes))
                        e.set(slot, e.fma(away, away, e.get(slot, e.lanes)))
                for slot in sums:
                    self._least(best, e.get(slot, e.lanes))
            e.store(self._least_entry(e.get(best, e.lanes)), out, i)
        return e.finish()

    def _least(self, best, found) -> None:
        e, known = self.e, self.e.get(best, self.e.lanes)
        e.set(best, e.b.select(e.b.fcmp_ordered("<", found, known), found, known))

    def _least_entry(self, vector):
        e, least = self.e, self.e.entry(vector, 0)
        for lane in range(1, e.lanes):
            other = e.entry(vector, lane)
            least = e.b.select(e.b.fcmp_ordered("<", other, least), other, least)
        return least
