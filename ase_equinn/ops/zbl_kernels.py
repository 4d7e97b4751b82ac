"""IR of a screened Coulomb repulsion of nuclei with a polynomial envelope: the energies of atoms, and its gradient.

    V(r) = strength Z_i Z_j / r phi(a r) envelope(s),    a = (P_i + P_j) / length,  s = r / (R_i + R_j)
    phi(x) = sum_n amplitudes_n exp(-decays_n x)
    envelope(s) = (1 - s)^3 sum_{k<p} (k+1)(k+2)/2 s^k,    envelope'(s) = -p(p+1)(p+2)/2 s^(p-1) (1 - s)^2

Edges of one atom stand in the lanes; where none of them is shorter than R_i + R_j, nothing more is computed.
"""

from __future__ import annotations

from typing import NamedTuple

from .emitter import Emitter
from .functions import exp


class Repulsion(NamedTuple):
    """The numbers of V that are not of an element; power is the envelope's p."""

    strength: float  # eV A
    length: float  # A
    amplitudes: tuple[float, ...]
    decays: tuple[float, ...]
    power: int


class _Pairs(NamedTuple):
    """What is known of the edges in the lanes."""

    inside: object  # mask: shorter than R_i + R_j
    vector: list
    length: object
    inverse: object
    charge: object  # strength Z_i Z_j
    rate: object  # a
    reach: object  # 1 / (R_i + R_j)


class ZBLKernel:
    """Half of V to each end: forward e_i = sum_j V(r_ij) / 2; backward g_ij (+)= seed_i d(V / 2)/dr_ij.

    The energy is exactly zero for pairs at or beyond R_i + R_j. The sum over lanes comes last.

    Pointers, in this order: row_ptr, neighbour, species (int64); Z, P, R (n_species,); vx, vy, vz (E,); then
    forward: energy (n,); backward: seed (n,), gx, gy, gz (E,).

    Args:
        repulsion: see there.
        backward: which of the two.
        accumulate: the backward kernel adds to gx, gy, gz.
    """

    n_integers = 2

    def __init__(self, repulsion: Repulsion, backward: bool, accumulate: bool = False, *, bits: int, lanes: int):
        self.repulsion, self.backward, self.accumulate = repulsion, backward, accumulate
        self.n_pointers = 13 if backward else 10
        self.e = Emitter("zbl_backward" if backward else "zbl", self.n_pointers, self.n_integers, bits, lanes)
        self.row_ptr, self.neighbour, self.species, *tables = self.e.pointers[:6]
        self.tables, self.vectors, self.outputs = tables, self.e.pointers[6:9], self.e.pointers[9:]

    def source(self) -> str:
        e, total = self.e, self.e.variable(self.e.lanes)
        with e.loop(*e.integers) as i:
            row = e.load_int(self.species, i)
            own = [e.splat(e.load(table, row), e.lanes) for table in self.tables]
            start, stop = e.load_int(self.row_ptr, i), e.load_int(self.row_ptr, e.add(i, 1))
            e.set(total, e.const(0, e.lanes))
            with e.loop(start, stop, e.lanes) as edge:
                mask = e.mask(e.b.sub(stop, edge))
                if self.backward and not self.accumulate:
                    for pointer in self.outputs[1:]:
                        e.store_masked(e.const(0, e.lanes), pointer, edge, mask)
                self._edges(i, edge, mask, own, total)
            if not self.backward:
                e.store(e.sum(e.get(total, e.lanes), e.lanes), self.outputs[0], i)
        return e.finish()

    def _edges(self, i, edge, mask, own: list, total) -> None:
        e = self.e
        atoms = e.load_ints_masked(self.neighbour, edge, mask)
        rows = [e.load_int(self.species, e.entry(atoms, lane)) for lane in range(e.lanes)]
        vector = [e.load_masked(pointer, edge, mask, 1.0) for pointer in self.vectors]
        squares = None
        for component in vector:
            squares = e.fma(component, component, squares)
        length, reach = e.sqrt(squares), e.b.fadd(own[2], self._of(2, rows))
        inside = e.b.and_(mask, e.b.fcmp_unordered("<", length, reach))  # a nan is no reason to give zero
        with e.loop(0, e.any(inside)):
            one = e.const(1, e.lanes)
            charge = e.mul(e.mul(own[0], e.const(self.repulsion.strength, e.lanes)), self._of(0, rows))
            rate = e.mul(e.b.fadd(own[1], self._of(1, rows)), e.const(1 / self.repulsion.length, e.lanes))
            pairs = _Pairs(inside, vector, length, e.b.fdiv(one, length), charge, rate, e.b.fdiv(one, reach))
            if self.backward:
                self._gradient(pairs, e.splat(e.load(self.outputs[0], i), e.lanes), edge, mask)
            else:
                e.set(total, e.b.fadd(e.get(total, e.lanes), self._energy(pairs)))

    def _of(self, table: int, rows: list):
        """The neighbours' numbers of one table."""
        e, out = self.e, self.e.const(0, self.e.lanes)
        for lane, row in enumerate(rows):
            out = e.put(out, lane, e.load(self.tables[table], row))
        return out

    def _screening(self, pairs: _Pairs) -> tuple:
        """phi, and its derivative times -1."""
        e, x = self.e, self.e.mul(pairs.length, pairs.rate)
        value = slope = e.const(0, e.lanes)
        for amplitude, decay in zip(self.repulsion.amplitudes, self.repulsion.decays):
            part = exp(e, e.mul(e.const(-decay, e.lanes), x), e.lanes)
            value = e.fma(e.const(amplitude, e.lanes), part, value)
            slope = e.fma(e.const(amplitude * decay, e.lanes), part, slope)
        return value, slope

    def _envelope(self, pairs: _Pairs) -> tuple:
        """Value, and the derivative times -1."""
        e, p, width = self.e, self.repulsion.power, self.e.lanes
        s = e.mul(pairs.length, pairs.reach)
        t = e.b.fsub(e.const(1, width), s)
        total, power = e.const(p * (p + 1) / 2, width), e.const(p * (p + 1) * (p + 2) / 2, width)
        for k in range(p - 2, -1, -1):
            total, power = e.fma(total, s, e.const((k + 1) * (k + 2) / 2, width)), e.mul(power, s)
        square = e.mul(t, t)
        return e.mul(e.mul(square, t), total), e.mul(square, power)

    def _energy(self, pairs: _Pairs):
        e = self.e
        phi, envelope = self._screening(pairs)[0], self._envelope(pairs)[0]
        energy = e.mul(e.mul(e.mul(pairs.charge, pairs.inverse), e.mul(phi, envelope)), e.const(0.5, e.lanes))
        return e.b.select(pairs.inside, energy, e.const(0, e.lanes))

    def _gradient(self, pairs: _Pairs, seed, edge, mask) -> None:
        """dV/dr = -strength Z_i Z_j / r (phi envelope / r - a phi' envelope - phi envelope' / (R_i + R_j))"""
        e = self.e
        (phi, phi_slope), (envelope, envelope_slope) = self._screening(pairs), self._envelope(pairs)
        slope = e.mul(e.mul(phi, envelope), pairs.inverse)
        slope = e.fma(e.mul(pairs.rate, phi_slope), envelope, slope)
        slope = e.fma(e.mul(phi, envelope_slope), pairs.reach, slope)
        factor = e.mul(e.mul(pairs.charge, pairs.inverse), e.mul(seed, e.const(-0.5, e.lanes)))
        factor = e.mul(e.mul(factor, slope), pairs.inverse)
        factor = e.b.select(pairs.inside, factor, e.const(0, e.lanes))
        for component, pointer in zip(pairs.vector, self.outputs[1:]):
            gradient = e.mul(factor, component)
            if self.accumulate:
                gradient = e.b.fadd(e.load_masked(pointer, edge, mask), gradient)
            e.store_masked(gradient, pointer, edge, mask)
