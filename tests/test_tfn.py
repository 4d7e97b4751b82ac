"""TFN passes the contract, has e3nn's equivariance inside, and does not depend on e3nn's version."""

import copy
import importlib

import pytest
import torch
from contract import ModelContract
from contract_structures import batch, molecule, rotation

from ase_equinn.graph import edge_vectors
from ase_equinn.irreps import clebsch_gordan
from ase_equinn.models.tfn import TFN, Convolution, _restore_wigner_3j, o3
from ase_equinn.potential import Potential


class TestTFN(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(0)
        return TFN((1, 6, 8), 4.0, 6.0, irreps_hidden="6x0e+4x1o+3x2e", n_layers=3, radial_width=8).to(dtype)


@pytest.fixture(scope="module")
def convolution() -> Convolution:
    """With both parities and, through l = 2, couplings whose sign differs between versions of e3nn."""
    torch.manual_seed(1)
    irreps = o3.Irreps("3x0e+2x0o+2x1o+2x1e+2x2e")
    layer = Convolution(irreps, irreps, lmax=2, n_basis=8, radial_width=5, z=1.0).double()
    assert layer.irreps_out.dim == irreps.dim
    _restore_wigner_3j(layer)
    return layer


def test_convolution_is_equivariant(convolution):
    generator = torch.Generator().manual_seed(0)
    in_, out = convolution.linear.irreps_in, convolution.irreps_out
    matrix = torch.tensor(rotation(5, -1))
    x = torch.randn(4, in_.dim, dtype=torch.float64, generator=generator)
    vectors = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    edge_index, basis = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 3, 0, 2, 1, 3]]), torch.rand(6, 8).double()

    def convolve(x, vectors):
        return convolution(x, edge_index, o3.spherical_harmonics([0, 1, 2], vectors, True, "component"), basis)

    expected = convolve(x, vectors) @ out.D_from_matrix(matrix).T
    turned = convolve(x @ in_.D_from_matrix(matrix).T, vectors @ matrix.T)
    assert expected.abs().max() > 0.1
    # e3nn 0.6 forms D by a matrix exponential of angles: good to about 1e-8
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


def test_product_is_the_sum_over_paths_with_our_coupling_table(convolution):
    """Every path (l1, l2, l3) by einsum: e3nn's signs, where they differ from ours, have been replaced."""
    product, generator = convolution.product, torch.Generator().manual_seed(0)
    x = torch.randn(1, product.irreps_in1.dim, dtype=torch.float64, generator=generator)
    y = torch.randn(1, product.irreps_in2.dim, dtype=torch.float64, generator=generator)
    weights = torch.randn(1, product.weight_numel, dtype=torch.float64, generator=generator)
    expected, start, paths = torch.zeros(product.irreps_out.dim, dtype=torch.float64), 0, set()
    for path in product.instructions:
        terms = product.irreps_in1[path.i_in1], product.irreps_in2[path.i_in2], product.irreps_out[path.i_out]
        a, b, out = product.irreps_in1, product.irreps_in2, product.irreps_out
        xb = x[0, a.slices()[path.i_in1]].reshape(terms[0].mul, -1)
        yb = y[0, b.slices()[path.i_in2]].reshape(terms[1].mul, -1)
        shape = tuple(term.mul for term in terms)
        size = shape[0] * shape[1] * shape[2]
        w = weights[0, start : start + size].reshape(shape)
        start += size
        paths.add(tuple(term.ir.l for term in terms))
        table = torch.tensor(clebsch_gordan(*(term.ir.l for term in terms)))
        block = path.path_weight * torch.einsum("uvw,ijk,ui,vj->wk", w, table, xb, yb)
        expected[out.slices()[path.i_out]] += block.flatten()
    assert {(1, 2, 2), (2, 2, 1), (2, 2, 2), (1, 1, 1)} <= paths and start == product.weight_numel
    torch.testing.assert_close(product(x, y, weights)[0], expected, rtol=0, atol=1e-13)


def test_coupling_tables_are_ours_after_construction_a_cast_and_a_file(monkeypatch):
    codegen = importlib.import_module("e3nn.o3._tensor_product._codegen")
    home, theirs = getattr(codegen, "o3", codegen), o3.wigner_3j  # e3nn 0.4 looks it up in o3
    monkeypatch.setattr(home, "wigner_3j", lambda *args, **kwargs: -theirs(*args, **kwargs))
    model = TFN((1,), 4.0, irreps_hidden="2x0e+2x1o+2x2e", n_layers=3, radial_width=4)

    def check():
        tables = {name: buffer for name, buffer in model.named_buffers() if "_w3j_" in name}
        assert len(tables) >= 2
        for name, buffer in tables.items():
            degrees = [int(x) for x in name.split("_")[-3:]]
            torch.testing.assert_close(buffer, torch.tensor(clebsch_gordan(*degrees)).to(buffer.dtype), rtol=0, atol=0)

    check()
    single = {name: -value for name, value in model.state_dict().items()}
    model.double()
    check()
    model.load_state_dict(single)
    check()


def test_neighbours_add_divided_by_the_root_of_their_mean_number(convolution):
    """Before the gate: linear(x_i) + sum_j m_ij / sqrt(z)."""
    generator = torch.Generator().manual_seed(2)
    opened = copy.copy(convolution)
    opened._modules = {**convolution._modules, "gate": torch.nn.Identity()}
    x = torch.randn(3, convolution.linear.irreps_in.dim, dtype=torch.float64, generator=generator)
    harmonics, basis = torch.randn(2, 9, generator=generator).double(), torch.rand(2, 8, generator=generator).double()
    own = convolution.linear(x)

    def update(edges, z):
        opened.z = z
        return (opened(x, torch.tensor([[0, 0], [1, 2]])[:, edges], harmonics[edges], basis[edges]) - own)[0]

    both, first, second = update([0, 1], 1.0), update([0], 1.0), update([1], 1.0)
    assert first.abs().max() > 0.1 and second.abs().max() > 0.1
    torch.testing.assert_close(both, first + second, rtol=0, atol=1e-12)
    torch.testing.assert_close(update([0, 1], 9.0), both / 3, rtol=0, atol=1e-12)


def test_energies_do_not_depend_on_the_version_of_e3nn():
    """Recorded with e3nn 0.6.0; e3nn 0.4.4 gives the same, though four of its coupling tables have the other sign."""
    model = TFN((1, 6, 8), 4.0, 6.0, irreps_hidden="4x0e+3x1o+2x1e+2x2e", n_layers=3, radial_width=6).double()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            wave = torch.sin(1.7 * torch.arange(parameter.numel(), dtype=torch.float64) + k)
            parameter.copy_(wave.reshape(parameter.shape))
    (graph,), positions = batch(Potential(model), [molecule((1, 6, 8))])
    energy = model(graph, edge_vectors(graph, positions))
    recorded = [-1.0563095828799, -0.6161809986997, -0.6190999311631, -0.7802424691370,
                -0.9523711311661, -0.7139010395289, -0.5407561640186]  # fmt: skip
    torch.testing.assert_close(energy, torch.tensor(recorded, dtype=torch.float64), rtol=1e-10, atol=0)


def test_layers_drop_irreps_that_cannot_be_reached_yet():
    model = TFN((14,), 5.0, irreps_hidden="4x0e+3x0o+2x1o+1x1e", n_layers=4)
    reached = [sorted(str(layer.irreps_out).split("+")) for layer in model.layers]
    assert reached == [["2x1o", "4x0e"], ["1x1e", "2x1o", "4x0e"], ["1x1e", "2x1o", "3x0o", "4x0e"], ["4x0e"]]


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(irreps_hidden="8x1o"), "even scalars"),
        (dict(irreps_hidden="8x0"), "cannot read"),
        (dict(cutoff=-1.0), "cutoff must be a positive number of Angstrom, got -1.0"),
        (dict(avg_num_neighbors=0.0), "avg_num_neighbors must be positive and finite, got 0.0"),
        (dict(lmax=-1), "lmax must be an integer >= 0, got -1"),
        (dict(n_layers=0), "n_layers must be an integer >= 1, got 0"),
        (dict(n_basis=0), "n must be an integer >= 1, got 0"),
        (dict(radial_width=0), "radial_width must be an integer >= 1, got 0"),
        (dict(species=[]), "species"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        TFN(**{"species": (14,), "cutoff": 5.0, **bad})
