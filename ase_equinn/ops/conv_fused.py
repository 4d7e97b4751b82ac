"""The convolution on the CPU: generated kernels behind autograd, first and second derivatives included."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..graph import Graph
from .conv_kernels import ConvKernel, Variant
from .jit import compile_function, vector_bytes
from .needed import wanted
from .paths import ConvPaths
from .radial_table import RadialTable

_MIN_EDGES = 500  # per thread: less is not worth waking one
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_kernels: dict[tuple, tuple] = {}


class ConvJob:
    """One convolution on one graph: kernels, thread ranges and scratch.

    `rows`: for every edge its row of x, (E,) int64; None: its neighbour.
    """

    def __init__(self, paths: ConvPaths, graph: Graph, table: RadialTable, rows: Tensor | None = None):
        self.paths, self.bits = paths, 64 if table.values.dtype == torch.float64 else 32
        n_knots = table.values.shape[0] if table.first is None else table.n_knots
        self.first = None if table.first is None else table.first.contiguous()
        self.row_ptr = graph.row_ptr.contiguous()
        self.neighbour = (graph.edge_index[1] if rows is None else rows).contiguous()
        self.n_atoms, self.n_edges = len(graph.numbers), graph.edge_index.shape[1]
        self.constants = [self.n_edges, n_knots - 1, struct.unpack("<q", struct.pack("<d", 1.0 / table.spacing))[0]]
        self.ranges = self._ranges()

    def _ranges(self) -> list[tuple[int, int]]:
        """Contiguous centres for each thread, with about equally many edges."""
        n_threads = max(1, min(torch.get_num_threads(), self.n_edges // _MIN_EDGES))
        if n_threads == 1:
            return [(0, self.n_atoms)]
        targets = torch.linspace(0, self.n_edges, n_threads + 1)[1:-1].long()
        cuts = [0, *torch.searchsorted(self.row_ptr, targets).tolist(), self.n_atoms]
        return list(zip(cuts, cuts[1:]))

    def run(self, variant: Variant, arguments: list[Tensor], private: Sequence[list[Tensor]] = ((),)) -> None:
        """Runs a kernel; thread k gets `arguments` followed by ``private[k]``."""
        variant = variant._replace(tables=self.first is not None)
        kernel, scratch_size = kernel_of(self.paths, variant, self.bits)
        dtype = torch.float64 if self.bits == 64 else torch.float32
        shared = [tensor.data_ptr() for tensor in arguments]

        def work(k: int) -> None:
            scratch = torch.empty(scratch_size, dtype=dtype)
            own = [tensor.data_ptr() for tensor in private[k % len(private)]]
            pointers = [self.row_ptr.data_ptr(), self.neighbour.data_ptr(), scratch.data_ptr(), *shared, *own]
            if self.first is not None:
                pointers.append(self.first.data_ptr())
            kernel(*pointers, *self.ranges[k], *self.constants)

        waiting = [thread_pool(len(self.ranges)).submit(work, k) for k in range(1, len(self.ranges))]
        work(0)
        for future in waiting:
            future.result()


def thread_pool(n_threads: int) -> ThreadPoolExecutor:
    """The threads beside the caller's own, kept for the process; kernels run without Python's lock."""
    key = (os.getpid(), n_threads)  # a fork inherits the object but not its threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="ase_equinn")
    return _pools[key]


def kernel_of(paths: ConvPaths, variant: Variant, bits: int):
    """The compiled kernel and the size of its scratch; one for all path tables that are alike."""
    key = (paths.irreps_in, paths.lmax, paths.irreps_out, variant, bits)
    if key not in _kernels:
        kernel = ConvKernel(paths, variant, bits, vector_bytes() // (bits // 8))
        function = compile_function(variant.name, kernel.source, kernel.n_pointers, kernel.n_integers, ("conv", *key))
        _kernels[key] = function, ConvKernel.scratch_size(kernel.n_rows)
    return _kernels[key]


def fused(paths: ConvPaths, x: Sequence[Tensor], lengths: Tensor, sh: Tensor, table: RadialTable, graph: Graph):
    """`conv` by generated kernels; sh is (n_sh, E)."""
    job = ConvJob(paths, graph, table)
    tensors = [tensor.contiguous() for tensor in (lengths, sh, table.values, *x)]
    return list(_Convolution.apply(job, *tensors))


def _zeros(like: Sequence[Tensor], n: int) -> list[list[Tensor]]:
    return [[torch.zeros_like(tensor) for tensor in like] for _ in range(n)]


def total(parts: list[list[Tensor]]) -> list[Tensor]:
    """The threads' sums, added in the order of the threads."""
    for part in parts[1:]:
        for first, tensor in zip(parts[0], part):
            first += tensor
    return parts[0]


def _empty_out(job: ConvJob, like: Tensor) -> list[Tensor]:
    return [like.new_empty(job.n_atoms, 2 * l + 1, mul) for mul, l, _ in job.paths.irreps_out]


class _Convolution(torch.autograd.Function):
    """(r, Y, T, x...) -> A..."""

    @staticmethod
    def forward(ctx, job: ConvJob, *inputs: Tensor):
        out = _empty_out(job, inputs[0])
        job.run(Variant(backward=False), [*inputs, *out])
        ctx.job = job
        ctx.save_for_backward(*inputs)
        return tuple(out)

    @staticmethod
    def backward(ctx, *g: Tensor):
        inputs = ctx.saved_tensors
        r, sh, table, *x = wanted(ctx, len(inputs))
        g = (tensor.contiguous() for tensor in g)
        return (None, *_Backward.apply(ctx.job, (r or sh, table, any(x)), len(inputs), *inputs, *g))


def _run_backward(
    job: ConvJob, variant: Variant, arguments: list[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """[dr, dY, dT, dx...] with None for what the variant leaves out."""
    r, sh, table, x = inputs[0], inputs[1], inputs[2], inputs[3:]
    slopes = [torch.empty_like(r), torch.empty_like(sh)] if variant.edge_gradient else []
    summed = [*([table] if variant.table_gradient else []), *(x if variant.x_gradient else [])]
    parts = _zeros(summed, len(job.ranges))
    job.run(variant, [*arguments, *slopes], parts)
    totals = iter(total(parts))
    dtable = next(totals) if variant.table_gradient else None
    dx = [next(totals) if variant.x_gradient else None for _ in x]
    return [*(slopes or (None, None)), dtable, *dx]


class _Backward(torch.autograd.Function):
    """(r, Y, T, x..., g...) -> (dr, dY, dT, dx...) of sum <g, A>."""

    @staticmethod
    def forward(ctx, job: ConvJob, needs: tuple[bool, bool, bool], n_inputs: int, *tensors: Tensor):
        variant = Variant(True, edge_gradient=needs[0], table_gradient=needs[1], x_gradient=needs[2])
        ctx.job, ctx.n_inputs = job, n_inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(_run_backward(job, variant, list(tensors), tensors[:n_inputs]))

    @staticmethod
    @once_differentiable
    def backward(ctx, *directions: Tensor | None):
        """Derivatives of A and of this backward along the directions (of r, Y, T and x)."""
        job, n = ctx.job, ctx.n_inputs
        inputs, g = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        table_tangent = directions[2] is not None
        with_tangent = [pair for k, pair in enumerate(zip(inputs, directions)) if k != 2 or table_tangent]
        tangents = [torch.zeros_like(t) if d is None else d.contiguous() for t, d in with_tangent]
        need = wanted(ctx, len(ctx.saved_tensors))
        out: list[Tensor | None] = [None] * len(ctx.saved_tensors)
        if any(need[n:]):
            out[n:] = _empty_out(job, inputs[0])
            job.run(Variant(False, True, table_tangent), [*inputs, *tangents, *out[n:]])
        if any(need[:n]):
            needs = dict(x_gradient=any(need[3:n]), table_gradient=need[2], edge_gradient=any(need[:2]))
            variant = Variant(True, True, table_tangent, **needs)
            out[:n] = _run_backward(job, variant, [*inputs, *tangents, *g], inputs)
        return (None, None, None, *out)
