"""Symbols stand for what a model's forward pass works on; running a model on them lists its operators in a `Trace`.

A model is written once, in torch. Called with symbols it meets the same functions (`conv`, `product`, `Linear`, silu, +, ...),
which then record what they would do. What depends on weights alone is computed at once, by torch. The list is what a native
program is made from (plan, program); a function that has no native form raises `Untraceable`, and the model runs in torch.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import torch
from torch import Tensor


class Untraceable(Exception):
    """The model does something that native programs do not know; says what."""


class View(NamedTuple):
    """Part of a buffer with one row of dim * stride numbers per atom: number (m, c) stands at offset + m * stride + c.

    A view is the whole buffer, or some channels of a buffer with dim = 1.
    """

    buffer: int
    offset: int
    dim: int
    stride: int
    n: int

    @property
    def row(self) -> int:
        """From one atom to the next."""
        return self.dim * self.stride

    @property
    def size(self) -> int:
        """Numbers per atom; they follow one another."""
        return self.dim * self.n


class Op(NamedTuple):
    """One operator: what it reads, what it writes, and what else defines it."""

    kind: str
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]
    fixed: dict[str, Any]


class Trace:
    """The operators of one model, in order, and the sizes of the rows that they write.

    Args:
        numbers: atomic numbers that occur, ascending.
        shortest: A, no edge is shorter.

    Attributes:
        ops: in the order of evaluation.
        rows: numbers per atom of every buffer.
    """

    def __init__(self, numbers: Sequence[int], shortest: float = 0.0):
        self.present, self.shortest = tuple(sorted(numbers)), shortest
        self.ops: list[Op] = []
        self.rows: list[int] = []
        self.species: tuple[int, ...] | None = None

    def inputs(self) -> tuple["SymbolicGraph", "Symbol"]:
        """What `model.forward` is called with."""
        return SymbolicGraph(Symbol(self, "numbers")), Symbol(self, "vectors")

    def index_species(self, numbers: "Symbol", species: Sequence[int]) -> "Symbol":
        """The indices of the atoms' elements among the model's species."""
        if numbers.kind != "numbers" or self.species not in (None, tuple(species)):
            raise Untraceable("more than one set of species")
        self.species = tuple(species)
        return Symbol(self, "species")

    def tables(self, number: Tensor) -> "Symbol":
        """For every edge number[species of its centre, species of its neighbour]."""
        return Symbol(self, "tables", number)

    def all_tables(self, row: int) -> "Symbol":
        """The same number for every edge."""
        n = len(self.species or self.present)
        return self.tables(torch.full((n, n), row))

    def present_species(self) -> list[int]:
        """Indices of the elements that occur, ascending."""
        return [self.species.index(number) for number in self.present]

    def new(self, dim: int, n: int, shape: tuple[int, ...] | None = None) -> "Value":
        """A value of its own buffer."""
        self.rows.append(dim * n)
        return Value(self, View(len(self.rows) - 1, 0, dim, n, n), (dim, n) if shape is None else shape)

    def record(self, kind: str, inputs: Sequence["Value"], outputs: Sequence["Value"], **fixed) -> None:
        self.ops.append(Op(kind, tuple(value.view for value in inputs), tuple(value.view for value in outputs), fixed))


class Symbol:
    """Known only at run time: "numbers", "species", "vectors", "lengths", "harmonics", "tables", or "joined" values."""

    device = torch.device("cpu")

    def __init__(self, trace: Trace, kind: str, fixed: Any = None):
        self.trace, self.kind, self.fixed = trace, kind, fixed

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        handler = _FUNCTIONS.get(function)
        if handler is None:
            raise Untraceable(f"torch function {getattr(function, '__name__', function)}")
        return handler(*args, **(kwargs or {}))

    def norm(self, dim: int) -> "Symbol":
        """|r_ij| from the vectors."""
        if self.kind != "vectors" or dim != 1:
            raise Untraceable(f"norm of {self.kind}")
        return Symbol(self.trace, "lengths")

    def harmonics(self, lmax: int) -> "Symbol":
        """Y up to lmax from the vectors."""
        if self.kind != "vectors":
            raise Untraceable(f"spherical harmonics of {self.kind}")
        return Symbol(self.trace, "harmonics", lmax)

    def __getitem__(self, index) -> "Symbol":
        parts = [slice(None, (l + 1) ** 2) for l in range(10)]
        if self.kind != "harmonics" or index[0] != slice(None) or index[1] not in parts:
            raise Untraceable(f"indexing of {self.kind}")
        return Symbol(self.trace, "harmonics", parts.index(index[1]))

    def __mul__(self, factor: int) -> "Symbol":
        """Rows of pairs of species, (matrix of row numbers) times a number of rows."""
        if self.kind != "tables":
            raise Untraceable(f"product with {self.kind}")
        return Symbol(self.trace, "tables", self.fixed * factor)

    def __add__(self, other: "Symbol") -> "Symbol":
        """Rows of pairs of species, moved."""
        if self.kind != "tables" or not is_symbolic(other) or other.kind != "tables":
            raise Untraceable(f"sum with {self.kind}")
        n = len(self.fixed)  # of the species that occur, up to the last one of them
        return Symbol(self.trace, "tables", self.fixed + other.fixed[:n, :n])

    def __getattr__(self, name: str):
        raise Untraceable(f"{self.__dict__.get('kind', 'a symbol')}.{name}")


class SymbolicGraph(NamedTuple):
    """A graph of which a model may know the atomic numbers; all else goes through the operators."""

    numbers: Symbol

    def __getattr__(self, name: str):
        raise Untraceable(f"graph.{name}")


class Value(Symbol):
    """Numbers per atom, as a tensor (n_atoms, *shape) in a program; shape has 0, 1 or 2 axes."""

    def __init__(self, trace: Trace, view: View, shape: tuple[int, ...]):
        super().__init__(trace, "value")
        self.view, self._shape = view, shape

    @property
    def constant(self) -> Tensor | None:
        """The rows per species that it was gathered from, or None."""
        for op in self.trace.ops:
            if op.kind == "gather" and op.outputs[0] == self.view:
                return op.fixed["rows"]
        return None

    def linear(self, weight: Tensor, bias: Tensor | None = None, by_species: bool = False) -> "Value":
        """x W (+ b), W (n, n_out), or (n_species, n, n_out) with `by_species`."""
        rows = self.constant
        if rows is not None:
            return gather(self.trace, rows @ weight if bias is None else rows @ weight + bias)
        out = self.trace.new(self.view.dim, weight.shape[-1], (*self._shape[:-1], weight.shape[-1]))
        self.trace.record("linear", [self], [out], weight=weight, bias=bias, by_species=by_species)
        return out

    def unary(self, function: str, scale: float = 1.0) -> "Value":
        """scale * f(x); "add": x + scale."""
        out = self.trace.new(self.view.dim, self.view.n, self._shape)
        self.trace.record("unary", [self], [out], function=function, scale=scale)
        return out

    def __matmul__(self, weight: Tensor) -> "Value":
        return self.linear(weight)

    def __add__(self, other) -> "Value":
        if isinstance(other, (int, float)):
            return self if other == 0 else self.unary("add", float(other))
        self._like(other)
        out = self.trace.new(self.view.dim, self.view.n, self._shape)
        self.trace.record("add", [self, other], [out])
        return out

    __radd__ = __add__

    def __mul__(self, other) -> "Value":
        if isinstance(other, (int, float)):
            return self.unary("scale", float(other))
        if not isinstance(other, Value) or other.view.dim != 1 or other.view.n != self.view.n:
            raise Untraceable("a product of features")
        out = self.trace.new(self.view.dim, self.view.n, self._shape)
        self.trace.record("gate", [self, other], [out])
        return out

    __rmul__ = __mul__

    def __truediv__(self, other) -> "Value":
        if isinstance(other, (int, float)):
            return self.unary("scale", 1.0 / other)
        if not isinstance(other, Value) or other.view.dim * other.view.n != 1:
            raise Untraceable("a quotient of features")
        out = self.trace.new(self.view.dim, self.view.n, self._shape)
        self.trace.record("divide", [self, other], [out])
        return out

    def __getitem__(self, index) -> "Value":
        """x[:, 0], x[:, None], x[:, None, None] and x[:, :, a:b] of scalar features."""
        view, rest = self.view, tuple(index[1:]) if isinstance(index, tuple) and index[0] == slice(None) else ()
        if len(self._shape) == 2 and view.dim == 1 and rest == (0,):
            return Value(self.trace, view, (view.n,))
        if rest and len(self._shape) + len(rest) == 2 and set(rest) == {None}:
            return Value(self.trace, view, (1, view.n))
        if (
            len(self._shape) == 2
            and view.dim == 1
            and len(rest) == 2
            and rest[0] == slice(None)
            and isinstance(rest[1], slice)
        ):
            start, stop, step = rest[1].indices(view.n)
            if step == 1 and stop > start:
                part = view._replace(offset=view.offset + start, n=stop - start)
                return Value(self.trace, part, (1, stop - start))
        raise Untraceable(f"indexing by {index}")

    def flatten(self) -> "Value":
        """(n_atoms, 1) or (n_atoms, 1, 1) as (n_atoms,)."""
        if self.view.dim * self.view.n != 1:
            raise Untraceable("flatten")
        return Value(self.trace, self.view, ())

    def squeeze(self, axis: int) -> "Value":
        if self._shape[axis - 1] != 1 or self.view.dim * self.view.n != 1:
            raise Untraceable("squeeze")
        return self.flatten()

    def _like(self, other) -> None:
        if not isinstance(other, Value) or (other.view.dim, other.view.n) != (self.view.dim, self.view.n):
            raise Untraceable("a sum of different shapes")


def is_symbolic(*things) -> bool:
    """Whether a function is being traced: one of its arguments is a symbol."""
    return any(isinstance(thing, Symbol) for thing in things)


def gather(trace: Trace, rows: Tensor) -> Value:
    """Each atom gets the row of its species from `rows` (n_species, dim, n) or (n_species, n)."""
    dim, n = rows.shape[1:] if rows.dim() == 3 else (1, rows.shape[1])
    out = trace.new(dim, n, tuple(rows.shape[1:]))
    trace.record("gather", [], [out], rows=rows)
    return out


def trace_conv(paths, x: Sequence[Value], lengths: Symbol, sh: Symbol, table) -> list[Value]:
    """`conv` of symbols."""
    if lengths.kind != "lengths" or sh.kind != "harmonics" or sh.fixed < paths.lmax:
        raise Untraceable("a convolution that is not by lengths and harmonics of the vectors")
    if table.first is not None and not isinstance(table.first, Symbol):
        raise Untraceable("a convolution with tables per edge")
    trace, rows = lengths.trace, [value.constant for value in x]
    out = [trace.new(2 * l + 1, mul) for mul, l, _ in paths.irreps_out]
    constant = all(row is not None for row in rows)
    fixed = dict(paths=paths, table=table, rows=rows if constant else None)
    trace.record("conv", [] if constant else x, out, **fixed)
    return out


def trace_product(table, x: Sequence[Value], weights: Sequence[Tensor]) -> list[Value]:
    """`product` of symbols."""
    trace = x[0].trace
    out = [trace.new(2 * l + 1, mul) for mul, l, _ in table.irreps_out]
    trace.record("product", x, out, table=table, weights=[*weights])
    return out


def _index_select(rows: Tensor, dim: int, index: Symbol) -> Value:
    if dim != 0 or index.kind != "species" or is_symbolic(rows):
        raise Untraceable("index_select")
    return gather(index.trace, rows)


def _embedding(index: Symbol, weight: Tensor, *unused, **options) -> Value:
    if options.get("max_norm") is not None:
        raise Untraceable("an embedding with max_norm")
    return _index_select(weight, 0, index)


def _cat(parts: Sequence["Value"], dim: int = 0) -> Symbol:
    """Scalar features side by side, as descriptors are; operators do not take them."""
    if dim != 1 or not all(isinstance(part, Value) and part.view.dim == 1 for part in parts):
        raise Untraceable("cat")
    return Symbol(parts[0].trace, "joined", tuple(parts))


def _linear(x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return x.linear(weight.T, bias)


_FUNCTIONS: dict[Callable, Callable] = {
    torch.Tensor.index_select: _index_select,
    torch.index_select: _index_select,
    torch.nn.functional.embedding: _embedding,
    torch.nn.functional.linear: _linear,
    torch.cat: _cat,
    torch.nn.functional.silu: lambda x, inplace=False: x.unary("silu"),
    torch.tanh: lambda x: x.unary("tanh"),
    torch.abs: lambda x: x.unary("abs"),
    torch.linalg.vector_norm: lambda x, dim: x.norm(dim),
}
