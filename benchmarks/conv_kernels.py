"""Times the generated convolution kernels themselves, one thread: rattled diamond Si, 28 neighbours, random features.

    python benchmarks/conv_kernels.py              # geometry from vectors, what inference runs
    python benchmarks/conv_kernels.py --lengths    # from lengths and harmonics, what training's first derivative runs

GFLOP/s count, per edge and channel, what the plain formulas take: six terms a weight (twice in the backward: value and
slope), products with the non-zero elements of the paths' matrices M and with w; whatever a kernel saves by doing it in
another way shows as a higher rate. The share is that of a 384^3 matrix product measured in the same run.
"""

import argparse
import ctypes
import struct
import time

import torch
from ase.build import bulk

from ase_equinn.angular import spherical_harmonics
from ase_equinn.graph import Graph, edge_vectors, from_atoms
from ase_equinn.irreps import Irreps
from ase_equinn.ops.conv_kernels import ConvKernel
from ase_equinn.ops.conv_variants import Variant, entries
from ase_equinn.ops.jit import compile_function, vector_bytes
from ase_equinn.ops.paths import ConvPaths

CUTOFF, KNOTS = 5.0, 256
BLOCK = 24  # centres timed together: short calls, whose least times a busy machine disturbs less
LAYERS = {  # irreps in, lmax, irreps out, whether x has a row per species instead of one per atom
    "MACE-64 layer 1": ("64x0e", 3, "1x0e+1x1o+1x2e+1x3o", True),
    "MACE-64 layer 2": ("64x0e+64x1o", 3, "1x0e+1x1o+1x2e+1x3o", False),
    "MACE-128 layer 2": ("128x0e+128x1o", 3, "1x0e+1x1o+1x2e+1x3o", False),
    "NequIP M middle": ("128x0e+64x1o+32x2e", 2, "1x0e+1x1o+1x2e", False),
    "SchNet 128": ("128x0e", 0, "1x0e", False),
}


def matrix_product_rate() -> float:
    """GFLOP/s of one thread, float32."""
    a, b, best = torch.randn(384, 384), torch.randn(384, 384), float("inf")
    for _ in range(1000):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 384**3 / best / 1e9


def operations(paths: ConvPaths, backward: bool, x_gradient: bool) -> int:
    """Multiplications and additions per edge."""
    total = 0
    for path, rows in entries(paths).items():
        dim = 2 * paths.irreps_in[path.i_in].l + 1
        per_channel = 2 * 6 + dim + 2 * len(rows)  # weight, t, sums
        if backward:  # the same again for the slope, u (in place of sums), dw, dr, dx, dM
            per_channel += 2 * 6 + 2 * dim + 2 + 2 * dim * x_gradient + 2 * len(rows)
        total += path.mul * per_channel
    return total


def arguments_of(kernel: ConvKernel, graph: Graph, vectors: torch.Tensor, of_species: bool) -> list[torch.Tensor]:
    """The tensors behind a kernel's pointers, in their order."""
    paths, variant, n = kernel.paths, kernel.variant, len(graph.numbers)
    x = [torch.randn(1 if of_species else n, 2 * l + 1, mul) for mul, l, _ in paths.irreps_in]
    out = [torch.randn(n, 2 * l + 1, mul) for mul, l, _ in paths.irreps_out]
    table = torch.randn(KNOTS, 3, paths.n_weights)
    neighbour = graph.edge_index[1] * 0 if of_species else graph.edge_index[1]
    if variant.vectors:
        geometry = list(vectors.T.contiguous())
    else:
        geometry = [vectors.norm(dim=1), spherical_harmonics(paths.lmax, vectors).T.contiguous()]
    slopes = [torch.zeros_like(tensor) for tensor in geometry] if variant.backward else []
    dx = [torch.zeros_like(block) for block in x] if variant.x_gradient and variant.backward else []
    scratch = torch.zeros(ConvKernel.scratch_size(kernel.n_rows))
    return [graph.row_ptr, neighbour, scratch, *geometry, table, *x, *out, *slopes, *dx]


def seconds(paths: ConvPaths, variant: Variant, graph, vectors, of_species: bool, repeats: int) -> tuple[float, float]:
    """(a call, the compilation)."""
    start = time.perf_counter()
    kernel = ConvKernel(paths, variant, 32, vector_bytes() // 4)
    function = compile_function(variant.name, kernel.source(), kernel.n_pointers, kernel.n_integers)
    compiled = time.perf_counter() - start
    tensors = arguments_of(kernel, graph, vectors, of_species)
    spacing = struct.unpack("<q", struct.pack("<d", (KNOTS - 1) / CUTOFF))[0]
    values = [tensor.data_ptr() for tensor in tensors]
    values += [0, len(graph.numbers), len(vectors), KNOTS - 1, spacing]
    kinds = [ctypes.c_void_p] * kernel.n_pointers + [ctypes.c_int64] * kernel.n_integers
    calls = []
    for first in range(0, len(graph.numbers), BLOCK):
        values[kernel.n_pointers : kernel.n_pointers + 2] = first, first + BLOCK
        calls.append([kind(value) for kind, value in zip(kinds, values, strict=True)])
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            function(*call)
            best[number] = min(best[number], time.perf_counter() - start)
    return sum(best), compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", action="store_true", help="kernels that take lengths and harmonics")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    atoms = bulk("Si", cubic=True) * 3
    atoms.rattle(0.1, seed=0)
    graph = from_atoms(atoms, CUTOFF)
    vectors = edge_vectors(graph, torch.from_numpy(atoms.positions)).float()
    peak = matrix_product_rate()
    print(f"{len(atoms)} atoms, {len(vectors)} edges, matrix product {peak:.0f} GFLOP/s")
    for name, (irreps_in, lmax, irreps_out, of_species) in LAYERS.items():
        if options.only not in name:
            continue
        paths = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out))
        for backward in (False, True):
            variant = Variant(backward, x_gradient=not of_species, vectors=not options.lengths)
            best, compiled = seconds(paths, variant, graph, vectors, of_species, options.repeats)
            rate = operations(paths, backward, variant.x_gradient) * len(vectors) / best / 1e9
            kind, per_atom = "backward" if backward else "forward", 1e6 * best / len(atoms)
            print(
                f"{name:17s} {kind:8s} {1e3 * best:7.3f} ms {per_atom:7.2f} us/atom {rate:6.1f} GFLOP/s"
                f" {rate / peak:5.0%}   compiled in {compiled:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
