"""IR of index arrays over the edges of atoms first..last: which row an edge reads."""

from __future__ import annotations

from .emitter import Emitter


class NeighbourIndex:
    """out[e] = index[neighbour[e]].

    Pointers (all int64): row_ptr, neighbour, index (n,), out (E,). Integers: first and last atom.
    """

    name, n_pointers, n_integers = "neighbour_index", 4, 2

    def __init__(self, *, bits: int, lanes: int):
        self.e = Emitter(self.name, self.n_pointers, self.n_integers, bits, lanes)

    def source(self) -> str:
        e = self.e
        row_ptr, neighbour, index, out = e.pointers
        first, last = e.integers
        with e.loop(e.load_int(row_ptr, first), e.load_int(row_ptr, last)) as edge:
            e.store_int(e.load_int(index, e.load_int(neighbour, edge)), out, edge)
        return e.finish()


class PairRow:
    """out[e] = number[index of the centre, index of the neighbour].

    Pointers (all int64): row_ptr, neighbour, index (n,), number (rows, columns), out (E,). Integers: first and last atom,
    columns.
    """

    name, n_pointers, n_integers = "pair_row", 5, 3

    def __init__(self, *, bits: int, lanes: int):
        self.e = Emitter(self.name, self.n_pointers, self.n_integers, bits, lanes)

    def source(self) -> str:
        e = self.e
        row_ptr, neighbour, index, number, out = e.pointers
        first, last, columns = e.integers
        with e.loop(first, last) as i:
            row = e.times(e.load_int(index, i), columns)
            with e.loop(e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))) as edge:
                column = e.load_int(index, e.load_int(neighbour, edge))
                e.store_int(e.load_int(number, e.add(row, column)), out, edge)
        return e.finish()
