"""The equivariant convolution

    A_i[path] = sum_j  w_path(|r_ij|) * CG(x_j (x) Y(r_ij / |r_ij|)),

"uvu": every channel of x_j is coupled to the spherical harmonics by its own weight, one output block per path.

`conv` is the only entry; models never know which implementation runs. `reference` is plain torch: any device, twice
differentiable, the oracle of the generated kernels (conv_kernels, conv_fused for the CPU, conv_triton for CUDA).

Source: Thomas et al., arXiv:1802.08219 (point convolution); Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 6.
"""

from __future__ import annotations

from typing import Callable, Sequence

import torch
from torch import Tensor

from ..graph import Graph
from .conv_fused import fused
from .conv_triton import fused as fused_triton
from .paths import ConvPaths
from .radial_table import RadialTable
from .symbols import is_symbolic, trace_conv
from .triton_source import installed, interpreted

BACKENDS = ("auto", "reference", "llvm", "triton")


def conv(
    paths: ConvPaths,
    x: Sequence[Tensor],
    lengths: Tensor,
    sh: Tensor,
    radial: RadialTable | Callable,
    graph: Graph,
    backend: str = "auto",
) -> list[Tensor]:
    """Every atom's features become sums over its neighbours of features coupled to the direction.

    Args:
        paths: the path table.
        x: per term of ``paths.irreps_in`` a tensor (n_atoms, 2l+1, mul).
        lengths: (E,) |r_ij|, A.
        sh: (E, (lmax+1)^2), ``spherical_harmonics(lmax, r_ij)``.
        radial: the weights of the paths as a function of the distance: a RadialTable, or (reference only) any function
            (E,) -> (E, paths.n_weights). Must vanish smoothly at the cutoff.
        graph: gives edge_index (centre, neighbour) and row_ptr.
        backend: see `chosen_backend`.

    Returns:
        Per term of ``paths.irreps_out`` a tensor (n_atoms, 2l+1, mul); zero for an atom without neighbours. Twice
        differentiable in x, lengths, sh and the table's values.

    Raises:
        TypeError: tensors of different dtypes, with each.
    """
    if is_symbolic(lengths, sh):
        return trace_conv(paths, x, lengths, sh, radial)
    chosen = chosen_backend(backend, lengths.device)
    if isinstance(radial, RadialTable):
        _check_dtype(x=x[0], lengths=lengths, sh=sh, table=radial.values)
    if chosen == "llvm" and isinstance(radial, RadialTable):
        return fused(paths, x, lengths, sh.T, radial, graph)
    if chosen == "triton" and isinstance(radial, RadialTable):
        return fused_triton(paths, x, lengths, sh, radial, graph)
    return reference(paths, x, lengths, sh, radial, graph)


def _check_dtype(**tensors: Tensor) -> None:
    """Kernels read memory as if all were alike."""
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"conv: one dtype is needed, got {found}")


def chosen_backend(backend: str, device: torch.device) -> str:
    """What "auto" means on a device: kernels generated for it, "llvm" on the CPU and "triton" on CUDA, else "reference".

    Raises:
        ValueError: a name that is none of these, or generated kernels asked for on a device that they do not run on.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "auto":
        return {"cpu": "llvm", "cuda": "triton" if installed() else "reference"}.get(device.type, "reference")
    if backend == "llvm" and device.type != "cpu":
        raise ValueError(f"backend 'llvm' runs on the CPU, the tensors are on {device}")
    if backend == "triton" and device.type != "cuda" and not interpreted():
        raise ValueError(f"backend 'triton' runs on CUDA devices, the tensors are on {device}")
    return backend


def reference(
    paths: ConvPaths, x: Sequence[Tensor], lengths: Tensor, sh: Tensor, radial: Callable, graph: Graph
) -> list[Tensor]:
    """`conv` in plain torch: any device, any dtype."""
    centre, neighbour = graph.edge_index[0], graph.edge_index[1]
    n_atoms = x[0].shape[0]
    weights = radial(lengths)
    messages: list[list[tuple[int, Tensor]]] = [[] for _ in paths.irreps_out]
    for i_in, coupling in enumerate(paths.couplings(sh)):
        mul, l_in, _ = paths.irreps_in[i_in]
        if coupling.shape[1] == 0:
            continue
        maps = (sh @ coupling).unflatten(1, (-1, 2 * l_in + 1))
        x_j = x[i_in].index_select(0, neighbour)
        coupled = maps * x_j if l_in == 0 else torch.bmm(maps, x_j)
        row = 0
        for path in paths.of_input(i_in):
            dim_out = 2 * paths.irreps_out[path.i_out].l + 1
            weight = weights[:, None, path.weight : path.weight + mul]
            messages[path.i_out].append((path.start, coupled[:, row : row + dim_out] * weight))
            row += dim_out
    out = []
    for (mul, l_out, _), parts in zip(paths.irreps_out, messages):
        message = torch.cat([part for _, part in sorted(parts, key=lambda item: item[0])], dim=2)
        out.append(message.new_zeros(n_atoms, 2 * l_out + 1, mul).index_add(0, centre, message))
    return out
