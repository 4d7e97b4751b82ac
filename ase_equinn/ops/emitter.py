"""Emitter writes LLVM IR for loops over vectors of numbers: what the CPU kernels of `ops` are generated with.

A generated function takes pointers, then 64-bit integers. Numbers are float32 or float64; vectors are explicit, so nothing
depends on a compiler's auto-vectorisation. `Dual` carries a derivative along: a kernel written once in dual arithmetic is
also its own directional derivative.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, NamedTuple

from llvmlite import ir

I64, I32 = ir.IntType(64), ir.IntType(32)


class Dual(NamedTuple):
    """A number and its derivative in one direction; None stands for zero."""

    value: ir.Value
    tangent: ir.Value | None = None


class Emitter:
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

    # memory

    def load(self, pointer, index, width: int = 1) -> ir.Value:
        out = self.b.load(self._at(pointer, index, self.number), typ=self._vector(width))
        out.align = self.bytes
        return out

    def store(self, value, pointer, index) -> None:
        self.b.store(value, self._at(pointer, index, self.number)).align = self.bytes

    def mask(self, count) -> ir.Value:
        """Which lanes of a full vector come before a run-time count."""
        lane = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        start = ir.Constant(ir.VectorType(I64, self.lanes), ir.Undefined)
        start = self.b.insert_element(start, self.int(count), ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.icmp_signed("<", lane, self.b.shuffle_vector(start, start, zeros))

    def any(self, mask) -> ir.Value:
        """1 if a lane of a mask is set, else 0: how often a loop is gone through that stands for a condition."""
        bits = self.b.bitcast(mask, ir.IntType(self.lanes))
        return self.b.zext(self.b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), I64)

    def load_masked(self, pointer, index, mask, otherwise: float = 0.0) -> ir.Value:
        """A full vector of numbers, `otherwise` in the lanes that are masked out, whose memory is not touched."""
        return self._load_masked(pointer, index, mask, self.const(otherwise, self.lanes), self.number, f"f{8 * self.bytes}")

    def load_ints_masked(self, pointer, index, mask) -> ir.Value:
        """A full vector of integers, 0 in the lanes that are masked out."""
        zeros = ir.Constant(ir.VectorType(I64, self.lanes), [0] * self.lanes)
        return self._load_masked(pointer, index, mask, zeros, I64, "i64")

    def _load_masked(self, pointer, index, mask, otherwise, number, suffix: str) -> ir.Value:
        kind = ir.VectorType(number, self.lanes)
        arguments = [ir.PointerType(), I32, mask.type, kind]
        function = self._declare(f"llvm.masked.load.v{self.lanes}{suffix}.p0", kind, arguments)
        align = ir.Constant(I32, 8 if number is I64 else self.bytes)
        return self.b.call(function, [self._at(pointer, index, number), align, mask, otherwise])

    def store_masked(self, value, pointer, index, mask) -> None:
        """Only the lanes of the mask."""
        arguments = [value.type, ir.PointerType(), I32, mask.type]
        name = f"llvm.masked.store.v{self.lanes}f{8 * self.bytes}.p0"
        function = self._declare(name, ir.VoidType(), arguments)
        self.b.call(function, [value, self._at(pointer, index, self.number), ir.Constant(I32, self.bytes), mask])

    def load_from(self, bits: int, pointer, index, width: int = 1) -> ir.Value:
        """Memory that holds float32 or float64 (bits), as numbers of a float64 function."""
        if bits == 8 * self.bytes:
            return self.load(pointer, index, width)
        kind = ir.VectorType(ir.FloatType(), width) if width > 1 else ir.FloatType()
        out = self.b.load(self._at(pointer, index, ir.FloatType()), typ=kind)
        out.align = 4
        return self.b.fpext(out, self._vector(width))

    def store_to(self, bits: int, value, pointer, index, width: int = 1) -> None:
        """The reverse of `load_from`: numbers of a float64 function, rounded to the memory's kind."""
        if bits == 8 * self.bytes:
            self.store(value, pointer, index)
            return
        kind = ir.VectorType(ir.FloatType(), width) if width > 1 else ir.FloatType()
        self.b.store(self.b.fptrunc(value, kind), self._at(pointer, index, ir.FloatType())).align = 4

    def load_int(self, pointer, index) -> ir.Value:
        return self.b.load(self._at(pointer, index, I64), typ=I64)

    def store_int(self, value, pointer, index) -> None:
        self.b.store(value, self._at(pointer, index, I64)).align = 8

    def load_int32(self, pointer, index, width: int = 1) -> ir.Value:
        out = self.b.load(self._at(pointer, index, I32), typ=ir.VectorType(I32, width) if width > 1 else I32)
        out.align = 4
        return out

    def store_int32(self, value, pointer, index) -> None:
        self.b.store(value, self._at(pointer, index, I32)).align = 4

    def counter(self, start: int = 0) -> ir.Value:
        """A slot for an integer that becomes a register."""
        slot = self._slots.alloca(I64)
        self.b.store(self.int(start), slot)
        return slot

    def count(self, slot) -> ir.Value:
        return self.b.load(slot, typ=I64)

    def accumulate(self, value, pointer, index, width: int) -> None:
        """pointer[index] += value"""
        self.store(self.b.fadd(self.load(pointer, index, width), value), pointer, index)

    def variable(self, width: int) -> ir.Value:
        """A slot that becomes a register."""
        return self._slots.alloca(self._vector(width))

    def get(self, slot, width: int) -> ir.Value:
        return self.b.load(slot, typ=self._vector(width))

    def set(self, slot, value) -> None:
        self.b.store(value, slot)

    def _at(self, pointer, index, kind) -> ir.Value:
        return self.b.gep(pointer, [self.int(index)], source_etype=kind)

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
        undefined = ir.Constant(self._vector(width), ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))

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
