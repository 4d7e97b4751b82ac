"""SchNet passes the contract and computes what its formula says."""

import copy
import math

import numpy as np
import pytest
import torch
from contract import ModelContract
from contract_structures import batch, molecule

from ase_equinn.backend import use_backend
from ase_equinn.derivatives import derivatives
from ase_equinn.graph import edge_vectors
from ase_equinn.models.schnet import SchNet, shifted_softplus
from ase_equinn.potential import Potential


class TestSchNet(ModelContract):
    def make_model(self, dtype):
        torch.manual_seed(0)
        return SchNet((1, 6, 8), 4.0, 6.0, n_channels=16, n_layers=3, n_basis=12).to(dtype)


def test_shifted_softplus():
    x = torch.tensor([-800.0, -3.0, -1e-9, 0.0, 1e-9, 2.5, 39.9, 40.1, 800.0], dtype=torch.float64, requires_grad=True)
    expected = [math.log1p(math.exp(-abs(v))) + max(v, 0.0) - math.log(2.0) for v in x.tolist()]
    value = shifted_softplus(x)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=1e-16)
    assert value[3] == 0.0
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, torch.sigmoid(x), rtol=1e-14, atol=0.0)


def by_the_formula(model, numbers, positions) -> list[float]:
    """Figures 1 and 2 of the paper for an isolated molecule, atom by atom and neighbour by neighbour, in numpy."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    options = model.hyperparameters
    cutoff, centres = model.cutoff, np.linspace(0, model.cutoff, options["n_basis"])

    def layer(name, v):
        return weights[name + ".weight"] @ v + weights.get(name + ".bias", 0.0)

    def ssp(v):
        return np.log(0.5 * np.exp(v) + 0.5)

    def filters(name, r):
        gaussians = np.exp(-((r - centres) ** 2) / (2 * (centres[1] - centres[0]) ** 2))
        return (
            layer(name + "filter.2", ssp(layer(name + "filter.0", gaussians))) * 0.5 * (1 + np.cos(np.pi * r / cutoff))
        )

    x = [weights["embedding.weight"][model.species.index(z)] for z in numbers]
    for k in range(options["n_layers"]):
        name, updates = f"layers.{k}.", []
        for i in range(len(x)):
            total = np.zeros(options["n_channels"])
            for j in range(len(x)):
                r = np.linalg.norm(positions[i] - positions[j])
                if i != j and r < cutoff:
                    total += layer(name + "atomwise_in", x[j]) * filters(name, r)
            total /= options["avg_num_neighbors"] ** 0.5
            updates.append(layer(name + "atomwise_out.2", ssp(layer(name + "atomwise_out.0", total))))
        x = [a + b for a, b in zip(x, updates, strict=True)]
    return [layer("readout.2", ssp(layer("readout.0", v))).item() for v in x]


@pytest.mark.parametrize("avg_num_neighbors", [1.0, 7.0])
def test_formula(avg_num_neighbors):
    torch.manual_seed(3)
    model = SchNet((8, 1, 6), 2.8, avg_num_neighbors, n_channels=6, n_layers=2, n_basis=9).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # biases start at zero and would not be seen
    atoms = molecule((6, 8, 1))
    (graph,), positions = batch(Potential(model), [atoms])
    assert 0 < graph.edge_index.shape[1] < 42
    expected = by_the_formula(model, atoms.numbers, atoms.positions)
    np.testing.assert_allclose(energies(model, graph, positions, exact=True), expected, rtol=1e-12)
    # interpolation of Gaussians, 8 knots for each: some 1e-10 of the largest filter
    np.testing.assert_allclose(energies(model, graph, positions), expected, rtol=1e-8)


def energies(model, graph, positions, exact=False) -> list[float]:
    """Node energies; with `exact` the filters come from the network itself instead of its table."""
    if exact:
        model = copy.deepcopy(model)
        for layer in model.layers:
            layer.table = lambda layer=layer: layer.radial
            layer.backend = "reference"
    return model(graph, edge_vectors(graph, positions)).tolist()


def test_table_of_the_filters():
    """Default sizes: to second order the network within 1e-8, 1e-6, 1e-4; zero at the cutoff with its slope."""
    torch.manual_seed(1)
    layer = SchNet((14,), 5.0, n_layers=1).double().layers[0]
    for parameter in layer.filter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inside = torch.linspace(0.3, 5.0 - 1e-9, 700, dtype=torch.float64, requires_grad=True)

    def to_second_order(function):
        value = function(inside)[:, 3]
        (slope,) = torch.autograd.grad(value.sum(), inside, create_graph=True)
        return value, slope, torch.autograd.grad(slope.sum(), inside)[0]

    table = layer.table()
    for ours, exact, tolerance in zip(to_second_order(table), to_second_order(layer.radial), (1e-8, 1e-6, 1e-4), strict=True):
        assert (ours - exact).abs().max() < tolerance * exact.abs().max()
    assert not table.values[-1, :2].any() and table.values[-1, 2].any()
    near = 5.0 - torch.tensor([1e-6, 1e-8, 1e-10, 0.0], dtype=torch.float64)
    assert (table(near).abs().amax(1) < torch.tensor([1e-11, 1e-14, 1e-14, 1e-14])).all()


def test_kernels_and_reference_agree():
    """The generated kernels against plain torch, forces in float64: round-off of sums in another order."""
    torch.manual_seed(2)
    potential = Potential(SchNet((1, 6, 8), 4.0, 6.0, n_channels=12, n_layers=2, n_basis=9).double())
    assert use_backend(potential, "auto") == "llvm"
    batched = batch(potential, [molecule((1, 6, 8))])
    fast = derivatives(potential, *batched).forces
    use_backend(potential, "reference")
    slow = derivatives(potential, *batched).forces
    assert (fast - slow).abs().max() < 1e-12 * slow.abs().max()


def test_without_layers_the_energy_is_one_number_per_element():
    model = SchNet((1, 6, 8), 4.0, n_channels=4, n_layers=0).double()
    atoms = molecule((1, 6, 8))
    (graph,), positions = batch(Potential(model), [atoms])
    energy = model(graph, edge_vectors(graph, positions))
    assert len(set(energy.tolist())) == 3
    assert all(energy[atoms.numbers == z].unique().numel() == 1 for z in (1, 6, 8))


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(cutoff=0.0), "cutoff must be a positive number of Angstrom, got 0.0"),
        (dict(cutoff=float("nan")), "cutoff must be a positive number of Angstrom, got nan"),
        (dict(avg_num_neighbors=0.0), "avg_num_neighbors must be positive and finite, got 0.0"),
        (dict(avg_num_neighbors=float("inf")), "avg_num_neighbors must be positive and finite, got inf"),
        (dict(n_channels=1), "n_channels must be an integer >= 2, got 1"),
        (dict(n_layers=-1), "n_layers must be an integer >= 0, got -1"),
        (dict(n_layers=1.5), "n_layers must be an integer >= 0, got 1.5"),
        (dict(n_basis=0), "n must be an integer >= 1, got 0"),
        (dict(species=()), "species"),
        (dict(species=(1, 1)), "species"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        SchNet(**{"species": (14,), "cutoff": 5.0, **bad})
