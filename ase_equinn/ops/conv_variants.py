"""What a convolution kernel is generated from: the non-zero elements of the paths' matrices, and the variant wanted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..irreps import clebsch_gordan
from .paths import ConvPaths, Path


class Entry(NamedTuple):
    """Element (m3, m1) of a path's matrix M = sum of coefficient * Y_m over `terms`; `row` counts through all paths."""

    m3: int
    m1: int
    row: int
    terms: list[tuple[int, float]]


def entries(paths: ConvPaths) -> dict[Path, list[Entry]]:
    """The non-zero elements of every path's matrix, numbered through."""
    out, row = {}, 0
    for path in paths.paths:
        l_in, l_out = paths.irreps_in[path.i_in].l, paths.irreps_out[path.i_out].l
        coupling = clebsch_gordan(l_in, path.l_sh, l_out) * np.sqrt(2 * l_out + 1)
        out[path] = []
        for m3 in range(2 * l_out + 1):
            for m1 in range(2 * l_in + 1):
                terms = [(path.l_sh**2 + m2, c) for m2, c in enumerate(coupling[m1, :, m3]) if abs(c) > 1e-12]
                if terms:
                    out[path].append(Entry(m3, m1, row, terms))
                    row += 1
    return out


class Variant(NamedTuple):
    """Which function of the family: what it takes, what it returns and which inputs have tangents."""

    backward: bool
    dual: bool = False  # x, Y and r have tangents, and the outputs are derivatives along them
    table_tangent: bool = False  # T has one as well
    g_tangent: bool = False  # and so have the g of a backward kernel
    x_gradient: bool = True
    table_gradient: bool = False
    edge_gradient: bool = True  # with respect to r and Y, or to the vectors
    tables: bool = False  # every edge has a table of its own, which begins at a row of T
    vectors: bool = False  # edges are given by their vectors, not by r and Y
    add_vectors: bool = False  # the gradient with respect to the vectors is added to what is there

    @property
    def name(self) -> str:
        flags = (field for field in self._fields[1:] if getattr(self, field))
        return "_".join(["backward" if self.backward else "forward", *flags])

    def check(self) -> None:
        """Raises:
        ValueError: flags that exclude each other, with the variant's name.
        """
        if self.vectors and self.dual and self.backward and self.edge_gradient:
            raise ValueError(f"no kernel in dual arithmetic gives a gradient with respect to vectors: {self.name}")
        if self.g_tangent and not (self.dual and self.backward):
            raise ValueError(f"only a backward kernel in dual arithmetic has tangents of g: {self.name}")
        if self.add_vectors and not (self.vectors and self.backward and self.edge_gradient):
            raise ValueError(f"only a backward kernel of vectors can add to their gradient: {self.name}")
