"""The symmetric product on CUDA: generated Triton kernels behind autograd, first and second derivatives included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .product_fused import Product
from .product_kernels import Variant
from .product_table import ProductTable
from .product_triton_kernels import ProductSource
from .triton_source import jit_function, launch

_kernels: dict[tuple, tuple] = {}


class _Job:
    """One product on one set of atoms."""

    def __init__(self, table: ProductTable, species: Tensor, dtype: torch.dtype, n_species: int):
        self.table, self.species, self.n_species = table, species.contiguous(), n_species
        self.n_atoms, self.bits = len(species), 64 if dtype == torch.float64 else 32

    def _run(self, variant: Variant, tensors: Sequence[Tensor]) -> None:
        kernel, n_blocks = kernel_of(self.table, variant, self.bits)
        launch(kernel, (self.n_atoms, n_blocks), [self.species, *tensors], [self.n_species])

    def forward(self, variant: Variant, arguments: Sequence[Tensor]) -> list[Tensor]:
        out = [arguments[0].new_empty(self.n_atoms, 2 * l + 1, mul) for mul, l, _ in self.table.irreps_out]
        self._run(variant, [*arguments, *out])
        return out

    def backward(self, variant: Variant, arguments: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """[dx..., dW...] with None for what the variant leaves out."""
        x, weights = inputs[: self.table.n_inputs], inputs[self.table.n_inputs :]
        dx = [torch.empty_like(block) for block in x]
        if not variant.weight_gradient:
            self._run(variant, [*arguments, *dx])
            return [*dx, *[None] * len(weights)]
        parts = [weight.new_empty(self.n_atoms, *weight.shape[1:]) for weight in weights]
        self._run(variant, [*arguments, *dx, *parts])
        member = self.species == torch.arange(self.n_species, device=self.species.device)[:, None]
        sums = [member.to(part.dtype) @ part.flatten(1) for part in parts]
        return [*dx, *(total.view_as(weight) for total, weight in zip(sums, weights))]


def kernel_of(table: ProductTable, variant: Variant, bits: int):
    """The kernel and its blocks of channels; one for all tables that are alike."""
    key = (table.irreps_in, table.irreps_out, table.correlation, variant, bits)
    if key not in _kernels:
        source = ProductSource(table, variant, bits)
        _kernels[key] = jit_function(variant.name, source.text()), len(source.blocks)
    return _kernels[key]


def fused(table: ProductTable, x: Sequence[Tensor], weights: Sequence[Tensor], species: Tensor) -> list[Tensor]:
    """`product` by Triton kernels.

    A species that has no row in the weights gives nan: to raise an error would be to wait for the device.
    """
    job = _Job(table, species, x[0].dtype, weights[0].shape[0])
    return list(Product.apply(job, *(tensor.contiguous() for tensor in (*x, *weights))))
