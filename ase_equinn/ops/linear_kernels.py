"""IR of linear layers, y = x W (+ b) or y += x W (+ b), over the components of every atom.

The rows of consecutive atoms lie evenly spaced, so a range of atoms is one matrix product. It is done in tiles: some rows
times some vectors of columns, whose sums stay in registers while the loop over k takes a row of W and spreads x[k]:

    y[r, c] = b[c] + x[r, 0] W[0, c] + x[r, 1] W[1, c] + ...          (in this order, whatever the tile)

With a weight matrix per species, atoms that follow each other and are of one species make a matrix product together.
"""

from __future__ import annotations

import platform

from .emitter import I64, Emitter

_ATOMS = (12, 6, 4, 2, 1)  # in a tile, as many as the registers allow; then fewer, for what remains
_MOST_VECTORS = 4  # of columns in a tile


class LinearKernel:
    """Emits y[i, m, :] (+)= x[i, m, :] W[species of i] (+ b), m < dim.

    Pointers, in this order: x, W (n_in, n_out) or, by species, (n_species, n_in, n_out), y; b (n_out,) with `bias`; species
    (int64) with `by_species`. Integers: first and last atom.

    Args:
        dim: components of an atom; row i dim + m belongs to component m of atom i.
        n_in, n_out: channels.
        in_stride, out_stride: numbers from one row to the next in x and in y; at least n_in and n_out.
        by_species: the weights depend on the atom's species.
        accumulate: y is added to instead of overwritten.
        bias: b is added.
        bits, lanes: of numbers and full vectors.
    """

    def __init__(
        self,
        dim: int,
        n_in: int,
        n_out: int,
        in_stride: int,
        out_stride: int,
        by_species: bool = False,
        accumulate: bool = False,
        bias: bool = False,
        *,
        bits: int,
        lanes: int,
    ):
        if min(dim, n_in, n_out) < 1 or in_stride < n_in or out_stride < n_out:
            sizes = f"dim {dim}, n_in {n_in}, n_out {n_out}, in_stride {in_stride}, out_stride {out_stride}"
            raise ValueError(f"a linear kernel needs sizes of at least 1 and strides of at least a row, got {sizes}")
        self.dim, self.n_in, self.n_out, self.in_stride, self.out_stride = dim, n_in, n_out, in_stride, out_stride
        self.by_species, self.accumulate = by_species, accumulate
        self.n_pointers, self.n_integers = 3 + bias + by_species, 2
        self.e = Emitter("linear", self.n_pointers, self.n_integers, bits, lanes)
        self.x, self.w, self.y, *others = self.e.pointers
        self.b = others[0] if bias else None
        self.species = others[-1] if by_species else None
        many = 8 * lanes * self.e.bytes == 512 or platform.machine() in ("aarch64", "arm64")
        self.registers = 32 if many else 16

    def source(self) -> str:
        e, (first, last) = self.e, self.e.integers
        if self.by_species:
            self._runs(first, last)
        else:
            self._product(e.times(first, self.dim), e.times(last, self.dim), e.int(0))
        return e.finish()

    def _runs(self, first, last) -> None:
        """One product for every run of atoms of one species."""
        e = self.e
        begin = e.b.alloca(I64)
        e.b.store(first, begin)
        with e.loop(first, last) as i:
            end = e.add(i, 1)
            species = e.load_int(self.species, i)
            is_last = e.b.icmp_signed("==", end, last)
            following = e.load_int(self.species, e.b.select(is_last, i, end))
            with e.b.if_then(e.b.or_(is_last, e.b.icmp_signed("!=", species, following))):
                start = e.times(e.b.load(begin, typ=I64), self.dim)
                self._product(start, e.times(end, self.dim), e.times(species, self.n_in * self.n_out))
                e.b.store(end, begin)

    def _product(self, start, stop, weight) -> None:
        """Rows start..stop times the matrix that begins at W[weight]."""
        e = self.e
        for height in self._heights():
            whole = e.add(start, e.times(e.b.udiv(e.b.sub(stop, start), e.int(height)), height))
            with e.loop(start, whole, height) as row:
                self._rows(row, height, weight)
            start = whole

    def _heights(self) -> list[int]:
        """Rows of the tiles, descending; whole atoms, where two vectors of columns then still fit into the registers."""
        most = (self.registers - 3) // 2
        unit = self.dim if self.dim <= most else 1
        return [unit * n for n in _ATOMS if unit * n <= most]

    def _rows(self, row, height: int, weight) -> None:
        if self.n_out == 1:
            self._dots(row, height, weight)
            return
        width, offsets = self._vectors()
        most = min(_MOST_VECTORS, (self.registers - 1) // (height + 1))
        for start, stop, step, places in _groups(offsets, width, most):
            with self.e.piece(start, stop, step) as column:
                self._tile(row, height, weight, [self.e.add(column, place) for place in places], width)

    def _vectors(self) -> tuple[int, list[int]]:
        """(width, offsets) of vectors that cover the columns; the last may share some with the one before."""
        width = min(self.e.lanes, 1 << (self.n_out.bit_length() - 1))
        offsets = list(range(0, self.n_out - width + 1, width))
        return width, offsets + [self.n_out - width] if self.n_out % width else offsets

    def _tile(self, row, height: int, weight, columns: list, width: int) -> None:
        """Reads all of y before it writes any: vectors that share columns write the same."""
        e, sums = self.e, {}
        for r in range(height):
            for c, column in enumerate(columns):
                sums[r, c] = e.variable(width)
                e.set(sums[r, c], self._initial(row, r, column, width))
        with e.piece(0, self.n_in, 1) as k:
            place = e.add(e.times(k, self.n_out), weight)
            weights = [e.load(self.w, e.add(place, column), width) for column in columns]
            for r in range(height):
                x = e.splat(e.load(self.x, self._x_index(row, r, k)), width)
                for c, w in enumerate(weights):
                    e.set(sums[r, c], e.fma(x, w, e.get(sums[r, c], width)))
        for (r, c), slot in sums.items():
            e.store(e.get(slot, width), self.y, self._y_index(row, r, columns[c]))

    def _dots(self, row, height: int, weight) -> None:
        """A single column: vectors run over k."""
        e = self.e
        totals = [self._initial(row, r, e.int(0), 1) for r in range(height)]
        for start, stop, width in e.pieces(self.n_in):
            sums = [e.variable(width) for _ in range(height)]
            for slot in sums:
                e.set(slot, e.const(0, width))
            with e.piece(start, stop, width) as k:
                w = e.load(self.w, e.add(weight, k), width)
                for r, slot in enumerate(sums):
                    x = e.load(self.x, self._x_index(row, r, k), width)
                    e.set(slot, e.fma(x, w, e.get(slot, width)))
            totals = [e.b.fadd(total, e.sum(e.get(slot, width), width)) for total, slot in zip(totals, sums)]
        for r, total in enumerate(totals):
            e.store(total, self.y, self._y_index(row, r, e.int(0)))

    def _initial(self, row, r: int, column, width: int):
        """What the products of row + r are added to."""
        e = self.e
        out = e.load(self.y, self._y_index(row, r, column), width) if self.accumulate else e.const(0, width)
        return out if self.b is None else e.b.fadd(out, e.load(self.b, column, width))

    def _x_index(self, row, r: int, k):
        return self.e.add(self.e.add(self.e.times(row, self.in_stride), k), r * self.in_stride)

    def _y_index(self, row, r: int, column):
        return self.e.add(self.e.add(self.e.times(row, self.out_stride), column), r * self.out_stride)


def _groups(offsets: list[int], width: int, most: int) -> list[tuple[int, int, int, tuple[int, ...]]]:
    """(start, stop, step, places) of groups of at most `most` vectors: a group at each of range(start, stop, step).

    The last group is among the largest, so that a last vector that shares columns is together with the one before.
    """
    count = -(-len(offsets) // most)
    out: list = []
    for k in range(count):
        first, last = len(offsets) * k // count, len(offsets) * (k + 1) // count
        start, step = offsets[first], (last - first) * width
        places = tuple(offset - start for offset in offsets[first:last])
        if out and out[-1][1] == start and out[-1][3] == places:
            out[-1] = (out[-1][0], start + step, step, places)
        else:
            out.append((start, start + step, step, places))
    return out
