"""Gradients of losses by tape against autograd through the reference operators, in float64.

Both are exact; they differ by the order of sums of some hundred terms, which 1e-10 of the largest entry covers.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from ase_equinn.derivatives import derivatives
from ase_equinn.derivatives_training import taped
from ase_equinn.graph import collate, edge_vectors, from_atoms
from ase_equinn.models.mace import MACE
from ase_equinn.models.nequip import NequIP
from ase_equinn.models.schnet import SchNet
from ase_equinn.models.tfn import TFN
from ase_equinn.ops import conv_fused, product_fused
from ase_equinn.ops.tape import Tape
from ase_equinn.potential import Potential
from ase_equinn.terms.zbl import ZBL

MODELS = {
    "nequip": lambda: NequIP([1, 8], 3.0, 4.0, n_layers=3, irreps_hidden="6x0e+5x1o+3x2e+2x0o+2x1e", radial_mlp=[5]),
    "one species": lambda: NequIP([8], 3.0, 4.0, n_layers=2, irreps_hidden="4x0e+3x1o", radial_mlp=[5]),
    "mace": lambda: MACE([1, 8, 14], 3.0, 4.0, irreps_hidden="5x0e+5x1o", lmax=2, radial={"hidden": [6, 5]}),
    "mace, every option": lambda: MACE(
        [1, 8], 3.0, 4.0, n_layers=3, irreps_hidden="4x0e+4x1o", lmax=2, correlation=[2, 3, 1],
        interactions=["residual density", "agnostic density"], irreps_edge=["4x0e", "3x0e+2x1o", "4x0e"],
        radial={"hidden": [6], "transform": "agnesi", "envelope_last": True}, readout={"activation": "tanh"},
    ),
    "mace, abs": lambda: MACE([1, 8], 3.0, 4.0, irreps_hidden="4x0e", lmax=1, readout={"activation": "abs"}),
    "schnet": lambda: SchNet([1, 8], 3.0, 4.0, n_channels=6, n_layers=2, n_basis=5),
}  # fmt: skip


def batch(potential, numbers=(1, 8)):
    """Two crystals smaller than the cutoff, and an atom alone."""
    rng, frames = np.random.default_rng(0), []
    for n in (5, 3):
        cell = 2.9 * np.eye(3) + 0.3 * rng.normal(size=(3, 3))
        frames.append(Atoms(rng.choice(numbers, n), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True))
    frames.append(Atoms([numbers[-1]], positions=[[0.0, 0, 0]]))
    graphs = tuple(collate([from_atoms(atoms, cutoff) for atoms in frames]) for cutoff in potential.cutoffs)
    return graphs, torch.from_numpy(np.concatenate([atoms.positions for atoms in frames]))


def potential_of(make, seed=0):
    torch.manual_seed(seed)
    return Potential(make(), scale=0.7).double()


def by_autograd(potential, monkeypatch):
    """The reference operators, and no tape."""
    monkeypatch.setattr("ase_equinn.derivatives.taped", lambda *_: None)
    for module in potential.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"


def gradients(potential, graphs, positions, parts):
    """The results, and the gradient of a random function of those in `parts`, by every parameter."""
    generator = torch.Generator().manual_seed(3)
    found = derivatives(potential, graphs, positions, training=True)
    loss = 0.0
    for part in parts:
        value = getattr(found, part)
        value = value / value.detach().abs().max()
        loss = loss + (torch.randn(value.shape, generator=generator, dtype=torch.float64) * value).sin().sum()
    weights = list(potential.parameters())
    return found, torch.autograd.grad(loss, weights, allow_unused=True)


def assert_same(found, expected):
    for ours, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-10 * other.abs().max().item())
    scale = max(other.abs().max().item() for other in expected[1] if other is not None)
    for ours, other in zip(found[1], expected[1], strict=True):
        ours, other = (torch.zeros(1) if g is None else g for g in (ours, other))
        assert (ours - other).abs().max() < 1e-10 * scale


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_loss_are_those_of_autograd(name, monkeypatch):
    potential = potential_of(MODELS[name])
    graphs, positions = batch(potential, (8,) if name == "one species" else (1, 8))
    assert taped(potential, graphs, [edge_vectors(graphs[0], positions)]) is not None
    losses = (("energy", "forces", "virial"), ("forces",), ("energy",), ("node_virial", "node_energy"))
    found = [gradients(potential, graphs, positions, parts) for parts in losses]
    by_autograd(potential, monkeypatch)
    for parts, ours in zip(losses, found):
        expected = gradients(potential, graphs, positions, parts)
        assert any(g is not None and g.any() for g in expected[1])
        assert_same(ours, expected)


def test_threads_add_up(monkeypatch):
    potential = potential_of(MODELS["mace, every option"])
    graphs, positions = batch(potential)
    expected = gradients(potential, graphs, positions, ["forces"])
    monkeypatch.setattr(conv_fused, "_MIN_EDGES", 20)
    monkeypatch.setattr(product_fused, "_MIN_ATOMS", 2)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = [gradients(potential, graphs, positions, ["forces"]) for _ in range(2)]
    finally:
        torch.set_num_threads(n_threads)
    assert_same(found[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1]) if a is not None)


def test_frozen_weights_get_no_gradient(monkeypatch):
    potential = potential_of(MODELS["mace"])
    graphs, positions = batch(potential)
    kept = [p for name, p in potential.named_parameters() if "products" in name or "readouts.1" in name]
    potential.requires_grad_(False)
    for parameter in kept:
        parameter.requires_grad_(True)
    found = []
    for autograd in (False, True):
        if autograd:
            by_autograd(potential, monkeypatch)
        forces = derivatives(potential, graphs, positions, training=True).forces
        found.append((forces, torch.autograd.grad(forces.square().sum(), kept)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_a_sum_of_models(monkeypatch):
    torch.manual_seed(0)
    models = [MODELS["schnet"](), SchNet([1, 8], 2.5, 4.0, n_channels=4, n_layers=1, n_basis=5)]
    potential = Potential(models, scale=[0.7, -1.3], shift=0.2).double()
    graphs, positions = batch(potential)
    found = gradients(potential, graphs, positions, ("energy", "forces"))
    by_autograd(potential, monkeypatch)
    assert_same(found, gradients(potential, graphs, positions, ("energy", "forces")))


class Odd(nn.Module):
    """Uses what no tape knows."""

    species, cutoff, hyperparameters = (1, 8), 3.0, {}

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(2.0))

    def forward(self, graph, vectors):
        energy = (self.level * vectors.norm(dim=1)).cos()
        return vectors.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], energy)


@pytest.mark.parametrize("models", [lambda: [Odd()], lambda: [MODELS["schnet"](), ZBL([1, 8])]])
def test_what_no_tape_knows_is_left_to_autograd(models):
    potential = Potential(models()).double()
    graphs, positions = batch(potential)
    assert taped(potential, graphs, [edge_vectors(graph, positions) for graph in graphs]) is None
    _, found = gradients(potential, graphs, positions, ["forces"])
    assert all(g is None or torch.isfinite(g).all() for g in found) and any(g is not None and g.any() for g in found)


def test_tfn_is_trained_either_way(monkeypatch):
    potential = potential_of(lambda: TFN([1, 8], 3.0, 4.0))
    graphs, positions = batch(potential)
    found = gradients(potential, graphs, positions, ("energy", "forces"))
    by_autograd(potential, monkeypatch)
    assert_same(found, gradients(potential, graphs, positions, ("energy", "forces")))


@pytest.mark.parametrize("name", ["mace", "nequip"])
def test_a_step_leaves_nothing_behind(name):
    """Without Python's collector of cycles too: what a tape holds is megabytes a step."""
    potential = potential_of(MODELS[name])
    graphs, positions = batch(potential)
    for _ in range(2):
        result = derivatives(potential, graphs, positions, training=True)
        (result.energy.sum() + result.forces.square().sum()).backward()
    del result
    gc.collect()
    gc.disable()
    try:
        alive = []
        kept = Tape.__init__

        def watched(self, *arguments):
            kept(self, *arguments)
            alive.extend(map(weakref.ref, (self, arguments[0])))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tape, "__init__", watched)
            result = derivatives(potential, graphs, positions, training=True)
            (result.energy.sum() + result.forces.square().sum()).backward()
        assert len(alive) == 2
        del result
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()
