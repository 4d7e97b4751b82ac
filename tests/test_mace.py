"""MACE passes the contract, in its plain form and with everything switched on, and rejects what it cannot be."""

import pytest
import torch
from contract import ModelContract
from contract_structures import batch, crystal, deviation

from ase_equinn.derivatives import derivatives
from ase_equinn.graph import edge_vectors
from ase_equinn.models.mace import INTERACTIONS, MACE
from ase_equinn.nn_pairs import Pairs
from ase_equinn.potential import Potential


def small(**options):
    torch.manual_seed(0)
    settings = dict(irreps_hidden="3x0e+3x1o", lmax=2, correlation=2, radial={"hidden": [8]})
    return MACE((1, 6, 8), 4.0, 6.0, **{**settings, **options})


class TestMACE(ModelContract):
    def make_model(self, dtype):
        return small(correlation=3).to(dtype)


class TestMACEWithDensitiesAndTransform(ModelContract):
    def make_model(self, dtype):
        # Few knots: slopes are differences of neighbouring knots, in float32 more exact if those are far apart.
        radial = {"hidden": [8], "transform": "agnesi", "envelope_last": True, "n_knots": 24}
        kinds = ("residual density", "agnostic density")
        return small(lmax=1, interactions=kinds, radial=radial, readout={"width": 5}).to(dtype)


@pytest.mark.parametrize("kind, transform", [*zip(INTERACTIONS, [None, "soft", None, "agnesi"])])
def test_forces_of_tables_are_those_of_the_networks(kind, transform):
    """The radial networks evaluated at every edge, by the species of its atoms, against their tables."""
    model = small(interactions=[kind], radial={"hidden": [8], "transform": transform, "n_knots": 512}).double()
    potential = Potential(model)
    graphs, positions = batch(potential, [crystal(potential.species)])
    expected = derivatives(potential, graphs, positions)
    species = model.index(graphs[0].numbers)[graphs[0].edge_index]
    for interaction in model.interactions:
        interaction.backend = "reference"
        for network in (interaction.radial, interaction.density):
            if network is not None:
                network.table = lambda *_, network=network: lambda lengths: exact(network, lengths, species)
    found = derivatives(potential, graphs, positions)
    assert 0 < deviation(found.node_energy.numpy(), expected.node_energy.numpy()) < 1e-8
    assert deviation(found.forces.numpy(), expected.forces.numpy()) < 1e-6


def exact(network, lengths, species):
    """The network of every edge's own pair of species."""
    out = lengths.new_zeros(len(lengths), network.weights[-1].shape[1])
    for a, b in torch.unique(species.T, dim=0).tolist():
        own = ((species[0] == a) & (species[1] == b)).nonzero().flatten()
        out = out.index_add(0, own, network(lengths[own], (a, b)))
    return out


def test_each_pair_of_elements_has_a_table_of_its_own():
    network = small(radial={"transform": "agnesi", "radii": [0.3, 0.8, 0.6]}).double().interactions[0].radial
    lengths = torch.linspace(0.5, 3.9, 7, dtype=torch.float64)
    pairs = [(0, 0), (0, 1), (1, 1)]
    for k, pair in enumerate(pairs):
        table = network.table(Pairs(tuple(pairs), torch.full((7,), k)))
        assert deviation(table(lengths).detach().numpy(), network(lengths, pair).detach().numpy()) < 1e-7
    assert deviation(network(lengths, (0, 1)).detach().numpy(), network(lengths, (1, 1)).detach().numpy()) > 1e-2


def test_elements_that_are_absent_change_nothing():
    """Tables are made for the pairs present: a structure's energy does not depend on what else the batch holds."""
    potential = Potential(small(radial={"hidden": [8], "transform": "soft"}).double())
    one, other = crystal((6,)), crystal((1, 8))
    alone, together = (potential.node_energy(g, (edge_vectors(g[0], p),)) for g, p in (
        batch(potential, [one]), batch(potential, [one, other])
    ))  # fmt: skip
    assert deviation(together[: len(one)].detach().numpy(), alone.detach().numpy()) < 1e-12


def test_layers():
    model = MACE((14,), 5.0, irreps_hidden="8x0e+8x1o", n_layers=3, interactions=["residual"])
    assert [str(product.linear.irreps_out) for product in model.products] == ["8x0e+8x1o", "8x0e+8x1o", "8x0e"]
    assert [len(readout.weights) for readout in model.readouts] == [1, 1, 2]
    assert [str(i.linear_in.irreps_out) for i in model.interactions] == ["8x0e", "8x0e+8x1o", "8x0e+8x1o"]
    last = MACE((14,), 5.0, irreps_hidden="8x0e+8x1o", readout={"last_only": True}, irreps_edge=["8x0e", "4x0e"])
    assert len(last.readouts) == 1 and str(last.interactions[1].linear_in.irreps_out) == "4x0e"
    assert len(MACE((14,), 5.0, irreps_hidden="8x0e", n_layers=1).readouts[0].weights) == 1


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(irreps_hidden="8x1o"), "8x1o"),
        (dict(irreps_hidden="8x0e+4x1o"), "one multiplicity"),
        (dict(irreps_hidden=["8x0e"]), "for 2 layers"),
        (dict(irreps_edge=["8x0e"]), "irreps_edge"),
        (dict(irreps_hidden="8x0e+8x0o"), "no product"),
        (dict(cutoff=0.0), "cutoff must be a positive number"),
        (dict(n_layers=0), "n_layers must be an integer >= 1, got 0"),
        (dict(lmax=-1), "got -1"),
        (dict(correlation=0), "correlation must be an integer >= 1, got 0"),
        (dict(correlation=[3]), "for each of 2 layers"),
        (dict(avg_num_neighbors=0), "avg_num_neighbors must be positive, got 0"),
        (dict(interactions=["nonlinear"]), "nonlinear"),
        (dict(radial={"basis": "fourier"}), "'fourier'"),
        (dict(radial={"transform": "log"}), "'log'"),
        (dict(radial={"knots": 3}), "'knots'"),
        (dict(radial={"radii": [1.0, 2.0]}), "one number per species"),
        (dict(readout={"activation": "relu"}), "relu"),
        (dict(readout={"depth": 2}), "depth"),
        (dict(species=[]), "species"),
    ],
)
def test_bad_input(bad, message):
    arguments = {"species": (14,), "cutoff": 5.0, "irreps_hidden": "8x0e+8x1o", **bad}
    if "irreps_hidden" in bad and "0o" in str(bad["irreps_hidden"]):
        arguments["irreps_hidden"] = ["8x0e+8x0o", "8x0e"]
    with pytest.raises(ValueError, match=message):
        MACE(**arguments)
