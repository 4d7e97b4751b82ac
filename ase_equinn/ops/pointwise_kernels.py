"""IR of the kernels that treat every atom and channel alone, and of the small sums around them.

All handle the atoms first..last (their first two integers). Row i of a pointer begins at i * stride numbers, each
pointer with a stride of its own; where a kernel has `dim` components, row (i, m) begins at (i * dim + m) * stride. An
output is overwritten, or added to with `accumulate`. The IR can be asked for once.
"""

from __future__ import annotations

from typing import NamedTuple

from . import functions
from .emitter import Emitter

# name: the function and its derivative, each (emitter, x, width) -> value
FUNCTIONS = {
    "silu": (functions.silu, functions.silu_derivative),
    "tanh": (functions.tanh, functions.tanh_derivative),
    "softplus": (functions.softplus, functions.softplus_derivative),
    "abs": (functions.absolute, functions.sign),
    "scale": (lambda e, x, width: x, lambda e, x, width: e.const(1, width)),
}


class Output(NamedTuple):
    """Where a kernel with two outputs writes one of them: the stride of its rows, and whether it is added to."""

    stride: int
    accumulate: bool = False


class _Rows:
    """What the kernels share: the loops, and the addresses of the piece of a row that is being emitted.

    Args:
        name: of the function.
        dim, n: components and channels.
        strides: of each pointer, in their order; None for indices.
    """

    n_integers = 2

    def __init__(self, name: str, dim: int, n: int, strides: dict[str, int | None], bits: int, lanes: int):
        self.dim, self.n, self.strides, self.n_pointers = dim, n, strides, len(strides)
        self.e = Emitter(name, self.n_pointers, self.n_integers, bits, lanes)
        self.pointers = dict(zip(strides, self.e.pointers))

    def source(self) -> str:
        with self.e.loop(*self.e.integers[:2]) as self.i:
            self.atom()
        return self.e.finish()

    def atom(self) -> None:
        """Emits the work of atom self.i."""
        for start, stop, width in self.e.pieces(self.n):
            with self.e.piece(start, stop, width) as self.channel:
                self.width = width
                self.piece()

    def piece(self) -> None:
        """Emits the work of self.width channels from self.channel on."""
        raise NotImplementedError

    def index(self, name: str, m: int | None):
        """Of the piece in row (i, m), or in row (i) where m is None."""
        row = self.i if m is None else self.e.add(self.e.times(self.i, self.dim), m)
        return self.e.add(self.e.times(row, self.strides[name]), self.channel)

    def load(self, name: str, m: int | None = None):
        return self.e.load(self.pointers[name], self.index(name, m), self.width)

    def store(self, value, name: str, m: int | None = None, accumulate: bool = False) -> None:
        if accumulate:
            self.e.accumulate(value, self.pointers[name], self.index(name, m), self.width)
        else:
            self.e.store(value, self.pointers[name], self.index(name, m))

    def scalar(self, name: str):
        """The one number that an atom has, in all lanes."""
        number = self.e.load(self.pointers[name], self.e.times(self.i, self.strides[name]))
        return self.e.splat(number, self.width)

    def const(self, value: float):
        return self.e.const(value, self.width)


class Unary(_Rows):
    """y = scale f(x), f one of FUNCTIONS; of "add" y = x + scale.

    Pointers, in this order: x, y.
    """

    def __init__(
        self, function: str, n: int, x_stride: int, y_stride: int, scale: float = 1.0, *, bits: int, lanes: int
    ):
        super().__init__("unary", 1, n, {"x": x_stride, "y": y_stride}, bits, lanes)
        self.function, self.constant = _checked(function), scale

    def piece(self) -> None:
        x = self.load("x")
        if self.function == "add":
            self.store(self.e.b.fadd(x, self.const(self.constant)), "y")
        else:
            self.store(self.e.mul(FUNCTIONS[self.function][0](self.e, x, self.width), self.const(self.constant)), "y")


class UnaryBackward(_Rows):
    """dx (+)= scale f'(x) g; of "add" dx (+)= g.

    Pointers, in this order: x, g, dx.
    """

    def __init__(
        self, function: str, n: int, x_stride: int, g_stride: int, dx_stride: int, scale: float = 1.0,
        accumulate: bool = False, *, bits: int, lanes: int,
    ):  # fmt: skip
        super().__init__("unary_backward", 1, n, {"x": x_stride, "g": g_stride, "dx": dx_stride}, bits, lanes)
        self.function, self.constant, self.accumulate = _checked(function), scale, accumulate

    def piece(self) -> None:
        value = self.load("g")
        if self.function != "add":
            slope = FUNCTIONS[self.function][1](self.e, self.load("x"), self.width)
            value = self.e.mul(self.e.mul(slope, self.const(self.constant)), value)
        self.store(value, "dx", accumulate=self.accumulate)


class Gate(_Rows):
    """y[i, m, c] = x[i, m, c] s[i, c], m < dim.

    Pointers, in this order: x, s, y; rows of s are (i), those of the others (i, m).
    """

    def __init__(self, dim: int, n: int, x_stride: int, s_stride: int, y_stride: int, *, bits: int, lanes: int):
        super().__init__("gate", dim, n, {"x": x_stride, "s": s_stride, "y": y_stride}, bits, lanes)

    def piece(self) -> None:
        s = self.load("s")
        for m in range(self.dim):
            self.store(self.e.mul(self.load("x", m), s), "y", m)


class GateBackward(_Rows):
    """dx[i, m, c] (+)= g[i, m, c] s[i, c],  ds[i, c] (+)= sum_m g[i, m, c] x[i, m, c].

    Pointers, in this order: x, s, g, then dx, ds as far as they are wanted (None has no pointer). Rows of s and ds are
    (i), those of the others (i, m).
    """

    def __init__(
        self, dim: int, n: int, x_stride: int, s_stride: int, g_stride: int, dx: Output | None, ds: Output | None,
        *, bits: int, lanes: int,
    ):  # fmt: skip
        strides = {"x": x_stride, "s": s_stride, "g": g_stride} | _strides(dx, ds)
        super().__init__("gate_backward", dim, n, strides, bits, lanes)
        self.dx, self.ds = dx, ds

    def piece(self) -> None:
        g = [self.load("g", m) for m in range(self.dim)]
        if self.dx is not None:
            s = self.load("s")
            for m in range(self.dim):
                self.store(self.e.mul(g[m], s), "dx", m, self.dx.accumulate)
        if self.ds is not None:
            total = self.load("ds") if self.ds.accumulate else None
            for m in range(self.dim):
                total = self.e.fma(g[m], self.load("x", m), total)
            self.store(total, "ds")


class Add(_Rows):
    """y[i, m, c] (+)= factor x[i, m, c].

    Pointers, in this order: x, y; rows are (i, m).
    """

    def __init__(
        self, n: int, x_stride: int, y_stride: int, factor: float = 1.0, accumulate: bool = False, dim: int = 1,
        *, bits: int, lanes: int,
    ):  # fmt: skip
        super().__init__("add", dim, n, {"x": x_stride, "y": y_stride}, bits, lanes)
        self.factor, self.accumulate = factor, accumulate

    def piece(self) -> None:
        for m in range(self.dim):
            before = self.load("y", m) if self.accumulate else None
            self.store(self.e.fma(self.const(self.factor), self.load("x", m), before), "y", m)


class Clear(_Rows):
    """y[i, m, c] = 0.

    Pointer: y; rows are (i, m).
    """

    def __init__(self, n: int, y_stride: int, dim: int = 1, *, bits: int, lanes: int):
        super().__init__("clear", dim, n, {"y": y_stride}, bits, lanes)

    def piece(self) -> None:
        for m in range(self.dim):
            self.store(self.const(0), "y", m)


class Divide(_Rows):
    """y[i, c] = x[i, c] / s[i].

    Pointers, in this order: x, s, y; a row of s is one number.
    """

    def __init__(self, n: int, x_stride: int, s_stride: int, y_stride: int, *, bits: int, lanes: int):
        super().__init__("divide", 1, n, {"x": x_stride, "s": s_stride, "y": y_stride}, bits, lanes)

    def piece(self) -> None:
        self.store(self.e.b.fdiv(self.load("x"), self.scalar("s")), "y")


class DivideBackward(_Rows):
    """dx[i, c] (+)= g[i, c] / s[i],  ds[i] (+)= -sum_c g[i, c] y[i, c] / s[i], with y = x / s.

    Pointers, in this order: s, y, g, then dx, ds as far as they are wanted (None has no pointer). Rows of s and ds are
    one number.
    """

    def __init__(
        self, n: int, s_stride: int, y_stride: int, g_stride: int, dx: Output | None, ds: Output | None,
        *, bits: int, lanes: int,
    ):  # fmt: skip
        strides = {"s": s_stride, "y": y_stride, "g": g_stride} | _strides(dx, ds)
        super().__init__("divide_backward", 1, n, strides, bits, lanes)
        self.dx, self.ds = dx, ds

    def atom(self) -> None:
        e, total = self.e, self.e.const(0, 1)
        for start, stop, width in e.pieces(self.n):
            self.width, slot = width, e.variable(width)
            e.set(slot, self.const(0))
            with e.piece(start, stop, width) as self.channel:
                g = self.load("g")
                if self.dx is not None:
                    self.store(e.b.fdiv(g, self.scalar("s")), "dx", accumulate=self.dx.accumulate)
                if self.ds is not None:
                    e.set(slot, e.fma(g, self.load("y"), e.get(slot, width)))
            total = e.b.fadd(total, e.sum(e.get(slot, width), width))
        if self.ds is not None:
            self.channel, self.width = 0, 1
            self.store(e.b.fneg(e.b.fdiv(total, self.scalar("s"))), "ds", accumulate=self.ds.accumulate)


class Gather(_Rows):
    """y[i, :] = T[species[i], :].

    Pointers, in this order: T, y, species (int64).
    """

    def __init__(self, n: int, table_stride: int, y_stride: int, *, bits: int, lanes: int):
        super().__init__("gather", 1, n, {"T": table_stride, "y": y_stride, "species": None}, bits, lanes)

    def piece(self) -> None:
        row = self.e.times(self.e.load_int(self.pointers["species"], self.i), self.strides["T"])
        self.store(self.e.load(self.pointers["T"], self.e.add(row, self.channel), self.width), "y")


class Total(_Rows):
    """y[i, :] (+)= sum over the parts p, in their order, of P[p, i, :], which becomes zero.

    Pointers, in this order: P, y. A third integer says how many numbers after one another the parts begin.
    """

    n_integers = 3

    def __init__(
        self, n: int, n_parts: int, part_stride: int, y_stride: int, accumulate: bool = False, *, bits: int, lanes: int
    ):
        super().__init__("total", 1, n, {"P": part_stride, "y": y_stride}, bits, lanes)
        self.n_parts, self.accumulate = n_parts, accumulate

    def piece(self) -> None:
        e, total = self.e, self.load("y") if self.accumulate else None
        for part in range(self.n_parts):
            index = e.add(e.times(e.integers[2], part), self.index("P", None))
            value = e.load(self.pointers["P"], index, self.width)
            total = value if total is None else e.b.fadd(total, value)
            e.store(self.const(0), self.pointers["P"], index)
        self.store(total, "y")


def _strides(dx: Output | None, ds: Output | None) -> dict[str, int]:
    return {name: output.stride for name, output in (("dx", dx), ("ds", ds)) if output is not None}


def _checked(function: str) -> str:
    if function != "add" and function not in FUNCTIONS:
        raise ValueError(f"function: one of {[*FUNCTIONS, 'add']} is needed, got {function!r}")
    return function
