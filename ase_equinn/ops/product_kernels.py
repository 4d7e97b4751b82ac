"""IR of the symmetric product: forward, backward, and the derivatives of both, from one table of couplings.

Per atom and vector of channels every node of the table is a sparse bilinear form of earlier ones,
t[m] = sum c left[a] right[b]. The backward pass goes through the nodes in reverse,

    dW_k = sum_m g[m] t_k[m],     s_k[m] = W_k g[m] + (from nodes made of k),
    q[a, b] = sum_m c s[m],       s_left[a] += q right[b],    s_right[b] += q left[a].

Written in dual arithmetic: with tangents of x (and W) a kernel yields the derivative of its outputs in that direction.
"""

from __future__ import annotations

from typing import NamedTuple

from .emitter import Dual, Emitter
from .product_table import ProductTable


class Variant(NamedTuple):
    """Which function of the family: what it returns and which inputs have tangents."""

    backward: bool
    dual: bool = False  # x has tangents, and the outputs are derivatives along them
    weight_tangent: bool = False  # W has some as well
    weight_gradient: bool = False
    g_tangent: bool = False  # the g of a backward kernel in dual arithmetic have tangents as well

    @property
    def name(self) -> str:
        flags = ("dual", "weight_tangent", "weight_gradient", "g_tangent")
        return "_".join(
            ["product", "backward" if self.backward else "forward", *(f for f in flags if getattr(self, f))]
        )


class ProductKernel:
    """Emits one variant.

    Pointers, in this order: species (int64); x..., W...; if dual the tangents of x... (with weight_tangent also of
    W...); forward: out...; backward: g..., their tangents (with g_tangent), dx..., dW... (with weight_gradient).
    Integers: first and last atom.

    dW is added to, everything else is overwritten.
    """

    def __init__(self, table: ProductTable, variant: Variant, bits: int, lanes: int):
        self.table, self.variant = table, variant
        n_in, n_out = table.n_inputs, len(table.irreps_out)
        counts = {"species": 1, "x": n_in, "W": n_out}
        if variant.dual:
            counts |= {"x'": n_in, "W'": n_out * variant.weight_tangent}
        if variant.backward:
            counts |= {"g": n_out, "g'": n_out * variant.g_tangent, "dx": n_in, "dW": n_out * variant.weight_gradient}
        else:
            counts |= {"out": n_out}
        self.n_pointers, self.n_integers = sum(counts.values()), 2
        self.e = Emitter(variant.name, self.n_pointers, self.n_integers, bits, lanes)
        pointers = iter(self.e.pointers)
        self.p = {name: [next(pointers) for _ in range(count)] for name, count in counts.items()}
        self.terms = [terms_of(table, k) for k in range(len(table.nodes))]

    def source(self) -> str:
        e = self.e
        with e.loop(*e.integers) as i:
            species = e.load_int(self.p["species"][0], i)
            for start, stop, width in e.pieces(self.table.n_channels):
                with e.piece(start, stop, width) as channel:
                    self.i, self.species, self.channel, self.width = i, species, channel, width
                    self._atom()
        return e.finish()

    def _atom(self) -> None:
        """Nodes that others are made of stay in registers or near; an output's own are used up where they arise."""
        table = self.table
        self.inner = {node.left for node in table.nodes} | set(range(table.n_inputs))
        values: list[list[Dual] | None] = [self._block("x", k, term.l) for k, term in enumerate(table.irreps_in)]
        totals = [[None] * (2 * l + 1) for _, l, _ in table.irreps_out]
        for k in range(len(table.nodes)):
            if k >= table.n_inputs:
                values.append(self._node(k, values) if k in self.inner or not self.variant.backward else None)
            if not self.variant.backward:
                self._add_to_outputs(k, values[k], totals)
                values[k] = values[k] if k in self.inner else None
        if self.variant.backward:
            self._backward(values)
            return
        for i_out, total in enumerate(totals):
            for m, component in enumerate(total):
                self.e.store(self._result(component), self.p["out"][i_out], self._row(len(total), m))

    # addresses

    def _row(self, dimension: int, m: int):
        """Component m of a block of the atom."""
        e = self.e
        return e.add(e.times(e.add(e.times(self.i, dimension), m), self.table.n_channels), self.channel)

    def _weight_row(self, i_out: int, k: int):
        e = self.e
        row = e.add(e.times(self.species, len(self.table.outputs[i_out])), k)
        return e.add(e.times(row, self.table.n_channels), self.channel)

    def _block(self, name: str, k: int, l: int) -> list[Dual]:  # noqa: E741
        return [
            self._load(name, k, self._row(2 * l + 1, m), self.variant.dual if name == "x" else self.variant.g_tangent)
            for m in range(2 * l + 1)
        ]

    def _load(self, name: str, k: int, index, dual: bool) -> Dual:
        tangent = self.e.load(self.p[name + "'"][k], index, self.width) if dual else None
        return Dual(self.e.load(self.p[name][k], index, self.width), tangent)

    def _result(self, dual: Dual | None):
        number = None if dual is None else dual.tangent if self.variant.dual else dual.value
        return self.e.const(0, self.width) if number is None else number

    # arithmetic

    def _combine(self, terms: list[tuple[float, Dual]]) -> Dual:
        total = None
        for coefficient, value in terms:
            total = self.e.dual_fma(Dual(self.e.const(coefficient, self.width)), value, total)
        return total

    def _node(self, k: int, values: list) -> list[Dual]:
        node = self.table.nodes[k]
        sums: list[list] = [[] for _ in range(2 * node.l + 1)]
        for (a, b), coefficients in self.terms[k].items():
            pair = self.e.dual_fma(values[node.left][a], values[node.right][b])
            for m, coefficient in coefficients:
                sums[m].append((coefficient, pair))
        return [self._combine(terms) for terms in sums]

    def _weights(self, k: int):
        """(i_out, address, weight) for each output that the node belongs to."""
        for i_out, rows in enumerate(self.table.outputs):
            if k in rows:
                index = self._weight_row(i_out, rows.index(k))
                yield i_out, index, self._load("W", i_out, index, self.variant.weight_tangent)

    def _add_to_outputs(self, k: int, value: list[Dual], totals: list[list]) -> None:
        for i_out, _, weight in self._weights(k):
            totals[i_out] = [self.e.dual_fma(weight, a, total) for a, total in zip(value, totals[i_out])]

    def _backward(self, values: list) -> None:
        e, table = self.e, self.table
        adjoint: list[list] = [[None] * (2 * node.l + 1) for node in table.nodes]
        g = [self._block("g", i_out, l) for i_out, (_, l, _) in enumerate(table.irreps_out)]
        for k in range(len(table.nodes) - 1, -1, -1):
            node = table.nodes[k]
            for i_out, index, weight in self._weights(k):
                adjoint[k] = [e.dual_fma(weight, component, total) for component, total in zip(g[i_out], adjoint[k])]
                if self.variant.weight_gradient:
                    self._weight_gradient(i_out, index, g[i_out], values[k] or self._node(k, values))
            if k < table.n_inputs:
                continue
            left, right = adjoint[node.left], adjoint[node.right]
            for (a, b), coefficients in self.terms[k].items():
                q = self._combine([(coefficient, adjoint[k][m]) for m, coefficient in coefficients])
                left[a] = e.dual_fma(q, values[node.right][b], left[a])
                right[b] = e.dual_fma(q, values[node.left][a], right[b])
            adjoint[k] = []
        for k in range(table.n_inputs):
            for m, total in enumerate(adjoint[k]):
                e.store(self._result(total), self.p["dx"][k], self._row(len(adjoint[k]), m))

    def _weight_gradient(self, i_out: int, index, g: list[Dual], value: list[Dual]) -> None:
        total = None
        for component, other in zip(g, value):
            total = self.e.dual_fma(component, other, total)
        self.e.accumulate(self._result(total), self.p["dW"][i_out], index, self.width)


def terms_of(table: ProductTable, k: int) -> dict[tuple[int, int], list[tuple[int, float]]]:
    """{(a, b): [(m, c)]}: t[m] = sum c left[a] right[b]; of a square only a <= b."""
    if k < table.n_inputs:
        return {}
    node, sums = table.nodes[k], {}
    coupling = table.coupling(node)
    for a, b, m in zip(*abs(coupling).nonzero()):
        pair = (min(a, b), max(a, b)) if node.left == node.right else (a, b)
        row = sums.setdefault((int(pair[0]), int(pair[1])), {})
        row[int(m)] = row.get(int(m), 0.0) + float(coupling[a, b, m])
    kept = {pair: [(m, c) for m, c in row.items() if abs(c) > 1e-12] for pair, row in sums.items()}
    return {pair: row for pair, row in kept.items() if row}
