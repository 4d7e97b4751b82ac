"""The steps of a plan as calls of compiled kernels with their arguments in order."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from . import product_kernels
from .conv_kernels import ConvKernel, Variant
from .edge_kernels import Collect, Split
from .index_kernels import NeighbourIndex, PairRow
from .jit import compile_packed, vector_bytes
from .linear_kernels import LinearKernel
from .plan import Plan, Step
from .pointwise_kernels import (
    Add,
    Clear,
    Divide,
    DivideBackward,
    Gate,
    GateBackward,
    Gather,
    Output,
    Total,
    Unary,
    UnaryBackward,
)
from .symbols import View
from .zbl_kernels import ZBLKernel

ARRAYS = ("species", "row_ptr", "neighbour", "vectors")  # what every evaluation brings


class Fixed(NamedTuple):
    """A tensor that stays."""

    tensor: Tensor


class Array(NamedTuple):
    """One of ARRAYS, or of the program's own arrays, by name."""

    name: str


class Shared(NamedTuple):
    """A part of a buffer, of all atoms or of a block."""

    view: View


class Private(NamedTuple):
    """The running thread's own copy of a buffer, or that of the first thread."""

    view: View
    all_threads: bool = False


class PartStride(NamedTuple):
    """From one thread's copy of a buffer to the next, in numbers: an integer."""

    view: View


class Scratch(NamedTuple):
    """Memory for the time of the call."""


class Call(NamedTuple):
    name: str  # the step's kind, or the kernel's name where there is no step: around the steps of the plan
    step: Step | None  # a step may need two calls
    function: int  # address, see jit.compile_packed
    stage: int
    backward: bool
    arguments: list


def calls_of(plan: Plan, dtype: torch.dtype, n_threads: int) -> tuple[list[Call], dict[str, tuple], int]:
    """Calls ordered by stage; the program's own arrays, {name: ("atom" or "edge", how many, dtype)}; size of scratch."""
    writer = _Writer(dtype, plan.n_stages - 1, n_threads)
    body = [call for step in plan.steps for call in writer.step(step)]
    return [*writer.before(), *body, *writer.after()], writer.arrays, writer.scratch


class _Writer:
    """Writes calls and notes which arrays they need."""

    def __init__(self, dtype: torch.dtype, last_stage: int, n_threads: int):
        self.n_threads = n_threads
        self.dtype, self.bits, self.last_stage = dtype, 64 if dtype == torch.float64 else 32, last_stage
        self.arrays: dict[str, tuple] = {f"{kind}{axis}": ("edge", 1, None) for kind in "vg" for axis in "xyz"}
        self.scratch, self.first_rows = 1, []

    # before and after

    def before(self) -> list[Call]:
        """Components of the vectors; for each edge the species of the neighbour, and where its radial table begins."""
        edges = [Array("row_ptr"), Array("vectors"), *(Array(f"v{axis}") for axis in "xyz")]
        calls = [self._call(0, False, Split, edges)]
        if "neighbour species" in self.arrays:
            arguments = [Array("row_ptr"), Array("neighbour"), Array("species"), Array("neighbour species")]
            calls.append(self._call(0, False, NeighbourIndex, arguments))
        for k, number in enumerate(self.first_rows):
            arguments = [Array("row_ptr"), Array("neighbour"), Array("species"), Fixed(number), Array(f"first rows {k}")]
            calls.append(self._call(0, False, PairRow, [*arguments, number.shape[1]]))
        return calls

    def after(self) -> list[Call]:
        edges = [Array("row_ptr"), Array("neighbour"), Array("vectors"), *(Array(f"g{axis}") for axis in "xyz")]
        arguments = [*edges, Array("forces"), Array("node_virial")]
        return [self._call(self.last_stage, True, Collect, arguments)]

    # steps

    def step(self, step: Step) -> Sequence[Call]:
        return getattr(self, "_" + step.kind.replace(" ", "_"))(step)

    def _of(self, step: Step, cls, parameters: tuple, options: dict, arguments: list) -> list[Call]:
        function = kernel_address(cls, parameters, options, self.bits)
        return [Call(step.kind, step, function, step.stage, step.backward, arguments)]

    def _call(self, stage: int, backward: bool, cls, arguments: list) -> Call:
        return Call(cls.name, None, kernel_address(cls, (), {}, self.bits), stage, backward, arguments)

    def _fixed(self, tensor: Tensor) -> Fixed:
        return Fixed(tensor.detach().to(self.dtype).contiguous())

    def _gather(self, step: Step) -> list[Call]:
        rows = self._fixed(step.fixed["rows"])
        y = step.writes[0]
        return self._of(step, Gather, (y.size, y.size, y.row), {}, [rows, Shared(y), Array("species")])

    def _unary(self, step: Step) -> list[Call]:
        x, y = step.reads[0], step.writes[0]
        function, constant = step.fixed["function"], step.fixed["scale"]
        if function == "scale":
            return self._of(step, Add, (x.size, x.row, y.row), {"factor": constant}, [Shared(x), Shared(y)])
        return self._of(step, Unary, (function, x.size, x.row, y.row), {"scale": constant}, [Shared(x), Shared(y)])

    def _unary_backward(self, step: Step) -> list[Call]:
        (x, g), dx = step.reads, step.writes[0]
        parameters = step.fixed["function"], x.size, x.row, g.row, dx.row
        options = {"scale": step.fixed["scale"], "accumulate": step.fixed["accumulate"]}
        return self._of(step, UnaryBackward, parameters, options, [*map(Shared, (x, g, dx))])

    def _copy(self, step: Step) -> list[Call]:
        x, y = step.reads[0], step.writes[0]
        return self._of(step, Add, (x.size, x.row, y.row), step.fixed, [Shared(x), Shared(y)])

    def _clear(self, step: Step) -> list[Call]:
        y = step.writes[0]
        return self._of(step, Clear, (y.size, y.row), {}, [Shared(y)])

    def _add(self, step: Step) -> list[Call]:
        y, calls = step.writes[0], []
        for x, accumulate in zip(step.reads, (False, True)):
            calls += self._of(step, Add, (x.size, x.row, y.row), {"accumulate": accumulate}, [Shared(x), Shared(y)])
        return calls

    def _total(self, step: Step) -> list[Call]:
        parts, y = step.reads[0], step.writes[0]
        arguments = [Private(parts, all_threads=True), Shared(y), PartStride(parts)]
        return self._of(step, Total, (y.size, self.n_threads, parts.row, y.row), step.fixed, arguments)

    def _gate(self, step: Step) -> list[Call]:
        (x, s), y = step.reads, step.writes[0]
        parameters = x.dim, x.n, x.stride, s.stride, y.stride
        return self._of(step, Gate, parameters, {}, [*map(Shared, (x, s, y))])

    def _gate_backward(self, step: Step) -> list[Call]:
        x, s, g = step.reads
        parameters = x.dim, x.n, x.stride, s.stride, g.stride, *self._outputs(step)
        return self._of(step, GateBackward, parameters, {}, [*map(Shared, (x, s, g, *step.writes))])

    def _divide(self, step: Step) -> list[Call]:
        (x, s), y = step.reads, step.writes[0]
        return self._of(step, Divide, (x.size, x.row, s.row, y.row), {}, [*map(Shared, (x, s, y))])

    def _divide_backward(self, step: Step) -> list[Call]:
        s, y, g = step.reads
        parameters = y.size, s.row, y.row, g.row, *self._outputs(step)
        return self._of(step, DivideBackward, parameters, {}, [*map(Shared, (s, y, g, *step.writes))])

    def _outputs(self, step: Step) -> list[Output | None]:
        """Of a step with two outputs, either of which may be unwanted."""
        writes = iter(step.writes)
        strides = [None if add is None else next(writes) for add in step.fixed["accumulate"]]
        per_row = "gate" in step.kind
        return [
            None if view is None else Output(view.stride if per_row else view.row, add)
            for view, add in zip(strides, step.fixed["accumulate"])
        ]

    def _linear(self, step: Step) -> list[Call]:
        x, y, fixed = step.reads[0], step.writes[0], step.fixed
        flags = fixed["by_species"], fixed.get("accumulate", False), fixed["bias"] is not None
        arguments = [Shared(x), self._fixed(fixed["weight"]), Shared(y)]
        arguments += [self._fixed(fixed["bias"])] if flags[2] else []
        arguments += [Array("species")] if flags[0] else []
        options = dict(zip(("by_species", "accumulate", "bias"), flags))
        return self._of(step, LinearKernel, (x.dim, x.n, y.n, x.stride, y.stride), options, arguments)

    def _product(self, step: Step) -> list[Call]:
        return self._of_product(step, product_kernels.Variant(backward=False))

    def _product_backward(self, step: Step) -> list[Call]:
        return self._of_product(step, product_kernels.Variant(backward=True))

    def _of_product(self, step: Step, variant) -> list[Call]:
        table, weights = step.fixed["table"], step.fixed["weights"]
        n = table.n_inputs
        arguments = [Array("species"), *map(Shared, step.reads[:n]), *map(self._fixed, weights)]
        arguments += [*map(Shared, step.reads[n:]), *map(Shared, step.writes)]
        return self._of(step, product_kernels.ProductKernel, (table, variant), {}, arguments)

    def _conv(self, step: Step) -> list[Call]:
        return self._of_conv(step, Variant(backward=False, vectors=True), [*map(Shared, step.writes)])

    def _conv_backward(self, step: Step) -> list[Call]:
        variant = Variant(True, vectors=True, add_vectors=not step.fixed["first"], x_gradient=bool(step.writes))
        outputs = [Array(f"g{axis}") for axis in "xyz"] + [Private(view) for view in step.writes]
        return self._of_conv(step, variant, outputs)

    def _of_conv(self, step: Step, variant: Variant, outputs: list) -> list[Call]:
        paths, table, rows = (step.fixed[name] for name in ("paths", "table", "rows"))
        neighbour = "neighbour" if rows is None else "neighbour species"
        if rows is not None:
            self.arrays[neighbour] = ("edge", 1, torch.int64)
        n_in = len(paths.irreps_in) if rows is None else 0
        x = [*map(Shared, step.reads[:n_in])] if rows is None else [*map(self._fixed, rows)]
        arguments = [Array("row_ptr"), Array(neighbour), Scratch(), *(Array(f"v{axis}") for axis in "xyz")]
        arguments += [self._fixed(table.values), *x, *map(Shared, step.reads[n_in:]), *outputs]
        variant = variant._replace(tables=table.first is not None)
        n_knots = table.values.shape[0] if table.first is None else table.n_knots
        if table.first is not None:
            arguments.append(Array(self._rows_of_pairs(table.first.fixed)))
        self.scratch = max(self.scratch, conv_scratch(paths, variant, self.bits))
        inverse = struct.unpack("<q", struct.pack("<d", 1.0 / table.spacing))[0]
        return self._of(step, ConvKernel, (paths, variant), {}, [*arguments, 0, n_knots - 1, inverse])

    def _zbl(self, step: Step) -> list[Call]:
        return self._of_zbl(step, {}, [Shared(step.writes[0])])

    def _zbl_backward(self, step: Step) -> list[Call]:
        outputs = [Shared(step.reads[0]), *(Array(f"g{axis}") for axis in "xyz")]
        return self._of_zbl(step, {"accumulate": not step.fixed["first"]}, outputs)

    def _of_zbl(self, step: Step, options: dict, outputs: list) -> list[Call]:
        arguments = [*map(Array, ("row_ptr", "neighbour", "species")), *map(self._fixed, step.fixed["tables"])]
        arguments += [*(Array(f"v{axis}") for axis in "xyz"), *outputs]
        return self._of(step, ZBLKernel, (step.fixed["repulsion"], step.backward), options, arguments)

    def _rows_of_pairs(self, number: Tensor) -> str:
        known = [k for k, other in enumerate(self.first_rows) if torch.equal(other, number)]
        if not known:
            self.first_rows.append(number.to(torch.int64).contiguous())
            known = [len(self.first_rows) - 1]
            self.arrays[f"first rows {known[0]}"] = ("edge", 1, torch.int64)
        return f"first rows {known[0]}"


def _lanes(bits: int) -> int:
    return vector_bytes() // (bits // 8)


_addresses: dict[tuple, int] = {}


def kernel_address(cls, parameters: tuple, options: dict, bits: int) -> int:
    """The packed function of a kernel; one for all kernels that are alike."""
    key = (cls, tuple(_alike(p) for p in parameters), tuple(options.items()), bits)
    if key not in _addresses:
        kernel = cls(*parameters, **options, bits=bits, lanes=_lanes(bits))
        _addresses[key] = compile_packed(
            kernel.e.name, kernel.source, kernel.n_pointers, kernel.n_integers, (cls.__name__, *key[1:])
        )
    return _addresses[key]


def _alike(parameter):
    """What of a parameter decides the kernel."""
    fields = ("irreps_in", "lmax", "correlation", "irreps_out")
    if hasattr(parameter, "irreps_in"):
        return type(parameter).__name__, *(getattr(parameter, name, None) for name in fields)
    return parameter


@lru_cache(maxsize=None)
def conv_scratch(paths, variant: Variant, bits: int) -> int:
    """Numbers of scratch that a convolution kernel needs."""
    return ConvKernel.scratch_size(ConvKernel(paths, variant, bits, _lanes(bits)).n_rows)
