"""Kernels of the Verlet list, float64: which kept pairs are shorter than the cutoff, and how far atoms have moved."""

from __future__ import annotations

from .emitter import I64, Emitter


class FilterKernel:
    """The pairs with |r|^2 < c^2 of K kept ones, in their order; r = (r_j - r_i) + ((S_a a + S_b b) + S_c c).

    Every operation is rounded by itself, as written: a pair's numbers are those of elementwise arithmetic on arrays.
    A pair is one vector of four, so each pointer marked + needs room for one more number than it has.

    Pointers, for n atoms and E pairs found:
        positions (n, 3); constants (3, 4): rows of the cell, then c^2;
        starts (n + 1,) int64: where the kept pairs of each centre begin; kept (K, 4) int32: S_a, S_b, S_c, j;
        padded (n, 4): scratch;
        index (2 K,) int64: K - E ... K become the centres, K ... K + E the neighbours, one array (2, E);
        shift+ (K, 3) int32 and vectors+ (K, 3), whose first E rows are the result; the rest is scratch;
        row_ptr (n + 1,) int64; nearest (1,): the least |r|^2 of the kept pairs, infinite without any.
    Integers: first, last (0 and n), K.
    """

    name, n_pointers, n_integers = "filter_pairs", 10, 3

    def __init__(self):
        self.e = Emitter(self.name, self.n_pointers, self.n_integers, 64, 4)

    def source(self) -> str:
        e, b = self.e, self.e.b
        positions, constants, starts, kept, padded, index, shift, vectors, row_ptr, nearest = e.pointers
        first, last, capacity = e.integers
        cell, square = [e.load(constants, 4 * axis, 4) for axis in range(3)], e.load(constants, 12)
        found, least = e.counter(), e.variable(1)
        e.set(least, e.const(float("inf"), 1))
        self._pad(positions, padded, first, last)
        with e.loop(first, last) as i:
            centre = e.load(padded, e.times(i, 4), 4)
            e.store_int(e.count(found), row_ptr, i)
            with e.loop(e.load_int(starts, i), e.load_int(starts, e.add(i, 1))) as k:
                n = e.count(found)
                pair = e.load_int32(kept, e.times(k, 4), 4)
                j = b.sext(e.entry(pair, 3), I64)
                r = self._vector(b.fsub(e.load(padded, e.times(j, 4), 4), centre), pair, cell)
                xx, yy, zz = (e.entry(e.mul(r, r), x) for x in range(3))
                length2 = b.fadd(b.fadd(xx, yy), zz)
                e.store_int(j, index, e.add(capacity, n))  # of no consequence if the pair is too long:
                e.store_int32(pair, shift, e.times(n, 3))  # the next one takes its place
                e.store(r, vectors, e.times(n, 3))
                e.set(found, e.add(n, b.zext(b.fcmp_ordered("<", length2, square), I64)))
                e.set(least, b.select(b.fcmp_ordered("<", length2, e.get(least, 1)), length2, e.get(least, 1)))
        e.store_int(e.count(found), row_ptr, last)
        e.store(e.get(least, 1), nearest, 0)
        self._centres(index, b.sub(capacity, e.count(found)), row_ptr, first, last)
        return e.finish()

    def _pad(self, positions, padded, first, last) -> None:
        """Positions at a distance of four numbers: no load of a vector ends behind the array."""
        e = self.e
        with e.loop(first, last) as i:
            for x in range(3):
                e.store(e.load(positions, e.add(e.times(i, 3), x)), padded, e.add(e.times(i, 4), x))
            e.store(e.const(0.0, 1), padded, e.add(e.times(i, 4), 3))

    def _vector(self, difference, pair, cell):
        e, counts = self.e, self.e.to_number(pair, 4)
        a, b, c = (e.mul(e.splat(e.entry(counts, axis), 4), cell[axis]) for axis in range(3))
        return e.b.fadd(difference, e.b.fadd(e.b.fadd(a, b), c))

    def _centres(self, index, start, row_ptr, first, last) -> None:
        e = self.e
        with e.loop(first, last) as i:
            with e.loop(e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))) as k:
                e.store_int(i, index, e.add(start, k))


class MovedKernel:
    """The largest |u - mean of u|^2 of n >= 1 atoms, u = r T - r0; nan or infinite where a number is not finite.

    Pointers: positions r (n, 3), origin r0 (n, 3), transform T (3, 3), farthest (1,). Integers: first, last (0 and n).
    """

    name, n_pointers, n_integers = "farthest_move", 4, 2

    def __init__(self):
        self.e = Emitter(self.name, self.n_pointers, self.n_integers, 64, 1)

    def source(self) -> str:
        e, b = self.e, self.e.b
        positions, origin, transform, farthest = e.pointers
        first, last = e.integers
        matrix = [[e.load(transform, 3 * y + x) for x in range(3)] for y in range(3)]
        total, largest = [e.variable(1) for _ in range(3)], e.variable(1)
        for slot in (*total, largest):
            e.set(slot, e.const(0.0, 1))
        with e.loop(first, last) as i:
            for slot, moved in zip(total, self._moved(positions, origin, matrix, i), strict=True):
                e.set(slot, b.fadd(e.get(slot, 1), moved))
        n = e.to_number(b.sub(last, first), 1)
        mean = [b.fdiv(e.get(slot, 1), n) for slot in total]
        with e.loop(first, last) as i:
            u = [b.fsub(moved, m) for moved, m in zip(self._moved(positions, origin, matrix, i), mean, strict=True)]
            square = b.fadd(b.fadd(e.mul(u[0], u[0]), e.mul(u[1], u[1])), e.mul(u[2], u[2]))
            known = e.get(largest, 1)
            e.set(largest, b.select(b.fcmp_ordered("<=", square, known), known, square))  # takes a nan
        e.store(e.get(largest, 1), farthest, 0)
        return e.finish()

    def _moved(self, positions, origin, matrix, i) -> list:
        e = self.e
        r, start = ([e.load(p, e.add(e.times(i, 3), x)) for x in range(3)] for p in (positions, origin))
        out = []
        for x in range(3):
            product = e.mul(r[0], matrix[0][x])
            for y in (1, 2):
                product = e.b.fadd(product, e.mul(r[y], matrix[y][x]))
            out.append(e.b.fsub(product, start[x]))
        return out
