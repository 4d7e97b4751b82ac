"""The convolution on CUDA: generated Triton kernels behind autograd, first and second derivatives included."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..graph import Graph
from .conv_triton_kernels import ConvSource
from .conv_triton_parts import Kind
from .paths import ConvPaths
from .radial_table import RadialTable
from .triton_source import jit_function, launch

_MIN_EDGES, _MOST_CHUNKS = 16, 16  # an interval of the table is shared by programs of so many edges on average
_kernels: dict[tuple, tuple] = {}
_kept: tuple[weakref.ref, int, _Sorted] | None = None


class _Sorted(NamedTuple):
    """Edges in groups: those of group k are order[begin[k]:begin[k + 1]], in the order of the graph."""

    begin: Tensor
    order: Tensor


def _sorted(group: Tensor, n: int) -> _Sorted:
    values, order = torch.sort(group, stable=True)
    return _Sorted(torch.searchsorted(values, torch.arange(n + 1, device=group.device)), order)


def _incoming(edge_index: Tensor, n_atoms: int) -> _Sorted:
    """The edges by their neighbour; kept for the convolutions that follow on the same graph."""
    global _kept
    if _kept is None or _kept[0]() is not edge_index or _kept[1] != edge_index._version:
        _kept = weakref.ref(edge_index), edge_index._version, _sorted(edge_index[1], n_atoms)
    return _kept[2]


class _Job:
    """One convolution on one graph."""

    def __init__(self, paths: ConvPaths, graph: Graph, table: RadialTable):
        self.paths, self.graph, self.n_rows = paths, graph, table.values.shape[0]
        self.bits = 64 if table.values.dtype == torch.float64 else 32
        self.n_knots = self.n_rows if table.first is None else table.n_knots
        self.spacing, self.first = table.spacing, table.first
        self.n_atoms, self.n_edges = len(graph.numbers), graph.edge_index.shape[1]
        self.centre, self.neighbour = (row.contiguous() for row in graph.edge_index)

    def run(self, kind: Kind, inputs: Sequence[Tensor], g: Sequence[Tensor] = ()) -> list[Tensor]:
        """One function of the family; `inputs` are r, Y, T, x..., followed by their tangents if any."""
        kind = kind._replace(tables=self.first is not None)
        kernel, n_parts = kernel_of(self.paths, kind, self.n_knots, self.spacing, self.bits)
        (n_programs, n_chunks), indices, out = getattr(self, "_" + kind.name)(inputs, n_parts)
        if self.first is not None:
            indices = [*indices, self.first.contiguous()]
        launch(kernel, (n_programs, n_parts, n_chunks), [*indices, *inputs, *g, *out])
        return out

    def _forward(self, inputs: Sequence[Tensor], n_parts: int):
        out = [inputs[0].new_empty(self.n_atoms, 2 * l + 1, mul) for mul, l, _ in self.paths.irreps_out]
        return (self.n_atoms, 1), [self.graph.row_ptr, self.neighbour], out

    def _edges(self, inputs: Sequence[Tensor], n_parts: int):
        n_sh = inputs[1].shape[1]
        out = [inputs[0].new_empty(self.n_edges, n_parts), inputs[0].new_empty(self.n_edges, n_parts, n_sh)]
        return (self.n_atoms, 1), [self.graph.row_ptr, self.neighbour], out

    def _neighbours(self, inputs: Sequence[Tensor], n_parts: int):
        begin, order = _incoming(self.graph.edge_index, self.n_atoms)
        reached = {path.i_in for path in self.paths.paths}
        x = inputs[3 : 3 + len(self.paths.irreps_in)]
        out = [torch.empty_like(block) if k in reached else torch.zeros_like(block) for k, block in enumerate(x)]
        return (self.n_atoms, 1), [begin, order, self.centre], out

    def _table(self, inputs: Sequence[Tensor], n_parts: int):
        row = (inputs[0].detach() / self.spacing).floor().clamp(0, self.n_knots - 2).long()
        row = row if self.first is None else row + self.first
        begin, order = _sorted(row, self.n_rows)
        n_chunks = max(1, min(_MOST_CHUNKS, self.n_edges // (_MIN_EDGES * self.n_rows)))
        out = [inputs[0].new_empty(self.n_rows, n_chunks, 2, 3, self.paths.n_weights)]
        return (self.n_rows, n_chunks), [begin, order, self.centre, self.neighbour], out

    def gradients(self, kind: Kind, inputs: Sequence[Tensor], g: Sequence[Tensor], needs: tuple[bool, bool]):
        """[dr, dY, dT, dx...] of sum <g, A>, or their derivatives; `needs` says whether dx and dT are wanted."""
        slopes, turns = self.run(kind._replace(name="edges"), inputs, g)
        dx, dtable = [None] * len(self.paths.irreps_in), None
        if needs[0]:
            dx = self.run(kind._replace(name="neighbours"), inputs, g)
        if needs[1]:
            (sums,) = self.run(kind._replace(name="table"), inputs, g)
            sums = sums.sum(1)  # per interval: of its lower and of its upper knot
            dtable = sums[:, 0].clone()
            dtable[1:] += sums[:-1, 1]
        return [slopes.sum(1), turns.sum(1), dtable, *dx]


def kernel_of(paths: ConvPaths, kind: Kind, n_knots: int, spacing: float, bits: int):
    """The kernel and the number of its parts; one for all path tables that are alike."""
    key = (paths.irreps_in, paths.lmax, paths.irreps_out, kind, n_knots, spacing, bits)
    if key not in _kernels:
        source = ConvSource(paths, kind, n_knots, spacing, bits)
        _kernels[key] = jit_function(kind.function, source.text()), len(source.parts)
    return _kernels[key]


def fused(paths: ConvPaths, x: Sequence[Tensor], lengths: Tensor, sh: Tensor, table: RadialTable, graph: Graph):
    """`conv` by Triton kernels; sh is (E, n_sh)."""
    job = _Job(paths, graph, table)
    tensors = [tensor.contiguous() for tensor in (lengths, sh, table.values, *x)]
    return list(_Convolution.apply(job, *tensors))


class _Convolution(torch.autograd.Function):
    """(r, Y, T, x...) -> A..."""

    @staticmethod
    def forward(ctx, job: _Job, *inputs: Tensor):
        ctx.job = job
        ctx.save_for_backward(*inputs)
        return tuple(job.run(Kind("forward"), inputs))

    @staticmethod
    def backward(ctx, *g: Tensor):
        inputs = ctx.saved_tensors
        needs = (any(ctx.needs_input_grad[4:]), ctx.needs_input_grad[3])
        return (None, *_Backward.apply(ctx.job, needs, len(inputs), *inputs, *(tensor.contiguous() for tensor in g)))


class _Backward(torch.autograd.Function):
    """(r, Y, T, x..., g...) -> (dr, dY, dT, dx...) of sum <g, A>."""

    @staticmethod
    def forward(ctx, job: _Job, needs: tuple[bool, bool], n_inputs: int, *tensors: Tensor):
        ctx.job, ctx.n_inputs = job, n_inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(job.gradients(Kind("edges"), tensors[:n_inputs], tensors[n_inputs:], needs))

    @staticmethod
    @once_differentiable
    def backward(ctx, *directions: Tensor | None):
        """Derivatives of A and of this backward along the directions (of r, Y, T and x)."""
        job, n = ctx.job, ctx.n_inputs
        inputs, g = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        kind = Kind("forward", dual=True, table_tangent=directions[2] is not None)
        tangents = [torch.zeros_like(t) if d is None else d.contiguous() for t, d in zip(inputs, directions)]
        if not kind.table_tangent:
            del tangents[2]
        need = ctx.needs_input_grad[3:]
        out: list[Tensor | None] = [None] * len(ctx.saved_tensors)
        if any(need[n:]):
            out[n:] = job.run(kind, [*inputs, *tangents])
        if any(need[:n]):
            out[:n] = job.gradients(kind, [*inputs, *tangents], g, (any(need[3:n]), need[2]))
        return (None, None, None, *out)
