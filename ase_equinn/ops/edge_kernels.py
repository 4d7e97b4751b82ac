"""IR of what lies between edge vectors in float64 and a network that may run in float32.

Both handle the edges of the atoms first..last (their two integers); `bits` is the network's. The IR can be asked
for once.
"""

from __future__ import annotations

from .emitter import Emitter

_PAIRS = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]  # components of a symmetric matrix


class Split:
    """vx, vy, vz = the columns of the edge vectors, in the network's numbers.

    Pointers, in this order: row_ptr (int64); vectors (E, 3) float64; vx, vy, vz (E,).
    """

    name, n_pointers, n_integers = "split", 5, 2

    def __init__(self, *, bits: int, lanes: int):
        self.bits, self.e = bits, Emitter(self.name, self.n_pointers, self.n_integers, 64, lanes)

    def source(self) -> str:
        e = self.e
        row_ptr, vectors, *columns = e.pointers
        first, last = (e.load_int(row_ptr, i) for i in e.integers)
        with e.loop(first, last) as edge:
            for c, column in enumerate(columns):
                e.store_to(self.bits, e.load(vectors, e.add(e.times(edge, 3), c)), column, edge)
        return e.finish()


class Collect:
    """F_i += sum_j g_ij, F_j -= g_ij, W_i (+)= the symmetric part of sum_j r_ij (x) g_ij, in the order of edges.

    Pointers, in this order: row_ptr, neighbour (int64); vectors r (E, 3) float64; gx, gy, gz (E,); forces (n, 3) and
    node_virial (n, 9), both float64. Forces are always added to, those of neighbours outside first..last as well.

    Args:
        accumulate: whether node_virial is added to.
    """

    name, n_pointers, n_integers = "collect", 8, 2

    def __init__(self, accumulate: bool = False, *, bits: int, lanes: int):
        self.accumulate, self.bits = accumulate, bits
        self.e = Emitter(self.name, self.n_pointers, self.n_integers, 64, lanes)

    def source(self) -> str:
        e = self.e
        row_ptr, neighbour, vectors, *gradient, forces, virial = e.pointers
        force, outer = [e.variable(1) for _ in range(3)], {pair: e.variable(1) for pair in _PAIRS}
        with e.loop(*e.integers) as i:
            for slot in [*force, *outer.values()]:
                e.set(slot, e.const(0, 1))
            with e.loop(e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))) as edge:
                r = [e.load(vectors, e.add(e.times(edge, 3), c)) for c in range(3)]
                g = [e.load_from(self.bits, pointer, edge) for pointer in gradient]
                j = e.times(e.load_int(neighbour, edge), 3)
                for c in range(3):
                    e.set(force[c], e.b.fadd(e.get(force[c], 1), g[c]))
                    e.accumulate(e.b.fneg(g[c]), forces, e.add(j, c), 1)
                for (a, b), slot in outer.items():
                    total = e.fma(r[a], g[b], e.get(slot, 1))
                    e.set(slot, total if a == b else e.fma(r[b], g[a], total))
            for c in range(3):
                e.accumulate(e.get(force[c], 1), forces, e.add(e.times(i, 3), c), 1)
            for (a, b), slot in outer.items():
                self._virial(e, virial, e.times(i, 9), (a, b), e.get(slot, 1))
        return e.finish()

    def _virial(self, e: Emitter, virial, row, pair: tuple[int, int], value) -> None:
        a, b = pair
        value = value if a == b else e.mul(value, e.const(0.5, 1))
        for column in {3 * a + b, 3 * b + a}:
            index = e.add(row, column)
            if self.accumulate:
                e.accumulate(value, virial, index, 1)
            else:
                e.store(value, virial, index)
