"""train_terms: labels freed of the repulsive core, and the potential that has it again."""

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_equinn.data import Frame
from ase_equinn.data_batches import prepare
from ase_equinn.evaluate_files import predict
from ase_equinn.models.nequip import NequIP
from ase_equinn.potential import Potential
from ase_equinn.train_config import load_config
from ase_equinn.train_terms import complete, repulsion, without


def config_of(**options):
    return load_config({"data": {"train": "a.xyz"}, "output": "x"} | options)


def frames():
    rng = np.random.default_rng(0)
    out = []
    for pbc in (True, False):
        atoms = Atoms("Si2Cu", rng.uniform(0, 2.0, (3, 3)) + np.eye(3), cell=np.eye(3) * 6, pbc=pbc)
        stress = rng.normal(size=(3, 3)) if pbc else None
        out.append(Frame(atoms, rng.normal(), rng.normal(size=(3, 3)), stress))
    return out


def test_labels_are_those_of_the_network_and_the_sum_has_both():
    term = repulsion(config_of(), (14, 29))
    given = frames()
    bare = without(given, term)
    torch.manual_seed(0)
    network = Potential([NequIP([14, 29], 5.0, 4.0, irreps_hidden="4x0e+4x1o").double()], scale=2.0, shift=0.3)
    whole = complete(network, term)
    one, two = (
        predict(potential, prepare(group, potential.cutoffs)) for potential, group in ((network, bare), (whole, given))
    )
    for frame, rest, a, b in zip(given, bare, one, two):
        assert abs(frame.energy - rest.energy) > 0.1  # the core acts here
        assert b.energy - frame.energy == pytest.approx(a.energy - rest.energy, abs=1e-9)
        np.testing.assert_allclose(b.forces - frame.forces, a.forces - rest.forces, atol=1e-9)
        assert (rest.stress is None) == (frame.stress is None)
        if frame.stress is not None:
            np.testing.assert_allclose(b.stress - frame.stress, a.stress - rest.stress, atol=1e-10)


def test_missing_labels_stay_missing():
    bare = without([frames()[0]._replace(energy=None, forces=None)], repulsion(config_of(), (14, 29)))
    assert bare[0].energy is None and bare[0].forces is None


def test_the_core_ends_at_the_covalent_radii_or_the_cutoff():
    assert repulsion(config_of(), (14,)).cutoff == pytest.approx(2.22)
    assert repulsion(config_of(model={"name": "nequip", "cutoff": 2.0}), (14,)).cutoff == pytest.approx(2.0)
    assert repulsion(config_of(zbl=False), (14,)) is None


def test_without_a_term_nothing_changes():
    given = frames()
    assert without(given, None) == given
    network = Potential([NequIP([14], 5.0, irreps_hidden="4x0e")])
    assert complete(network, None) is network
