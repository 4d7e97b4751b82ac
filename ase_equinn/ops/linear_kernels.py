"""IR of linear layers, y = x W (+ b) or y += x W (+ b), over the components of every atom.

The rows of consecutive atoms lie evenly spaced, so a range of atoms is one matrix product. It is done in tiles: some rows
times some vectors of columns, whose sums stay in registers while the loop over k takes a row of W and spreads x[k]:

    y[r, c] = b[c] + x[r, 0] W[0, c] + x[r, 1] W[1, c] + ...          (in this order, whatever the tile)

With a weight matrix per species, the atoms of one species in a chunk make a matrix product together, wherever they are.
"""

from __future__ import annotations

import platform

from .emitter import I64, Emitter

_ATOMS = (12, 6, 4, 2, 1)  # in a tile, as many as the registers allow; then fewer, for what remains
_CHUNK = 64  # atoms whose species are compared: the bits of an integer
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
        if not self.by_species:
            self._rows(e.times(first, self.dim), e.times(last, self.dim), e.int(0))
        elif self.dim <= self._most_rows():
            self._species(first, last)
        else:
            with e.loop(first, last) as i:
                start = e.times(i, self.dim)
                self._rows(start, e.add(start, self.dim), self._weight(e.load_int(self.species, i)))
        return e.finish()

    def _rows(self, start, stop, weight) -> None:
        """Rows start..stop times the matrix that begins at W[weight]."""
        for height in self._heights():
            whole = self._whole(start, stop, height)
            with self.e.loop(start, whole, height) as row:
                self._columns([(row, r) for r in range(height)], weight)
            start = whole

    def _species(self, first, last) -> None:
        """In every chunk of atoms: those of one species, wherever they are, make a product together."""
        e = self.e
        left, count, atoms = e.b.alloca(I64), e.b.alloca(I64), e.b.alloca(I64, size=_CHUNK)
        with e.loop(first, last, _CHUNK) as chunk:
            n = e.least(e.b.sub(last, chunk), _CHUNK)
            e.b.store(e.int(-1), left)  # bit k: atom k of the chunk is still to be done
            with e.loop(0, n) as k:
                bit = e.b.and_(e.b.lshr(e.b.load(left, typ=I64), k), e.int(1))
                with e.b.if_then(e.b.icmp_signed("!=", bit, e.int(0))):
                    species = e.load_int(self.species, e.add(chunk, k))
                    self._collect(species, chunk, k, n, left, count, atoms)
                    self._atoms(atoms, e.b.load(count, typ=I64), self._weight(species))

    def _collect(self, species, chunk, start, stop, left, count, atoms) -> None:
        """Lists the atoms of a species among start..stop of the chunk."""
        e = self.e
        e.b.store(e.int(0), count)
        with e.loop(start, stop) as k:
            atom, found = e.add(chunk, k), e.b.load(count, typ=I64)
            same = e.b.zext(e.b.icmp_signed("==", species, e.load_int(self.species, atom)), I64)
            e.store_int(atom, atoms, found)
            e.b.store(e.add(found, same), count)
            e.b.store(e.b.and_(e.b.load(left, typ=I64), e.b.not_(e.b.shl(same, k))), left)

    def _atoms(self, atoms, count, weight) -> None:
        """All rows of `count` listed atoms times the matrix that begins at W[weight]."""
        e, start = self.e, self.e.int(0)
        for height in self._heights():
            n = height // self.dim
            whole = self._whole(start, count, n)
            with e.loop(start, whole, n) as k:
                begins = [e.times(e.load_int(atoms, e.add(k, other)), self.dim) for other in range(n)]
                self._columns([(begin, m) for begin in begins for m in range(self.dim)], weight)
            start = whole

    def _weight(self, species):
        return self.e.times(species, self.n_in * self.n_out)

    def _whole(self, start, stop, step: int):
        """The end of the whole steps in start..stop."""
        e = self.e
        return e.add(start, e.times(e.b.udiv(e.b.sub(stop, start), e.int(step)), step))

    def _most_rows(self) -> int:
        """Of a tile with two vectors of columns, so that sums, weights and x fit into the registers."""
        return (self.registers - 3) // 2

    def _heights(self) -> list[int]:
        """Rows of the tiles, descending: those of whole atoms, where one fits."""
        unit = self.dim if self.dim <= self._most_rows() else 1
        return [unit * n for n in _ATOMS[self.by_species :] if unit * n <= self._most_rows()]

    def _columns(self, rows: list, weight) -> None:
        """All columns of a tile's rows, each given as (row, how many further)."""
        if self.n_out == 1:
            self._dots(rows, weight)
            return
        width, offsets = self._vectors()
        most = min(_MOST_VECTORS, (self.registers - 1) // (len(rows) + 1))
        for start, stop, step, places in _groups(offsets, width, most):
            with self.e.piece(start, stop, step) as column:
                self._tile(rows, weight, [self.e.add(column, place) for place in places], width)

    def _vectors(self) -> tuple[int, list[int]]:
        """(width, offsets) of vectors that cover the columns; the last may share some with the one before."""
        width = min(self.e.lanes, 1 << (self.n_out.bit_length() - 1))
        offsets = list(range(0, self.n_out - width + 1, width))
        return width, offsets + [self.n_out - width] if self.n_out % width else offsets

    def _tile(self, rows: list, weight, columns: list, width: int) -> None:
        """Reads all of y before it writes any: vectors that share columns write the same."""
        e, sums = self.e, {}
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                sums[r, c] = e.variable(width)
                e.set(sums[r, c], self._initial(row, column, width))
        with e.piece(0, self.n_in, 1) as k:
            place = e.add(e.times(k, self.n_out), weight)
            weights = [e.load(self.w, e.add(place, column), width) for column in columns]
            for r, row in enumerate(rows):
                x = e.splat(e.load(self.x, self._index(row, self.in_stride, k)), width)
                for c, w in enumerate(weights):
                    e.set(sums[r, c], e.fma(x, w, e.get(sums[r, c], width)))
        for (r, c), slot in sums.items():
            e.store(e.get(slot, width), self.y, self._index(rows[r], self.out_stride, columns[c]))

    def _dots(self, rows: list, weight) -> None:
        """A single column: vectors run over k."""
        e = self.e
        totals = [self._initial(row, e.int(0), 1) for row in rows]
        for start, stop, width in e.pieces(self.n_in):
            sums = [e.variable(width) for _ in rows]
            for slot in sums:
                e.set(slot, e.const(0, width))
            with e.piece(start, stop, width) as k:
                w = e.load(self.w, e.add(weight, k), width)
                for row, slot in zip(rows, sums):
                    x = e.load(self.x, self._index(row, self.in_stride, k), width)
                    e.set(slot, e.fma(x, w, e.get(slot, width)))
            totals = [e.b.fadd(total, e.sum(e.get(slot, width), width)) for total, slot in zip(totals, sums)]
        for row, total in zip(rows, totals):
            e.store(total, self.y, self._index(row, self.out_stride, e.int(0)))

    def _initial(self, row: tuple, column, width: int):
        """What the products of a row are added to."""
        e = self.e
        place = self._index(row, self.out_stride, column)
        out = e.load(self.y, place, width) if self.accumulate else e.const(0, width)
        return out if self.b is None else e.b.fadd(out, e.load(self.b, column, width))

    def _index(self, row: tuple, stride: int, channel):
        start, further = row
        return self.e.add(self.e.add(self.e.times(start, stride), channel), further * stride)


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
