"""The reference convolution against e3nn's TensorProduct + scatter, its gradients, and its path table."""

import pytest
import torch
from e3nn import o3
from e3nn_layout import to_e3nn

from ase_equinn.graph import Graph
from ase_equinn.irreps import Irreps
from ase_equinn.ops.conv import ConvPaths, conv

CASES = {  # irreps_in, lmax, irreps_out
    "first layer": ("4x0e", 2, "1x0e+1x1o+1x2e"),
    "different multiplicities": ("4x0e+3x1o+2x2e", 2, "1x0e+1x1o+1x2e"),
    "odd parity": ("3x0e+2x0o+2x1e+3x1o", 1, "1x0e+1x0o+1x1e+1x1o"),
    "to l = 4": ("2x0e+1x3o+2x4e", 4, "1x0e+1x3o+1x4e"),
    "scalars only": ("3x0e+2x1o", 3, "1x0e"),
}


def small_graph(n_atoms=5, n_edges=11, seed=0):
    """Random edges sorted by centre; the last atom has none."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(0, n_atoms - 1, (n_edges,), generator=generator).sort().values
    neighbour = torch.randint(0, n_atoms, (n_edges,), generator=generator)
    vectors = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64)
    row_ptr = torch.searchsorted(centre, torch.arange(n_atoms + 1))
    numbers = torch.ones(n_atoms, dtype=torch.long)
    cell, pbc = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    shift = torch.zeros(n_edges, 3, dtype=torch.int32)
    edges = torch.stack([centre, neighbour])
    return Graph(numbers, cell, pbc, edges, shift, row_ptr, torch.zeros_like(numbers), 1), vectors


def setup(case, seed=0):
    torch.manual_seed(seed)
    irreps_in, lmax, irreps_out = CASES[case]
    paths = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out))
    graph, vectors = small_graph()
    x = [torch.randn(5, 2 * l + 1, mul, dtype=torch.float64) for mul, l, _ in paths.irreps_in]
    slopes = torch.randn(paths.n_weights, dtype=torch.float64)

    def radial(lengths):
        return torch.sin(lengths[:, None] * slopes)

    return paths, x, vectors, radial, graph


@pytest.mark.parametrize("case", CASES)
def test_equals_e3nn_tensor_product_and_scatter(case):
    paths, x, vectors, radial, graph = setup(case)
    ordered = sorted(paths.paths, key=lambda path: (path.i_out, path.start))
    outputs = [(path.mul, o3.Irrep(*paths.irreps_out[path.i_out][1:])) for path in ordered]
    instructions = [(path.i_in, path.l_sh, k, "uvu", True) for k, path in enumerate(ordered)]
    sh_irreps = o3.Irreps.spherical_harmonics(paths.lmax)
    default = torch.get_default_dtype()
    try:  # e3nn stores its constants in the default dtype of the moment
        torch.set_default_dtype(torch.float64)
        product = o3.TensorProduct(
            str(paths.irreps_in), sh_irreps, outputs, instructions, shared_weights=False, internal_weights=False
        )
    finally:
        torch.set_default_dtype(default)
    sh = o3.spherical_harmonics(sh_irreps, vectors, normalize=True, normalization="component")
    weights = radial(vectors.norm(dim=1))
    weights = torch.cat([weights[:, path.weight : path.weight + path.mul] for path in ordered], dim=1)
    messages = product(to_e3nn(x)[graph.edge_index[1]], sh, weights)
    expected = torch.zeros(5, messages.shape[1], dtype=torch.float64).index_add(0, graph.edge_index[0], messages)
    torch.testing.assert_close(to_e3nn(conv(paths, x, vectors, radial, graph)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["different multiplicities", "odd parity"])
def test_first_and_second_derivatives(case):
    paths, x, vectors, radial, graph = setup(case)
    inputs = [block.requires_grad_() for block in x] + [vectors.requires_grad_()]

    def function(*tensors):
        return tuple(conv(paths, tensors[:-1], tensors[-1], radial, graph))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_path_table():
    paths = ConvPaths(Irreps("4x0e+3x1o"), 1, Irreps("7x0e+1x1o+5x1e+2x3o"))
    assert str(paths.irreps_out) == "7x0e+3x1e+7x1o"  # 0, 1x1 -> 0e; 1x1 -> 1e; 0x1, 1 -> 1o; 3o is out of reach
    assert paths.n_weights == sum(mul for mul, _, _ in paths.irreps_out) == 17
    used = sorted(k for path in paths.paths for k in range(path.weight, path.weight + path.mul))
    assert used == list(range(17))
    with pytest.raises(ValueError, match="one term per irrep"):
        ConvPaths(Irreps("4x0e+3x0e"), 1, Irreps("1x0e"))


def test_atom_without_neighbours_and_graph_without_edges_give_zero():
    paths, x, vectors, radial, graph = setup("different multiplicities")
    assert not any(block[4].any() for block in conv(paths, x, vectors, radial, graph))
    empty = graph._replace(edge_index=graph.edge_index[:, :0], shift=graph.shift[:0], row_ptr=graph.row_ptr * 0)
    assert not any(block.any() for block in conv(paths, x, vectors[:0], radial, empty))


def test_coupling_constants_keep_float64_precision_and_are_not_pickled():
    paths, x, vectors, radial, graph = setup("to l = 4")
    conv(paths, [block.float() for block in x], vectors.float(), lambda r: radial(r).float(), graph)
    assert paths.couplings(vectors)[0].dtype == torch.float64
    assert paths.__getstate__()["_couplings"] == {}
