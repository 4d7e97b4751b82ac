"""Source of the fused convolution for Triton: the functions of `conv_kernels`, with gathers instead of scatters.

One program has one atom (or one interval of the radial table) and one part: some paths and a block of channels. It
goes through the atom's edges and keeps its sums in registers. No two programs add to one number, so results are the
same bits each time:

    forward      centre i     A_i
    edges        centre i     dr, dY of its edges, per part; the parts are added up afterwards
    neighbours   neighbour j  dx_j, from the edges that end there
    table        interval     dT of its two knots, from a share of the edges whose length lies there
"""

from __future__ import annotations

import numpy as np

from .conv_triton_parts import INDICES, Kind, make_parts
from .conv_variants import entries
from .paths import ConvPaths, Path
from .radial_table import HERMITE
from .triton_source import Dual, Writer

# The functions of the two values add up to 1: w = T_0 + h_3 (T_3 - T_0) + ..., so slopes are no small differences.
_BASIS = (3, 1, 2, 4, 5)


class ConvSource:
    """Writes one kernel.

    Pointers, in this order: those of INDICES, and `first` if there are several tables; r (E,), Y (E, n_sh), T (knots,
    3, n_weights), x...; if dual their tangents; g... but for forward; last the outputs: A..., or dr (E, parts) and dY
    (E, parts, n_sh), or dx..., or dT (knots, chunks, 6, n_weights).

    Args:
        n_knots, spacing: of a table; they become constants of the kernel.
    """

    def __init__(self, paths: ConvPaths, kind: Kind, n_knots: int, spacing: float, bits: int):
        self.paths, self.kind, self.bits = paths, kind, bits
        self.n_knots, self.spacing = int(n_knots), float(spacing)
        self.entries, self.n_sh = entries(paths), (paths.lmax + 1) ** 2
        self.parts = make_parts(paths, kind, bits)
        self.w = Writer(bits)

    def text(self) -> str:
        w, name = self.w, self.kind.name
        bodies = {"forward": self._forward, "edges": self._edges, "neighbours": self._neighbours}
        body = bodies.get(name, self._intervals)
        w.line("program = tl.program_id(0).to(tl.int64)")
        w.line("part = tl.program_id(1)")
        for number, part in enumerate(self.parts):
            self.part, self.number = part, number
            with w.block(f"if part == {number}:"):
                w.line(f"c{number} = {part.start} + tl.arange(0, {part.width})")
                if part.mask:
                    w.line(f"m{number} = c{number} < {part.paths[0].mul}")
                body()
        return w.source(self.kind.function, self.arguments(), self._index_arguments())

    def _index_arguments(self) -> list[str]:
        return INDICES[self.kind.name] + ["first"] * self.kind.tables

    def arguments(self) -> list[str]:
        n_in, n_out = len(self.paths.irreps_in), len(self.paths.irreps_out)
        x, g = [f"x{k}" for k in range(n_in)], [f"g{k}" for k in range(n_out)]
        names = [*self._index_arguments(), "r", "Y", "T", *x]
        if self.kind.dual:
            names += ["r_", "Y_", *["T_"] * self.kind.table_tangent, *(name + "_" for name in x)]
        outputs = {
            "forward": [f"out{k}" for k in range(n_out)],
            "edges": [*g, "dr", "dY"],
            "neighbours": [*g, *(f"d{name}" for name in x)],
            "table": [*g, "dT"],
        }
        return names + outputs[self.kind.name]

    # addresses

    @property
    def _channels(self) -> tuple[str, str | None]:
        return f"c{self.number}", f"m{self.number}" if self.part.mask else None

    def _load(self, name: str, row: str) -> str:
        channels, mask = self._channels
        return self.w.load(f"{name} + {row} + {channels}", mask)

    def _store(self, name: str, row: str, value: str) -> None:
        channels, mask = self._channels
        self.w.store(f"{name} + {row} + {channels}", value, mask)

    def _output_row(self, path: Path, m3: int, i: str) -> str:
        mul, l_out, _ = self.paths.irreps_out[path.i_out]
        return f"({i} * {2 * l_out + 1} + {m3}) * {mul} + {path.start}"

    def _input_row(self, i_in: int, m1: int, j: str) -> str:
        mul, l_in, _ = self.paths.irreps_in[i_in]
        return f"({j} * {2 * l_in + 1} + {m1}) * {mul}"

    def _inputs(self, i_in: int, j: str) -> list[Dual]:
        """x_j[m1], one per m1."""
        rows = [self._input_row(i_in, m1, j) for m1 in range(2 * self.paths.irreps_in[i_in].l + 1)]
        tangents = [self._load(f"x{i_in}_", row) if self.kind.dual else None for row in rows]
        return [Dual(self._load(f"x{i_in}", row), tangent) for row, tangent in zip(rows, tangents)]

    def _gradients(self, path: Path, i: str) -> list[Dual]:
        """g_i[m3], one per m3."""
        dim = 2 * self.paths.irreps_out[path.i_out].l + 1
        return [Dual(self._load(f"g{path.i_out}", self._output_row(path, m3, i))) for m3 in range(dim)]

    # what belongs to an edge

    def _geometry(self, slopes: bool) -> None:
        """Row of the table, Hermite functions h with derivatives dh, and the harmonics."""
        w, inverse = self.w, repr(1.0 / self.spacing)
        scaled = w.let(f"{w.load('r + e')} * {inverse}")
        knot = w.let(f"tl.minimum(tl.maximum(tl.floor({scaled}), 0.0), {float(self.n_knots - 2)})")
        t = w.let(f"{scaled} - {knot}")
        first = " + tl.load(first + e)" if self.kind.tables else ""
        self.row = w.let(f"({knot}.to(tl.int64){first}) * {3 * self.paths.n_weights}")
        rate = w.load("r_ + e") if self.kind.dual else None
        self.h, self.dh = [], []
        for q in _BASIS:
            polynomials = [HERMITE[q]]
            for _ in range(2):
                polynomials.append(polynomials[-1][1:] * np.arange(1, len(polynomials[-1])))
            value, slope, curvature = (_horner(polynomial, t) for polynomial in polynomials)
            self.h.append(w.let_dual(Dual(value, f"({slope}) * {inverse} * {rate}" if rate else None)))
            if slopes:
                change = f"({curvature}) * {inverse} * {inverse} * {rate}" if rate else None
                self.dh.append(w.let_dual(Dual(f"({slope}) * {inverse}", change)))
        self.y: dict[int, Dual] = {}

    def _harmonic(self, m: int) -> Dual:
        if m not in self.y:
            tangent = self.w.load(f"Y_ + e * {self.n_sh} + {m}") if self.kind.dual else None
            self.y[m] = Dual(self.w.load(f"Y + e * {self.n_sh} + {m}"), tangent)
        return self.y[m]

    def _matrix(self, path: Path) -> dict[tuple[int, int], Dual]:
        """The elements (m3, m1) of the path's matrix M = sum of coefficient * Y_m."""
        rows = self.entries[path]
        for m in sorted({m for entry in rows for m, _ in entry.terms}):
            self._harmonic(m)
        return {(row.m3, row.m1): self.w.combine([(c, self.y[m]) for m, c in row.terms]) for row in rows}

    def _table(self, path: Path) -> tuple[Dual, list[Dual]]:
        """The value at the knot below the edge, and what the functions of `_BASIS` are multiplied by."""
        numbers = []
        for q in range(6):
            row = f"{self.row} + {q * self.paths.n_weights + path.weight}"
            tangent = self._load("T_", row) if self.kind.table_tangent else None
            numbers.append(Dual(self._load("T", row), tangent))
        low, high = numbers[0], numbers[3]
        change = f"{high.tangent} - {low.tangent}" if self.kind.table_tangent else None
        numbers[3] = self.w.let_dual(Dual(f"{high.value} - {low.value}", change))
        return low, [numbers[q] for q in _BASIS]

    def _weight(self, path: Path) -> Dual:
        low, terms = self._table(path)
        return self.w.combine(list(zip(self.h, terms)), low)

    def _to_input(self, path: Path, g: list[Dual]) -> tuple[dict, dict[int, Dual]]:
        """M, and u[m1] = M[m3, m1] g[m3]."""
        matrix = self._matrix(path)
        sums: dict[int, list] = {}
        for (m3, m1), element in matrix.items():
            sums.setdefault(m1, []).append((element, g[m3]))
        return matrix, {m1: self.w.combine(terms) for m1, terms in sums.items()}

    # the four functions

    def _forward(self) -> None:
        w, sums = self.w, {}
        for path in self.part.paths:
            for m3 in range(2 * self.paths.irreps_out[path.i_out].l + 1):
                sums[path, m3] = w.zeros(self.part.width)
        with w.block("for e in range(tl.load(begin + program), tl.load(begin + program + 1)):"):
            w.line("j = tl.load(neighbour + e)")
            self._geometry(slopes=False)
            x = {i_in: self._inputs(i_in, "j") for i_in in {path.i_in for path in self.part.paths}}
            for path in self.part.paths:
                weight = self._weight(path)
                t = [w.combine([(weight, component)]) for component in x[path.i_in]]
                for (m3, m1), element in self._matrix(path).items():
                    w.add(sums[path, m3], element, t[m1], self.kind.dual)
        for (path, m3), total in sums.items():
            self._store(f"out{path.i_out}", self._output_row(path, m3, "program"), total)

    def _edges(self) -> None:
        w, n_parts = self.w, len(self.parts)
        g = {path: self._gradients(path, "program") for path in self.part.paths}
        used = {m for path in self.part.paths for row in self.entries[path] for m, _ in row.terms}
        with w.block("for e in range(tl.load(begin + program), tl.load(begin + program + 1)):"):
            w.line("j = tl.load(neighbour + e)")
            self._geometry(slopes=True)
            slope, turns = w.zeros(self.part.width), {m: w.zeros(self.part.width) for m in sorted(used)}
            x = {i_in: self._inputs(i_in, "j") for i_in in {path.i_in for path in self.part.paths}}
            for path in self.part.paths:
                self._edge_gradient(path, x[path.i_in], g[path], slope, turns)
            w.store(f"dr + e * {n_parts} + {self.number}", f"tl.sum({slope})")
            for m in range(self.n_sh):
                value = f"tl.sum({turns[m]})" if m in turns else "0.0"
                w.store(f"dY + (e * {n_parts} + {self.number}) * {self.n_sh} + {m}", value)

    def _edge_gradient(self, path: Path, x: list[Dual], g: list[Dual], slope: str, turns: dict[int, str]) -> None:
        """slope += dw w' with dw = u x; turns[m] += coefficient * w x[m1] g[m3]."""
        w = self.w
        _, u = self._to_input(path, g)
        low, terms = self._table(path)
        weight, derivative = w.combine(list(zip(self.h, terms)), low), w.combine(list(zip(self.dh, terms)))
        dw = w.combine([(value, x[m1]) for m1, value in u.items()])
        w.add(slope, dw, derivative, self.kind.dual)
        t = [w.combine([(weight, component)]) for component in x]
        sums: dict[int, list] = {}
        for row in self.entries[path]:
            pair = w.combine([(t[row.m1], g[row.m3])])
            for m, c in row.terms:
                sums.setdefault(m, []).append(f"{float(c)!r} * {pair.tangent if self.kind.dual else pair.value}")
        for m, terms in sums.items():
            w.line(f"{turns[m]} += {' + '.join(terms)}")

    def _neighbours(self) -> None:
        w, sums = self.w, {}
        for i_in in dict.fromkeys(path.i_in for path in self.part.paths):
            for m1 in range(2 * self.paths.irreps_in[i_in].l + 1):
                sums[i_in, m1] = w.zeros(self.part.width)
        with w.block("for k in range(tl.load(begin + program), tl.load(begin + program + 1)):"):
            w.line("e = tl.load(order + k)")
            w.line("i = tl.load(centre + e)")
            self._geometry(slopes=False)
            for path in self.part.paths:
                weight = self._weight(path)
                _, u = self._to_input(path, self._gradients(path, "i"))
                for m1, value in u.items():
                    w.add(sums[path.i_in, m1], weight, value, self.kind.dual)
        for (i_in, m1), total in sums.items():
            self._store(f"dx{i_in}", self._input_row(i_in, m1, "program"), total)

    def _intervals(self) -> None:
        w, (path,) = self.w, self.part.paths
        sums = [w.zeros(self.part.width) for _ in range(6)]
        w.line("chunk, n_chunks = tl.program_id(2), tl.num_programs(2)")
        w.line("start = tl.load(begin + program)")
        w.line("share = tl.load(begin + program + 1) - start")
        with w.block("for k in range(start + chunk * share // n_chunks, start + (chunk + 1) * share // n_chunks):"):
            w.line("e = tl.load(order + k)")
            w.line("i = tl.load(centre + e)")
            w.line("j = tl.load(neighbour + e)")
            self._geometry(slopes=False)
            _, u = self._to_input(path, self._gradients(path, "i"))
            x = self._inputs(path.i_in, "j")
            dw = w.combine([(value, x[m1]) for m1, value in u.items()])
            for q, basis in zip(_BASIS, self.h):
                w.add(sums[q], basis, dw, self.kind.dual)
            w.line(f"{sums[0]} += {dw.tangent if self.kind.dual else dw.value}")
        w.line(f"{sums[0]} -= {sums[3]}")
        for q, total in enumerate(sums):
            row = f"((program * n_chunks + chunk) * 6 + {q}) * {self.paths.n_weights} + {path.weight}"
            self._store("dT", row, total)


def _horner(coefficients, t: str) -> str:
    out = repr(float(coefficients[-1]))
    for c in coefficients[-2::-1]:
        out = f"{float(c)!r} + {t} * ({out})" if c else f"{t} * ({out})"
    return out
