"""What both directions of a convolution kernel do with the channels of an edge: addresses, inputs, radial functions.

The radial table is quintic Hermite: per knot the value, first and second derivative in units of the knot distance. The
functions of the two values add up to 1, so that w = T_0 + h_3 (T_3 - T_0) + ... is a product less.
"""

from __future__ import annotations

from .conv_forms import Form
from .conv_geometry import EdgeBlock
from .conv_variants import Variant
from .emitter import Dual, Emitter
from .paths import ConvPaths, Path

BASIS = (3, 1, 2, 4, 5)  # the Hermite functions that `Channels.coefficients` go with


class Channels:
    """Base of the bodies of the kernels, which run for one centre after the other.

    Args:
        e: the kernel's emitter.
        pointers: by name, as ConvKernel lists them.
        paths, forms: the path table and how each path is multiplied out.
        variant: of the kernel.
        edges: the block of edges that `of_block` works on.

    Attributes:
        n_numbers: of scratch behind that of the edges.
    """

    n_numbers = 0

    def __init__(
        self, e: Emitter, pointers: dict, paths: ConvPaths, forms: dict[Path, Form], variant: Variant, edges: EdgeBlock
    ):
        self.e, self.p, self.paths, self.forms, self.variant, self.edges = e, pointers, paths, forms, variant, edges

    def of_centre(self, i) -> None:
        """Emits what comes before the edges of centre i."""
        self.i = i

    def of_block(self) -> None:
        """Emits the work of a block of edges, whose geometry is done."""
        raise NotImplementedError

    # addresses

    def out_index(self, path: Path, m3: int, channel):
        e, (mul, l_out, _) = self.e, self.paths.irreps_out[path.i_out]
        row = e.add(e.times(self.i, 2 * l_out + 1), m3)
        return e.add(e.times(row, mul), e.add(channel, path.start))

    def in_index(self, i_in: int, j, m1: int, channel):
        e, (mul, l_in, _) = self.e, self.paths.irreps_in[i_in]
        return e.add(e.times(e.add(e.times(j, 2 * l_in + 1), m1), mul), channel)

    def inputs(self, i_in: int, j, channel, width: int) -> list[Dual]:
        """x_j[m1], one per m1."""
        e, out = self.e, []
        for m1 in range(2 * self.paths.irreps_in[i_in].l + 1):
            index = self.in_index(i_in, j, m1, channel)
            tangent = e.load(self.p["x'"][i_in], index, width) if self.variant.dual else None
            out.append(Dual(e.load(self.p["x"][i_in], index, width), tangent))
        return out

    def neighbour(self, k):
        return self.e.load_int(self.p["neighbour"][0], self.e.add(self.edges.start, k))

    def find_table(self, k) -> None:
        self.table = self.e.times(self.edges.knot(k), 3 * self.paths.n_weights)

    def table_index(self, q: int, path: Path, channel):
        return self.e.add(self.table, self.e.add(channel, q * self.paths.n_weights + path.weight))

    # radial functions

    def coefficients(self, path: Path, channel, width: int) -> tuple[Dual, list[Dual]]:
        """T_0 and what the functions of BASIS are multiplied with: w = T_0 + sum of basis * coefficient."""
        parts = []
        for q in range(6):
            index = self.table_index(q, path, channel)
            tangent = self.e.load(self.p["T'"][0], index, width) if self.variant.table_tangent else None
            parts.append(Dual(self.e.load(self.p["T"][0], index, width), tangent))
        step = Dual(*(None if a is None else self.e.b.fsub(b, a) for a, b in zip(parts[0], parts[3])))
        return parts[0], [step, *(parts[q] for q in BASIS[1:])]

    def weight(self, first: Dual, coefficients: list[Dual], k, width: int) -> Dual:
        for q, coefficient in zip(BASIS, coefficients):
            first = self.e.dual_fma(self.edges.spread("h", q, k, width), coefficient, first)
        return first

    def result(self, dual: Dual):
        return dual.tangent if self.variant.dual else dual.value

    def add_product(self, slot, a: Dual, b: Dual, width: int) -> None:
        """slot += a b, or its derivative in a dual kernel."""
        e = self.e
        if not self.variant.dual:
            e.set(slot, e.fma(a.value, b.value, e.get(slot, width)))
            return
        for one, other in ((a.value, b.tangent), (a.tangent, b.value)):
            if one is not None and other is not None:
                e.set(slot, e.fma(one, other, e.get(slot, width)))
