"""The memory accesses of an `Emitter`: numbers, integers, vectors of them, and parts of vectors chosen by a mask."""

from __future__ import annotations

from llvmlite import ir

I64, I32 = ir.IntType(64), ir.IntType(32)


class Memory:
    """Base of Emitter. Indices count numbers (or 64-bit integers), arrays have the alignment of their elements only."""

    b: ir.IRBuilder
    number: ir.Type
    bytes: int
    lanes: int

    def load(self, pointer, index, width: int = 1) -> ir.Value:
        out = self.b.load(self._at(pointer, index, self.number), typ=self._vector(width))
        out.align = self.bytes
        return out

    def store(self, value, pointer, index) -> None:
        self.b.store(value, self._at(pointer, index, self.number)).align = self.bytes

    def mask(self, count) -> ir.Value:
        """Which lanes of a full vector come before a run-time count."""
        lane = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.b.icmp_signed("<", lane, self.splat(self.int(count), self.lanes))

    def any(self, mask) -> ir.Value:
        """1 if a lane of a mask is set, else 0: how often a loop is gone through that stands for a condition."""
        bits = self.b.bitcast(mask, ir.IntType(self.lanes))
        return self.b.zext(self.b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), I64)

    def load_masked(self, pointer, index, mask, otherwise=0.0, number=None) -> ir.Value:
        """A full vector (of I64 if that is `number`), `otherwise` where masked out; that memory is not touched."""
        number = number or self.number
        kind, bits = ir.VectorType(number, self.lanes), "i64" if number is I64 else f"f{8 * self.bytes}"
        name, align = f"llvm.masked.load.v{self.lanes}{bits}.p0", 8 if number is I64 else self.bytes
        function = self._declare(name, kind, [ir.PointerType(), I32, mask.type, kind])
        rest = ir.Constant(kind, [otherwise] * self.lanes)
        return self.b.call(function, [self._at(pointer, index, number), ir.Constant(I32, align), mask, rest])

    def load_ints_masked(self, pointer, index, mask) -> ir.Value:
        """A full vector of integers, 0 where masked out."""
        return self.load_masked(pointer, index, mask, 0, I64)

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

    def _at(self, pointer, index, kind) -> ir.Value:
        return self.b.gep(pointer, [self.int(index)], source_etype=kind)
