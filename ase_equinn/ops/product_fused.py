"""The symmetric product on the CPU: generated kernels behind autograd, first and second derivatives included."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .conv_fused import thread_pool
from .jit import compile_function, vector_bytes
from .needed import wanted
from .product_kernels import ProductKernel, Variant
from .product_table import ProductTable

_MIN_ATOMS = 50  # per thread: less is not worth waking one
_kernels: dict[tuple, object] = {}


class ProductJob:
    """One product on one set of atoms: kernels and thread ranges."""

    def __init__(self, table: ProductTable, species: Tensor, dtype: torch.dtype):
        self.table, self.species, self.n_atoms = table, species.contiguous(), len(species)
        self.bits = 64 if dtype == torch.float64 else 32
        n_threads = max(1, min(torch.get_num_threads(), self.n_atoms // _MIN_ATOMS))
        cuts = [self.n_atoms * k // n_threads for k in range(n_threads + 1)]
        self.ranges = list(zip(cuts, cuts[1:]))

    def run(self, variant: Variant, arguments: Sequence[Tensor], private: Sequence[list[Tensor]] = ((),)) -> None:
        """Runs a kernel; thread k gets `arguments` followed by ``private[k]``."""
        kernel = kernel_of(self.table, variant, self.bits)
        shared = [self.species.data_ptr(), *(tensor.data_ptr() for tensor in arguments)]

        def work(k: int) -> None:
            kernel(*shared, *(tensor.data_ptr() for tensor in private[k % len(private)]), *self.ranges[k])

        waiting = [thread_pool(len(self.ranges)).submit(work, k) for k in range(1, len(self.ranges))]
        work(0)
        for future in waiting:
            future.result()

    def forward(self, variant: Variant, arguments: Sequence[Tensor]) -> list[Tensor]:
        out = [arguments[0].new_empty(self.n_atoms, 2 * l + 1, mul) for mul, l, _ in self.table.irreps_out]
        self.run(variant, [*arguments, *out])
        return out

    def backward(self, variant: Variant, arguments: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """[dx..., dW...] with None for what the variant leaves out; threads are added up in their order."""
        x, weights = inputs[: self.table.n_inputs], inputs[self.table.n_inputs :]
        dx = [torch.empty_like(block) for block in x]
        if not variant.weight_gradient:
            self.run(variant, [*arguments, *dx])
            return [*dx, *[None] * len(weights)]
        parts = [[torch.zeros_like(weight) for weight in weights] for _ in self.ranges]
        self.run(variant, [*arguments, *dx], parts)
        return [*dx, *(sum(part[1:], start=part[0]) for part in zip(*parts))]


def kernel_of(table: ProductTable, variant: Variant, bits: int):
    """The compiled kernel; one for all tables that are alike."""
    key = (table.irreps_in, table.irreps_out, table.correlation, variant, bits)
    if key not in _kernels:
        kernel = ProductKernel(table, variant, bits, vector_bytes() // (bits // 8))
        _kernels[key] = compile_function(
            variant.name, kernel.source, kernel.n_pointers, kernel.n_integers, ("product", *key)
        )
    return _kernels[key]


def fused(table: ProductTable, x: Sequence[Tensor], weights: Sequence[Tensor], species: Tensor) -> list[Tensor]:
    """`product` by generated kernels.

    Raises:
        ValueError: a species that has no row in the weights.
    """
    if len(species) and not 0 <= int(species.min()) <= int(species.max()) < weights[0].shape[0]:
        raise ValueError(
            f"species must be rows 0..{weights[0].shape[0] - 1} of the weights, got {species.tolist()[:10]}"
        )
    job = ProductJob(table, species, x[0].dtype)
    return list(Product.apply(job, *(tensor.contiguous() for tensor in (*x, *weights))))


class Product(torch.autograd.Function):
    """(x..., W...) -> B..."""

    @staticmethod
    def forward(ctx, job: ProductJob, *inputs: Tensor):
        ctx.job = job
        ctx.save_for_backward(*inputs)
        return tuple(job.forward(Variant(backward=False), inputs))

    @staticmethod
    def backward(ctx, *g: Tensor):
        inputs = ctx.saved_tensors
        weight_gradient = any(wanted(ctx, len(inputs))[ctx.job.table.n_inputs :])
        g = (tensor.contiguous() for tensor in g)
        return (None, *_Backward.apply(ctx.job, weight_gradient, len(inputs), *inputs, *g))


class _Backward(torch.autograd.Function):
    """(x..., W..., g...) -> (dx..., dW...) of sum <g, B>."""

    @staticmethod
    def forward(ctx, job: ProductJob, weight_gradient: bool, n_inputs: int, *tensors: Tensor):
        ctx.job, ctx.n_inputs = job, n_inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        variant = Variant(backward=True, weight_gradient=weight_gradient)
        return tuple(job.backward(variant, tensors, tensors[:n_inputs]))

    @staticmethod
    @once_differentiable
    def backward(ctx, *directions: Tensor | None):
        """Derivatives of B and of this backward along the directions (of x and W)."""
        job, n, n_x = ctx.job, ctx.n_inputs, ctx.job.table.n_inputs
        inputs, g = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        weight_tangent = any(d is not None for d in directions[n_x:])
        with_tangent = list(zip(inputs, directions))[: None if weight_tangent else n_x]
        tangents = [torch.zeros_like(t) if d is None else d.contiguous() for t, d in with_tangent]
        need = wanted(ctx, len(ctx.saved_tensors))
        out: list[Tensor | None] = [None] * len(ctx.saved_tensors)
        if any(need[n:]):
            out[n:] = job.forward(Variant(False, True, weight_tangent), [*inputs, *tangents])
        if any(need[:n]):
            variant = Variant(True, True, weight_tangent, weight_gradient=any(need[n_x:n]))
            out[:n] = job.backward(variant, [*inputs, *tangents, *g], inputs)
        return (None, None, None, *out)
