"""The convolution: reference against e3nn's TensorProduct + scatter, generated kernels against the reference."""

import pytest
import torch
from e3nn import o3
from e3nn_layout import to_e3nn

from ase_equinn.angular import spherical_harmonics
from ase_equinn.graph import Graph
from ase_equinn.irreps import Irreps
from ase_equinn.ops import conv_fused
from ase_equinn.ops.conv import conv
from ase_equinn.ops.paths import ConvPaths
from ase_equinn.ops.radial_table import RadialTable

BACKENDS = ("auto", "reference")

CASES = {  # irreps_in, lmax, irreps_out
    "first layer": ("4x0e", 2, "1x0e+1x1o+1x2e"),
    "different multiplicities": ("4x0e+3x1o+2x2e", 2, "1x0e+1x1o+1x2e"),
    "odd parity": ("3x0e+2x0o+2x1e+3x1o", 1, "1x0e+1x0o+1x1e+1x1o"),
    "to l = 4": ("2x0e+1x4e", 4, "1x0e+1x4e"),
    "scalars only": ("3x0e+2x1o", 3, "1x0e"),
}


def small_graph(n_atoms=5, n_edges=11, seed=0):
    """Random edges sorted by centre; the last atom has none."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(0, n_atoms - 1, (n_edges,), generator=generator).sort().values
    neighbour = torch.randint(0, n_atoms, (n_edges,), generator=generator)
    vectors = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64).clamp(-2, 2)
    row_ptr = torch.searchsorted(centre, torch.arange(n_atoms + 1))
    numbers = torch.ones(n_atoms, dtype=torch.long)
    cell, pbc = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    shift = torch.zeros(n_edges, 3, dtype=torch.int32)
    edges = torch.stack([centre, neighbour])
    return Graph(numbers, cell, pbc, edges, shift, row_ptr, torch.zeros_like(numbers), 1), vectors


def setup(case, seed=0, n_atoms=5, n_edges=11):
    torch.manual_seed(seed)
    irreps_in, lmax, irreps_out = CASES[case]
    paths = ConvPaths(Irreps(irreps_in), lmax, Irreps(irreps_out))
    graph, vectors = small_graph(n_atoms, n_edges)
    x = [torch.randn(n_atoms, 2 * l + 1, mul, dtype=torch.float64) for mul, l, _ in paths.irreps_in]
    table = RadialTable(torch.randn(9, 3, paths.n_weights, dtype=torch.float64), 0.5)
    return paths, x, vectors, table, graph


def evaluate(paths, x, vectors, radial, graph, backend):
    lengths, sh = vectors.norm(dim=1), spherical_harmonics(paths.lmax, vectors)
    return conv(paths, x, lengths, sh, radial, graph, backend)


def e3nn_convolution(paths, x, vectors, weights, graph):
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
    weights = torch.cat([weights[:, path.weight : path.weight + path.mul] for path in ordered], dim=1)
    messages = product(to_e3nn(x)[graph.edge_index[1]], sh, weights)
    return torch.zeros(len(x[0]), messages.shape[1], dtype=torch.float64).index_add(0, graph.edge_index[0], messages)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_equals_e3nn_tensor_product_and_scatter(case, backend):
    paths, x, vectors, table, graph = setup(case)
    expected = e3nn_convolution(paths, x, vectors, table(vectors.norm(dim=1)), graph)
    result = to_e3nn(evaluate(paths, x, vectors, table, graph, backend))
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["first layer", "odd parity"])
def test_first_and_second_derivatives(case, backend):
    paths, x, vectors, table, graph = setup(case)
    inputs = [block.requires_grad_() for block in x] + [vectors.requires_grad_(), table.values.requires_grad_()]

    def function(*tensors):
        radial = RadialTable(tensors[-1], table.spacing)
        return tuple(evaluate(paths, tensors[:-2], tensors[-2], radial, graph, backend))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def several_tables(table, n_edges):
    """Three tables one after the other; which one an edge has is random."""
    values = torch.cat([table.values, 2 * table.values.flip(0), table.values.roll(1, 0)])
    n_knots = len(table.values)
    return RadialTable(values, table.spacing, n_knots * torch.randint(0, 3, (n_edges,)), n_knots)


@pytest.mark.parametrize("case, tables", [*((case, False) for case in CASES), ("different multiplicities", True)])
def test_generated_kernels_equal_the_reference_to_second_order(case, tables, monkeypatch):
    """Every input's gradient, and gradients of those gradients along random directions; blocks of edges and two threads."""
    monkeypatch.setattr(conv_fused, "_MIN_EDGES", 50)
    paths, x, vectors, table, graph = setup(case, n_atoms=7, n_edges=260)  # more edges per centre than a block holds
    table = several_tables(table, 260) if tables else table
    found = {}
    for backend in BACKENDS:
        inputs = [t.clone().requires_grad_() for t in (vectors, table.values, *x)]
        radial = table._replace(values=inputs[1])
        out = evaluate(paths, inputs[2:], inputs[0], radial, graph, backend)
        torch.manual_seed(1)
        g = [torch.randn_like(block).requires_grad_() for block in out]
        first = torch.autograd.grad(out, inputs, g, create_graph=True)
        along = [torch.randn_like(t) for t in first]
        second = torch.autograd.grad(first, inputs + g, along, retain_graph=True)
        of_vectors = torch.autograd.grad(first[0], inputs + g, along[0], retain_graph=True)
        learned = torch.autograd.grad(first[0], inputs[1:] + g, along[0])  # what training on forces takes
        found[backend] = [*out, *first, *second, *of_vectors, *learned]
    for ours, expected in zip(found["auto"], found["reference"], strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11 * scale)  # sums in another order


@pytest.mark.parametrize("case", ["different multiplicities", "odd parity"])
def test_float32_kernels_are_as_exact_as_float32(case):
    paths, x, vectors, table, graph = setup(case)
    exact = evaluate(paths, x, vectors, table, graph, "reference")
    single = RadialTable(table.values.float(), table.spacing)
    out = evaluate(paths, [block.float() for block in x], vectors.float(), single, graph, "auto")
    for ours, expected in zip(out, exact):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_any_number_of_channels():
    """Multiplicities that fill vectors, and what remains of them."""
    for mul in (1, 7, 8, 16, 21):
        CASES["wide"] = (f"{mul}x0e+{mul + 2}x1o", 1, "1x0e+1x1o")
        paths, x, vectors, table, graph = setup("wide")
        ours, expected = (to_e3nn(evaluate(paths, x, vectors, table, graph, b)) for b in BACKENDS)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    del CASES["wide"]


def test_the_same_input_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(conv_fused, "_MIN_EDGES", 50)
    paths, x, vectors, table, graph = setup("odd parity", n_atoms=7, n_edges=260)
    vectors.requires_grad_()
    results = []
    for _ in range(3):
        out = evaluate(paths, [block.requires_grad_() for block in x], vectors, table, graph, "auto")
        results.append([*out, *torch.autograd.grad(sum(block.sum() for block in out), [vectors, *x])])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_of_edges_are_sums_over_the_edges_of_each(backend):
    """Several tables in one call give what each gives for its own edges, added up."""
    paths, x, vectors, table, graph = setup("first layer")
    tables = several_tables(table, len(vectors))
    n_knots, expected = tables.n_knots, 0.0
    for k in range(3):
        own = tables.first == k * n_knots
        counts = torch.tensor([own[a:b].sum() for a, b in zip(graph.row_ptr, graph.row_ptr[1:])])
        row_ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        part = graph._replace(edge_index=graph.edge_index[:, own], shift=graph.shift[own], row_ptr=row_ptr)
        single = RadialTable(tables.values[k * n_knots : (k + 1) * n_knots], table.spacing)
        expected = expected + to_e3nn(evaluate(paths, x, vectors[own], single, part, "reference"))
    found = to_e3nn(evaluate(paths, x, vectors, tables, graph, backend))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_path_table():
    paths = ConvPaths(Irreps("4x0e+3x1o"), 1, Irreps("7x0e+1x1o+5x1e+2x3o"))
    assert str(paths.irreps_out) == "7x0e+3x1e+7x1o"  # 0, 1x1 -> 0e; 1x1 -> 1e; 0x1, 1 -> 1o; 3o is out of reach
    assert paths.n_weights == sum(mul for mul, _, _ in paths.irreps_out) == 17
    used = sorted(k for path in paths.paths for k in range(path.weight, path.weight + path.mul))
    assert used == list(range(17))
    with pytest.raises(ValueError, match="one term per irrep"):
        ConvPaths(Irreps("4x0e+3x0e"), 1, Irreps("1x0e"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_atom_without_neighbours_and_graph_without_edges_give_zero(backend):
    paths, x, vectors, table, graph = setup("different multiplicities")
    assert not any(block[4].any() for block in evaluate(paths, x, vectors, table, graph, backend))
    empty = graph._replace(edge_index=graph.edge_index[:, :0], shift=graph.shift[:0], row_ptr=graph.row_ptr * 0)
    assert not any(block.any() for block in evaluate(paths, x, vectors[:0], table, empty, backend))


def test_coupling_constants_keep_float64_precision_and_are_not_pickled():
    paths, x, vectors, table, graph = setup("to l = 4")
    single = RadialTable(table.values.float(), table.spacing)
    evaluate(paths, [block.float() for block in x], vectors.float(), single, graph, "reference")
    assert paths.couplings(vectors)[0].dtype == torch.float64
    assert paths.__getstate__()["_couplings"] == {}
