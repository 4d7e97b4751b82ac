"""Source of the symmetric product for Triton: the functions of `product_kernels`.

One program has one atom and a block of channels. The weights' gradient is written atom by atom; summing it over the
atoms of a species is left to a matrix product, so that no two programs add to one number.
"""

from __future__ import annotations

from .product_kernels import Variant, terms_of
from .product_table import ProductTable
from .triton_source import Dual, Writer, channel_blocks

_MOST_CHANNELS = 32  # one per thread of a warp: all polynomials of an atom are to stay in its registers


class ProductSource:
    """Writes one kernel.

    Pointers, in this order: species (int64); x..., W...; if dual the tangents of x... (with weight_tangent also of
    W...); forward: out...; backward: g..., dx..., dW... (with weight_gradient) per output (n_atoms, rows, C). Last the
    number of species: atoms of others get nan.
    """

    def __init__(self, table: ProductTable, variant: Variant, bits: int):
        self.table, self.variant = table, variant
        self.blocks = channel_blocks(table.n_channels, _MOST_CHANNELS)
        self.terms = [terms_of(table, k) for k in range(len(table.nodes))]
        self.inner = {node.left for node in table.nodes} | set(range(table.n_inputs))
        self.w = Writer(bits)

    def arguments(self) -> list[str]:
        n_in, n_out, variant = self.table.n_inputs, len(self.table.irreps_out), self.variant
        x, weights, g = ([f"{name}{k}" for k in range(n)] for name, n in (("x", n_in), ("W", n_out), ("g", n_out)))
        names = ["species", *x, *weights]
        if variant.dual:
            names += [name + "_" for name in (x + weights if variant.weight_tangent else x)]
        if variant.backward:
            names += [*g, *(f"d{name}" for name in x)] + [f"d{name}" for name in weights] * variant.weight_gradient
        else:
            names += [f"out{k}" for k in range(n_out)]
        return [*names, "n_species"]

    def text(self) -> str:
        w, width = self.w, self.blocks[0][1]
        w.line("i = tl.program_id(0).to(tl.int64)")
        w.line("row = tl.load(species + i)")
        w.line(f"c = tl.program_id(1) * {width} + tl.arange(0, {width})")
        self.mask = "m" if self.table.n_channels % width else None
        if self.mask:
            w.line(f"m = c < {self.table.n_channels}")
        w.line("rows = row + 0 * c")
        w.line("known = (rows >= 0) & (rows < n_species)" + (" & m" if self.mask else ""))
        self._atom()
        return w.source(self.variant.name, self.arguments(), ["species", "n_species"])

    def _atom(self) -> None:
        """Nodes that others are made of are kept; an output's own are used up where they arise."""
        table = self.table
        values: list[list[Dual] | None] = [self._block("x", k, term.l) for k, term in enumerate(table.irreps_in)]
        totals: list[list[list]] = [[[] for _ in range(2 * l + 1)] for _, l, _ in table.irreps_out]
        for k in range(len(table.nodes)):
            if k >= table.n_inputs:
                values.append(self._node(k, values) if k in self.inner or not self.variant.backward else None)
            if not self.variant.backward:
                for i_out, _, weight in self._weights(k):
                    for m, total in enumerate(totals[i_out]):
                        total[:] = [self._grown(total, weight, values[k][m])]
        if self.variant.backward:
            self._backward(values)
            return
        for i_out, total in enumerate(totals):
            for m, (component,) in enumerate(total):
                self._store(f"out{i_out}", self._row(len(total), m), component)

    # addresses

    def _row(self, dimension: int, m: int) -> str:
        """Component m of a block of the atom."""
        return f"(i * {dimension} + {m}) * {self.table.n_channels}"

    def _load(self, name: str, k: int, row: str, dual: bool, missing: bool = False) -> Dual:
        def one(pointer: str) -> str:
            if missing:
                return self.w.let(f"tl.load({pointer} + {row} + c, mask=known, other=float('nan'))")
            return self.w.load(f"{pointer} + {row} + c", self.mask)

        return Dual(one(f"{name}{k}"), one(f"{name}{k}_") if dual else None)

    def _block(self, name: str, k: int, l: int) -> list[Dual]:
        dual = name == "x" and self.variant.dual
        return [self._load(name, k, self._row(2 * l + 1, m), dual) for m in range(2 * l + 1)]

    def _weights(self, k: int):
        """(i_out, position among its rows, weight) for each output that the node belongs to."""
        for i_out, rows in enumerate(self.table.outputs):
            if k in rows:
                row = f"(row * {len(rows)} + {rows.index(k)}) * {self.table.n_channels}"
                yield i_out, rows.index(k), self._load("W", i_out, row, self.variant.weight_tangent, missing=True)

    def _store(self, name: str, row: str, dual: Dual | None) -> None:
        number = None if dual is None else dual.tangent if self.variant.dual else dual.value
        if number is None:
            number = self.w.zeros(self.blocks[0][1])
        self.w.store(f"{name} + {row} + c", number, self.mask)

    # arithmetic

    def _grown(self, total: list[Dual], a: Dual, b: Dual) -> Dual:
        """total[0] + a b, or a b if there is no total yet."""
        return self.w.combine([(a, b)], total[0] if total else None)

    def _node(self, k: int, values: list) -> list[Dual]:
        node = self.table.nodes[k]
        sums: list[list] = [[] for _ in range(2 * node.l + 1)]
        for (a, b), coefficients in self.terms[k].items():
            pair = self.w.combine([(values[node.left][a], values[node.right][b])])
            for m, coefficient in coefficients:
                sums[m].append((coefficient, pair))
        return [self.w.combine(terms) for terms in sums]

    def _backward(self, values: list) -> None:
        table, w = self.table, self.w
        adjoint: list[list[list[Dual]]] = [[[] for _ in range(2 * node.l + 1)] for node in table.nodes]
        g = [self._block("g", i_out, l) for i_out, (_, l, _) in enumerate(table.irreps_out)]
        for k in range(len(table.nodes) - 1, -1, -1):
            node = table.nodes[k]
            for i_out, position, weight in self._weights(k):
                for component, total in zip(g[i_out], adjoint[k]):
                    total[:] = [self._grown(total, weight, component)]
                if self.variant.weight_gradient:
                    value = values[k] or self._node(k, values)
                    row = f"(i * {len(table.outputs[i_out])} + {position}) * {table.n_channels}"
                    self._store(f"dW{i_out}", row, w.combine(list(zip(g[i_out], value))))
            if k < table.n_inputs:
                continue
            left, right = adjoint[node.left], adjoint[node.right]
            for (a, b), coefficients in self.terms[k].items():
                q = w.combine([(coefficient, *adjoint[k][m]) for m, coefficient in coefficients])
                left[a] = [self._grown(left[a], q, values[node.right][b])]
                right[b] = [self._grown(right[b], q, values[node.left][a])]
            adjoint[k] = []
        for k in range(table.n_inputs):
            for m, total in enumerate(adjoint[k]):
                self._store(f"dx{k}", self._row(len(adjoint[k]), m), total[0] if total else None)
