"""How a convolution kernel multiplies out a path: the factorisation of its couplings with the fewest products per edge.

With t[m1] = w x_j[m1] every path is, per edge and channel,

    s[k] += row t[m1]               for each of its `products` (k, m1, row)
    A_i[m3] = sum of c s[k]         over its `sums`, once per centre

where a row is a number of the edge, a combination of its Y_m. Either k = m3 and row = M[m3, m1] = sum_m C Y_m; or k
stands for a pair (m1, m) and row = Y_m, and the coupling waits for the centre: fewer products where l_sh < l_out.
"""

from __future__ import annotations

from typing import NamedTuple

from .conv_variants import entries
from .paths import ConvPaths, Path

Row = tuple[tuple[int, float], ...]  # ((m, c), ...): the sum of c Y_m


class Product(NamedTuple):
    """s[k] += row t[m1]; no row stands for 1."""

    k: int
    m1: int
    row: Row | None


class Form(NamedTuple):
    """A path multiplied out; ``sums[k]`` holds the (m3, c) that s[k] goes to, None: s[m3] is A[m3]."""

    products: list[Product]
    sums: list[list[tuple[int, float]]] | None
    dim_out: int

    @property
    def n_sums(self) -> int:
        return self.dim_out if self.sums is None else len(self.sums)

    @property
    def rows(self) -> list[Row]:
        return list(dict.fromkeys(product.row for product in self.products if product.row is not None))


def forms(paths: ConvPaths, constant: bool) -> dict[Path, Form]:
    """The form of every path; with `constant`, Y_0 is 1 and its derivative does not matter."""
    return {path: _form(paths, path, rows, constant) for path, rows in entries(paths).items()}


def _form(paths: ConvPaths, path: Path, matrix: list, constant: bool) -> Form:
    dim_out = 2 * paths.irreps_out[path.i_out].l + 1
    if path.l_sh == 0:  # the matrix is Y_0 times that of the identity
        return Form([Product(entry.m3, entry.m1, None if constant else ((0, 1.0),)) for entry in matrix], None, dim_out)
    if paths.irreps_in[path.i_in].l == 0:  # and here it is the column Y
        return Form([Product(entry.m3, 0, ((entry.terms[0][0], 1.0),)) for entry in matrix], None, dim_out)
    pairs: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for entry in matrix:
        for m, c in entry.terms:
            pairs.setdefault((entry.m1, m), []).append((entry.m3, c))
    if len(pairs) >= len(matrix):
        return Form([Product(entry.m3, entry.m1, tuple(entry.terms)) for entry in matrix], None, dim_out)
    ordered = sorted(pairs)
    products = [Product(k, m1, ((m, 1.0),)) for k, (m1, m) in enumerate(ordered)]
    return Form(products, [pairs[pair] for pair in ordered], dim_out)
