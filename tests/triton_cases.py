"""Triton kernels against the reference: cases that test_triton runs in Triton's interpreter, and on a CUDA device.

    TRITON_INTERPRET=1 python triton_cases.py      prints {case: largest error relative to the largest number} as JSON
"""

import json
import sys

import torch

from ase_equinn.angular import spherical_harmonics
from ase_equinn.derivatives import derivatives
from ase_equinn.graph import Graph
from ase_equinn.irreps import Irreps
from ase_equinn.models.mace import MACE
from ase_equinn.models.nequip import NequIP
from ase_equinn.models.schnet import SchNet
from ase_equinn.ops.conv import conv
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.product import product
from ase_equinn.ops.product_table import ProductTable
from ase_equinn.ops.radial_table import RadialTable
from ase_equinn.potential import Potential

CONVOLUTIONS = {  # irreps_in, lmax, irreps_out, number of tables
    "SchNet": ("5x0e", 0, "1x0e", 1),
    "MACE": ("3x0e+3x1o", 3, "1x0e+1x1o+1x2e+1x3o", 1),
    "odd parity": ("2x0e+1x0o+1x1e+2x1o", 1, "1x0e+1x0o+1x1e+1x1o", 1),
    "different multiplicities": ("4x0e+2x1o+1x2e", 2, "1x0e+1x1o+1x2e", 1),
    "an input without paths": ("2x0e+2x2e", 1, "1x0e", 1),
    "tables of edges": ("2x0e+1x1o", 1, "1x0e+1x1o", 3),
    "many channels": ("70x0e+3x1o", 1, "1x0e", 1),
}
PRODUCTS = {  # irreps_in, irreps_out, correlation
    "two factors": ("3x0e+3x1o+3x2e", "1x0e+1x1o", 2),
    "three factors": ("2x0e+2x1o", "1x0e+1x1o", 3),
    "many channels": ("35x0e+35x1o", "1x1o", 2),
}
MODELS = {
    "NequIP": lambda: NequIP((8, 14), 4.0, 5.0, irreps_hidden="3x0e+2x1o", radial_mlp=[4]),
    "MACE": lambda: MACE(
        (8, 14), 4.0, 5.0, irreps_hidden="2x0e+2x1o", lmax=1, correlation=2, radial={"transform": "agnesi"}
    ),
    "SchNet": lambda: SchNet((8, 14), 4.0, 5.0, n_channels=4, n_layers=2, n_basis=4),
}


def random_graph(n_atoms, n_edges, generator, device="cpu"):
    """Edges sorted by centre, the last atom has none; vectors within 2 A along each axis."""
    centre = torch.randint(0, max(1, n_atoms - 1), (n_edges,), generator=generator).sort().values
    neighbour = torch.randint(0, max(1, n_atoms), (n_edges,), generator=generator)
    vectors = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64).clamp(-2, 2)
    row_ptr = torch.searchsorted(centre, torch.arange(n_atoms + 1))
    numbers = torch.ones(n_atoms, dtype=torch.long)
    cell, pbc = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    edges, shift = torch.stack([centre, neighbour]), torch.zeros(n_edges, 3, dtype=torch.int32)
    return Graph(numbers, cell, pbc, edges, shift, row_ptr, torch.zeros_like(numbers), 1).to(device), vectors.to(device)


def to_second_order(function, inputs, generator):
    """Results, all first derivatives, derivatives of these along random directions, and those of the first alone."""

    def random(like):  # in the order of the indices, however the tensor lies in memory
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    def gradients(of, by, along, **options):
        found = torch.autograd.grad(of, by, along, allow_unused=True, **options)
        return [torch.zeros_like(t, requires_grad=True) if g is None else g for g, t in zip(found, by)]

    inputs = [t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    g = [random(block).requires_grad_() for block in out]
    first = gradients(out, inputs, g, create_graph=True)
    along = [random(t) for t in first]
    second = gradients(first, inputs + g, along, retain_graph=True)
    return [*out, *first, *second, *gradients(first[0], inputs + g, along[0])]


def convolution(case, backend, n_atoms=3, n_edges=3, device="cpu", dtype=torch.float64, n_knots=3):
    """`to_second_order` of a convolution in vectors, table and features."""
    irreps_in, lmax, irreps_out, n_tables = CONVOLUTIONS[case]
    paths, generator = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out)), torch.Generator().manual_seed(0)
    graph, vectors = random_graph(n_atoms, n_edges, generator, device)
    x = [torch.randn(n_atoms, 2 * l + 1, mul, generator=generator, dtype=dtype) for mul, l, _ in paths.irreps_in]
    values = torch.randn(n_knots * n_tables, 3, paths.n_weights, generator=generator, dtype=dtype).to(device)
    first = (n_knots * torch.randint(0, n_tables, (n_edges,), generator=generator)).to(device) if n_tables > 1 else None

    def function(vectors, values, *x):
        lengths, sh = vectors.norm(dim=1), spherical_harmonics(paths.lmax, vectors)
        table = RadialTable(values, 4.0 / (n_knots - 1), first, n_knots if n_tables > 1 else None)
        return conv(paths, x, lengths, sh, table, graph, backend)

    return to_second_order(function, [vectors.to(dtype), values, *(block.to(device) for block in x)], generator)


def symmetric_product(case, backend, n_atoms=3, device="cpu", dtype=torch.float64):
    """`to_second_order` of a product in features and weights."""
    irreps_in, irreps_out, correlation = PRODUCTS[case]
    table = ProductTable(Irreps(irreps_in), Irreps(irreps_out), correlation)
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(n_atoms, 2 * l + 1, mul, generator=generator, dtype=dtype) for mul, l, _ in table.irreps_in]
    weights = [torch.randn(2, len(rows), table.n_channels, generator=generator, dtype=dtype) for rows in table.outputs]
    species = (torch.arange(n_atoms) % 2).to(device)

    def function(*inputs):
        return product(table, inputs[: len(x)], inputs[len(x) :], species, backend)

    return to_second_order(function, [t.to(device) for t in (*x, *weights)], generator)


def model(case, backend, n_atoms=3, n_edges=3, device="cpu", dtype=torch.float64, training=False):
    """Energies, forces and virials; with `training` also the gradient of a loss by the weights."""
    torch.manual_seed(0)
    potential = Potential([MODELS[case]()]).to(device=device, dtype=dtype).requires_grad_(training)
    for module in potential.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    graph, vectors = random_graph(n_atoms, n_edges, torch.Generator().manual_seed(1), device)
    numbers = torch.tensor([8, 14])[torch.arange(n_atoms) % 2].to(device)
    positions = torch.zeros(n_atoms, 3, dtype=torch.float64, device=device)
    graphs = (graph._replace(numbers=numbers),)
    found = derivatives(potential, graphs, positions, training=training, vectors=(vectors,))
    results = [found.node_energy, found.forces, found.node_virial]
    if training:
        loss = found.energy.sum() + found.forces.square().sum()
        results += torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True)
    return results


def relative_error(ours, expected):
    """The largest difference of any tensor, relative to its own largest number."""
    errors = [0.0]
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = b.abs().max().item() if b.numel() else 0.0
        errors.append((a - b).abs().max().item() / (scale or 1.0) if b.numel() else 0.0)
    return float(torch.tensor(errors).max())  # nan if any is


def compare(function, case, backend="triton", **sizes):
    return relative_error(function(case, backend, **sizes), function(case, "reference", **sizes))


def gradients_are_right():
    """torch's own numerical check, to second order; 0.0 if it passes."""
    paths = ConvPaths(Irreps("1x0e+1x1o"), 1, Irreps("1x0e"))
    generator = torch.Generator().manual_seed(0)
    graph, vectors = random_graph(2, 1, generator)
    x = [torch.randn(2, 2 * l + 1, mul, generator=generator, dtype=torch.float64) for mul, l, _ in paths.irreps_in]
    values = torch.randn(3, 3, paths.n_weights, generator=generator, dtype=torch.float64)

    def function(vectors, values, *x):
        lengths, sh = vectors.norm(dim=1), spherical_harmonics(paths.lmax, vectors)
        return tuple(conv(paths, x, lengths, sh, RadialTable(values, 2.0), graph, "triton"))

    inputs = [t.requires_grad_() for t in (vectors, values, *x)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    return 0.0


def unknown_species():
    """An atom whose species has no weights: nan for it alone; 0.0 if so."""
    table = ProductTable(Irreps("2x0e+2x1o"), Irreps("1x0e"), 2)
    x = [torch.ones(3, 2 * l + 1, mul, dtype=torch.float64) for mul, l, _ in table.irreps_in]
    weights = [torch.ones(2, len(rows), 2, dtype=torch.float64) for rows in table.outputs]
    (out,) = product(table, x, weights, torch.tensor([1, -1, 2]), "triton")
    return 0.0 if out.isnan().any((1, 2)).tolist() == [False, True, True] else 1.0


def in_the_interpreter():
    """{case: error} of all cases."""
    found = {f"convolution, {case}": compare(convolution, case) for case in CONVOLUTIONS}
    found |= {f"product, {case}": compare(symmetric_product, case) for case in PRODUCTS}
    found |= {f"model, {case}": compare(model, case) for case in MODELS}
    found["no edges"] = compare(convolution, "odd parity", n_edges=0)
    found["no atoms"] = compare(convolution, "SchNet", n_atoms=0, n_edges=0)
    found["no atoms"] += compare(symmetric_product, "two factors", n_atoms=0)
    single = {"dtype": torch.float32}
    found["convolution, float32"] = compare(convolution, "tables of edges", **single)
    found["product, float32"] = compare(symmetric_product, "three factors", **single)
    return found | {"numerical derivatives": gradients_are_right(), "unknown species": unknown_species()}


if __name__ == "__main__":
    json.dump(in_the_interpreter(), sys.stdout)
