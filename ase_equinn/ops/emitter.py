"""Emitter writes LLVM IR for loops over vectors of numbers: what the CPU kernels of `ops` are generated with.

A generated function takes pointers, then 64-bit integers. Numbers are float32 or float64; vectors are explicit, so
nothing depends on a compiler's auto-vectorisation. `Dual` carries a derivative along: a kernel written once in dual
arithmetic is also its own directional derivative.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, NamedTuple

from llvmlite import ir

from .emitter_memory import I32, I64, Memory


class Dual(NamedTuple):
    """A number and its derivative in one direction; None stands for zero."""

    value: ir.Value
    tangent: ir.Value | None = None


class Emitter(Memory):
    """One function under construction.

    Args:
        name: of the function.
        n_pointers, n_integers: its arguments.
        bits: 32 or 64, of the numbers.
        lanes: numbers in a full vector.
    """

    def __init__(self, name: str, n_pointers: int, n_integers: int, bits: int, lanes: int):
        self.number = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.bytes, self.lanes, self.name = bits // 8, lanes, name
        self.module = ir.Module(name)
        arguments = [ir.PointerType()] * n_pointers + [I64] * n_integers
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), name)
        self.pointers, self.integers = self.function.args[:n_pointers], self.function.args[n_pointers:]
        self._entry, body = self.function.append_basic_block("entry"), self.function.append_basic_block("body")
        self._slots, self.b = ir.IRBuilder(self._entry), ir.IRBuilder(body)
        self._body, self._declared = body, {}

    def finish(self) -> str:
        """The function's IR."""
        self.b.ret_void()
        self._slots.branch(self._body)
        return str(self.module)

    # integers and control

    def int(self, value) -> ir.Value:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, a, b) -> ir.Value:
        return self.b.add(self.int(a), self.int(b))

    def times(self, a, b) -> ir.Value:
        return self.b.mul(self.int(a), self.int(b))

    def least(self, a, b) -> ir.Value:
        a, b = self.int(a), self.int(b)
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    @contextmanager
    def loop(self, start, stop, step: int = 1) -> Iterator[ir.Value]:
        """for k in range(start, stop, step)"""
        counter = self._slots.alloca(I64)
        self.b.store(self.int(start), counter)
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        self.b.branch(head)
        self.b.position_at_end(head)
        k = self.b.load(counter, typ=I64)
        self.b.cbranch(self.b.icmp_signed("<", k, self.int(stop)), body, end)
        self.b.position_at_end(body)
        yield k
        self.b.store(self.b.add(k, self.int(step)), counter)
        self.b.branch(head)
        self.b.position_at_end(end)

    def pieces(self, n: int) -> list[tuple[int, int, int]]:
        """(start, stop, width) that cover n channels: full vectors, then ever narrower ones."""
        full = n // self.lanes * self.lanes
        out, start = [(0, full, self.lanes)] if full else [], full
        while start < n:
            width = 1 << ((n - start).bit_length() - 1)
            out.append((start, start + width, width))
            start += width
        return out

    @contextmanager
    def piece(self, start: int, stop: int, width: int) -> Iterator[ir.Value]:
        """The offsets of one of `pieces`: a loop only where there is more than one."""
        if stop - start == width:
            yield self.int(start)
        else:
            with self.loop(start, stop, width) as offset:
                yield offset

    def vectors(self, n) -> Iterator[tuple[ir.Value, int]]:
        """(k, width) that cover a run-time count: a loop over full vectors, then one over single numbers.

        For use as ``for k, width in e.vectors(n)``: the body is emitted once for each loop.
        """
        whole = self.b.and_(self.int(n), self.int(-self.lanes))
        with self.loop(0, whole, self.lanes) as k:
            yield k, self.lanes
        with self.loop(whole, n) as k:
            yield k, 1

    # registers

    def variable(self, width: int) -> ir.Value:
        """A slot that becomes a register."""
        return self._slots.alloca(self._vector(width))

    def get(self, slot, width: int) -> ir.Value:
        return self.b.load(slot, typ=self._vector(width))

    def set(self, slot, value) -> None:
        self.b.store(value, slot)

    def _vector(self, width: int):
        return ir.VectorType(self.number, width) if width > 1 else self.number

    # arithmetic

    def const(self, value: float, width: int) -> ir.Value:
        if width == 1:
            return ir.Constant(self.number, float(value))
        return ir.Constant(self._vector(width), [float(value)] * width)

    def splat(self, scalar, width: int) -> ir.Value:
        if width == 1:
            return scalar
        undefined = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.shuffle(first, undefined, [0] * width)

    def mul(self, a, b) -> ir.Value:
        return self.b.fmul(a, b)

    def fma(self, a, b, c) -> ir.Value:
        """a * b + c; c may be None."""
        return self.b.fmul(a, b) if c is None else self._intrinsic("fma", a, b, c)

    def floor(self, a) -> ir.Value:
        return self._intrinsic("floor", a)

    def sqrt(self, a) -> ir.Value:
        return self._intrinsic("sqrt", a)

    def absolute(self, a) -> ir.Value:
        return self._intrinsic("fabs", a)

    def with_sign_of(self, a, b) -> ir.Value:
        """|a| with the sign of b."""
        return self._intrinsic("copysign", a, b)

    def bits(self, a, width: int) -> ir.Value:
        """The bits of numbers as integers of the same size."""
        return self.b.bitcast(a, self._bits(width))

    def from_bits(self, a, width: int) -> ir.Value:
        return self.b.bitcast(a, self._vector(width))

    def bits_const(self, value: int, width: int) -> ir.Value:
        return ir.Constant(self._bits(width), [value] * width if width > 1 else value)

    def _bits(self, width: int):
        kind = ir.IntType(8 * self.bytes)
        return ir.VectorType(kind, width) if width > 1 else kind

    def to_int(self, a, width: int) -> ir.Value:
        return self.b.fptosi(a, ir.VectorType(I64, width) if width > 1 else I64)

    def to_number(self, a, width: int) -> ir.Value:
        return self.b.sitofp(a, self._vector(width))

    def sum(self, vector, width: int) -> ir.Value:
        """The sum of a vector's entries, pairwise."""
        while width > 1:
            width //= 2
            low, high = (self._part(vector, start, width) for start in (0, width))
            vector = self.b.fadd(low, high)
        return vector

    def entry(self, vector, k: int) -> ir.Value:
        """One number of a vector."""
        return self._part(vector, k, 1)

    def put(self, vector, k: int, number) -> ir.Value:
        """The vector with another number in lane k."""
        return self.b.insert_element(vector, number, ir.Constant(I32, k))

    def _part(self, vector, start: int, width: int) -> ir.Value:
        if width == 1:
            return self.b.extract_element(vector, ir.Constant(I32, start))
        return self.shuffle(vector, ir.Constant(vector.type, ir.Undefined), list(range(start, start + width)))

    def shuffle(self, a, b, lanes: list[int]) -> ir.Value:
        """The named lanes of the vector a followed by b."""
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def _intrinsic(self, name: str, *values) -> ir.Value:
        kind = values[0].type
        width = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
        return self.b.call(self._declare(f"llvm.{name}.{width}f{8 * self.bytes}", kind, [kind] * len(values)), values)

    def _declare(self, name: str, result, arguments: list) -> ir.Function:
        if name not in self._declared:
            self._declared[name] = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        return self._declared[name]

    # dual arithmetic

    def dual_fma(self, a: Dual, b: Dual, c: Dual | None = None) -> Dual:
        """a * b + c and its derivative."""
        tangent = None if c is None else c.tangent
        if b.tangent is not None:
            tangent = self.fma(a.value, b.tangent, tangent)
        if a.tangent is not None:
            tangent = self.fma(a.tangent, b.value, tangent)
        return Dual(self.fma(a.value, b.value, None if c is None else c.value), tangent)
