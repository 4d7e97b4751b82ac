"""IR of the fused convolution: forward, backward, and the derivatives of both, from one path table.

With the weight w(r) interpolated in a table T, per edge (i, j), path and channel, the products (k, m1, row) of the
path's form (conv_forms) and G[k] = sum of c g_i[m3] over its sums,

    t[m1] = w x_j[m1]                 s[k] += row t[m1]              A_i[m3] += c s[k]        (forward)
    u[m1] = sum of row G[k]           dx_j[m1] += w u[m1]            drow += t[m1] G[k]
    dw = sum_m1 u[m1] x_j[m1]         dr += w' dw                    dT[q] += basis_q dw      (backward, g = dL/dA)

Messages and weights live in registers. The kernels are written in dual arithmetic: with tangents of x, Y, r (and T)
they yield the derivative of the same outputs in that direction, which is what differentiating the backward pass needs.
"""

from __future__ import annotations

from llvmlite import ir

from .conv_backward import Backward
from .conv_forms import forms
from .conv_forward import Forward
from .conv_geometry import BLOCK, EdgeBlock
from .conv_variants import Variant
from .emitter import Emitter
from .paths import ConvPaths


class ConvKernel:
    """Emits one variant.

    Pointers, in this order: row_ptr, neighbour (int64); scratch; r (E,), Y (n_sh, E), T (knots, 3, n_weights), x...;
    if dual their tangents in the same order (T's only with table_tangent); forward: out...; backward: g..., their
    tangents (with g_tangent), dr, dY (with edge_gradient), dT (with table_gradient), dx... (with x_gradient); last the first rows of the edges' tables (int64, with tables).
    With vectors, vx, vy, vz (E,) each stand in place of r, Y, and gx, gy, gz (E,), the gradient with respect to the
    vectors, in place of dr, dY; lengths and Y are then those of `angular`, edges of length 0 included.
    Integers: first and last centre, E, knots of a table - 1, and the bits of 1 / (knot distance) as float64.

    dx and dT (and gx, gy, gz with add_vectors) are added to, everything else is overwritten. `neighbour` holds rows of
    x and dx, which need not be atoms; the others' rows are centres or edges.

    Attributes:
        n_rows: what `scratch_size` takes.
    """

    def __init__(self, paths: ConvPaths, variant: Variant, bits: int, lanes: int):
        variant.check()
        self.paths, self.variant = paths, variant
        self.forms = forms(paths, constant=variant.vectors)
        counts = self._pointer_counts()
        self.n_pointers, self.n_integers = sum(counts.values()), 5
        self.e = Emitter(variant.name, self.n_pointers, self.n_integers, bits, lanes)
        pointers = iter(self.e.pointers)
        self.p = {name: [next(pointers) for _ in range(count)] for name, count in counts.items()}
        self.first, self.last, n_edges, n_intervals, inverse = self.e.integers
        inverse = self.e.b.bitcast(inverse, ir.DoubleType())
        if bits == 32:
            inverse = self.e.b.fptrunc(inverse, self.e.number)
        constants = n_edges, self.e.b.sub(n_intervals, self.e.int(1)), inverse
        self.edges = EdgeBlock(self.e, self.p, paths.lmax, self.forms, variant, constants)
        body = Backward if variant.backward else Forward
        self.body = body(self.e, self.p, paths, self.forms, variant, self.edges)
        self.n_rows = self.edges.n_rows + -(-self.body.n_numbers // BLOCK)

    def _pointer_counts(self) -> dict[str, int]:
        variant, n_in, n_out = self.variant, len(self.paths.irreps_in), len(self.paths.irreps_out)
        geometry, slopes = (("vx", "vy", "vz"), ("gx", "gy", "gz")) if variant.vectors else (("r", "Y"), ("dr", "dY"))
        counts = dict.fromkeys(("row_ptr", "neighbour", "scratch", *geometry, "T"), 1) | {"x": n_in}
        if variant.dual:
            counts |= dict.fromkeys((f"{name}'" for name in geometry), 1)
            counts |= {"T'": int(variant.table_tangent), "x'": n_in}
        if variant.backward:
            counts |= {"g": n_out, "g'": n_out * variant.g_tangent} | dict.fromkeys(slopes, int(variant.edge_gradient))
            counts |= {"dT": int(variant.table_gradient), "dx": n_in * variant.x_gradient}
        else:
            counts |= {"out": n_out}
        return counts | {"first": int(variant.tables)}

    @staticmethod
    def scratch_size(n_rows: int) -> int:
        """Numbers of scratch that one thread needs."""
        return BLOCK * n_rows

    def source(self) -> str:
        e, row_ptr = self.e, self.p["row_ptr"][0]
        with e.loop(self.first, self.last) as i:
            start, stop = e.load_int(row_ptr, i), e.load_int(row_ptr, e.add(i, 1))
            self.body.of_centre(i)
            with e.loop(start, stop, BLOCK) as block:
                self.edges.begin(block, stop)
                self.body.of_block()
        return e.finish()
