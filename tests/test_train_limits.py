"""train_limits: a trained network's node energies stay near those of its training set, and there as they are."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from ase_equinn import train_limits
from ase_equinn.data_batches import prepare
from ase_equinn.data import Frame
from ase_equinn.models.mace import MACE
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential
from ase_equinn.train_config import load_config
from ase_equinn.train_limits import MARGIN_ABOVE, MARGIN_BELOW, within_limits

CONFIG = {"data": {"train": "train.xyz"}, "output": "out"}


def _samples(cutoff=4.0):
    frames = []
    for seed in range(4):
        atoms = molecule("CH3OH")
        atoms.rattle(0.1, seed=seed)
        frames.append(Frame(atoms, None, None, None, "default"))
    return prepare(frames, [cutoff])


def _potential(**options):
    torch.manual_seed(0)
    network = MACE([1, 6, 8], 4.0, irreps_hidden="8x0e+8x1o", avg_num_neighbors=4.0, **options).double()
    return Potential(
        [network], reference_energies={1: -1.0, 6: -2.0, 8: -3.0}, scale=2.0, shift={1: -1.5, 6: -3.5, 8: 1.0}
    )


def _nodes(potential, samples):
    return train_limits._of_nodes(potential.models[0], potential, samples)


def test_training_energies_stay_and_limits_are_those_of_each_element():
    potential, samples = _potential(), _samples()
    bounded = within_limits(load_config(CONFIG), potential, samples)
    limits = bounded.models[0].limits.limits
    for old, new in zip(*(_nodes(p, samples) for p in (potential, bounded))):
        np.testing.assert_allclose(new, old, atol=2e-6)
    energies, crowding, near, species = _nodes(potential, samples)
    for index in range(3):
        own = 2.0 * energies[species == index].numpy()
        assert limits.alone[index] * 2.0 == -potential.shift[potential.species[index]]
        assert limits.low[index] * 2.0 == pytest.approx(min(0.0, limits.alone[index] * 2.0, own.min()) - MARGIN_BELOW)
        assert limits.rho_max[index] == pytest.approx(crowding[species == index].max())
        assert limits.near_max[index] == pytest.approx(near[species == index].max())
        assert limits.rho_min[index] == pytest.approx(crowding[species == index].min())
        assert limits.high[index] * 2.0 == pytest.approx(max(0.0, limits.alone[index] * 2.0, own.max()) + MARGIN_ABOVE)
    assert potential.models[0].limits.limits is None  # unchanged
    assert bounded.reference_energies == potential.reference_energies and bounded.dtype == torch.float64


def test_an_atom_alone_has_the_reference_energy():
    potential = _potential()
    assert potential.isolated_energy(6) == pytest.approx(-2.0 - 3.5)
    bounded = within_limits(load_config(CONFIG), potential, _samples())
    for z, energy in potential.reference_energies.items():
        assert bounded.isolated_energy(z) == pytest.approx(energy, abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"limits": False},
        {"model": {"name": "mace", "limits": {"low": [-1.0]}}},
    ],
)
def test_a_config_may_want_none_or_its_own(config):
    potential = _potential()
    assert within_limits(load_config(CONFIG | config), potential, _samples()) is potential


def test_a_model_without_limits_stays_as_it_is():
    potential = Potential([SchNet([1, 6, 8], 4.0)])
    assert within_limits(load_config(CONFIG), potential, _samples()) is potential


def test_a_training_set_of_one_perfect_crystal_has_limits():
    atoms = bulk("Cu", cubic=True)
    samples = prepare([Frame(atoms, None, None, None, "default")], [4.0])
    network = MACE([29], 4.0, irreps_hidden="8x0e", avg_num_neighbors=18.0).double()
    bounded = within_limits(load_config(CONFIG), Potential([network]), samples)
    limits = bounded.models[0].limits.limits
    assert limits.rho_min[0] == pytest.approx(limits.rho_max[0])
