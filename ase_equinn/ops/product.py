"""The symmetric product of MACE: polynomials of an atom's features that transform like one irrep,

    B_i[L] = sum_k  W_k[species_i] * T_k(x_i),      T_k = CG(... CG(CG(x_l1 (x) x_l2) (x) x_l3) ...),

channel by channel, where k runs over linearly independent couplings of 1, 2, ..., `correlation` factors.

`product` is the only entry; models never know which implementation runs. `reference` is plain torch: any device,
differentiable to any order, the oracle of the generated kernels (product_kernels, product_fused for the CPU, product_triton
for CUDA).

Source: Batatia et al., NeurIPS 2022, arXiv:2206.07697, eq. 10 and 11; Drautz, Phys. Rev. B 99, 014104 (2019).
"""

from __future__ import annotations

from typing import Sequence

from torch import Tensor

from .conv import chosen_backend
from .product_fused import fused
from .product_table import ProductTable
from .product_triton import fused as fused_triton
from .symbols import is_symbolic, trace_product


def product(
    table: ProductTable, x: Sequence[Tensor], weights: Sequence[Tensor], species: Tensor, backend: str = "auto"
) -> list[Tensor]:
    """Every atom's features become weighted sums of their equivariant polynomials, channel by channel.

    Args:
        table: the couplings.
        x: per term of ``table.irreps_in`` a tensor (n_atoms, 2l+1, C).
        weights: per term of ``table.irreps_out`` a tensor (n_species, len(table.outputs[k]), C).
        species: (n_atoms,) int64, row of the weights.
        backend: see `conv.chosen_backend`.

    Returns:
        Per term of ``table.irreps_out`` a tensor (n_atoms, 2l+1, C), differentiable in x and weights.
    """
    if is_symbolic(*x):
        return trace_product(table, x, weights)
    chosen = chosen_backend(backend, x[0].device)
    if chosen == "llvm":
        return fused(table, x, weights, species)
    if chosen == "triton":
        return fused_triton(table, x, weights, species)
    return reference(table, x, weights, species)


def reference(table: ProductTable, x: Sequence[Tensor], weights: Sequence[Tensor], species: Tensor) -> list[Tensor]:
    """`product` in plain torch: any device, any dtype."""
    values = list(x)
    for node, coupling in zip(table.nodes[table.n_inputs :], table.couplings(x[0])):
        pairs = values[node.left][:, :, None] * x[node.right][:, None]
        values.append(coupling @ pairs.flatten(1, 2))
    out = []
    for rows, weight in zip(table.outputs, weights):
        own = weight.index_select(0, species)
        out.append(sum(own[:, k : k + 1] * values[row] for k, row in enumerate(rows)))
    return out
