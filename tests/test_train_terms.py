"""train_terms: the repulsive core ends where the training set begins."""

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_equinn.data import Frame
from ase_equinn.data_batches import prepare
from ase_equinn.evaluate_files import predict
from ase_equinn.models.nequip import NequIP
from ase_equinn.potential import Potential
from ase_equinn.radial_transforms import covalent_radius
from ase_equinn.train_config import load_config
from ase_equinn.train_terms import complete, repulsion


def config_of(**options):
    return load_config({"data": {"train": "a.xyz"}, "output": "x"} | options)


def frames(distance, symbols="SiCu"):
    """Pairs at least `distance` apart."""
    pairs = [Atoms(symbols, [[0, 0, 0], [0, 0, d]]) for d in (distance, 3.0)]
    return [Frame(atoms, 0.0, np.zeros((2, 3)), None) for atoms in pairs]


def term_of(distance, **options):
    return repulsion(config_of(**options), (14, 29), prepare(frames(distance), [5.0]))


def potentials(term):
    torch.manual_seed(0)
    network = Potential([NequIP([14, 29], 5.0, 4.0, irreps_hidden="4x0e+4x1o").double()], scale=2.0, shift=0.3)
    return network, complete(network, term.double())


def test_the_core_is_zero_on_the_training_set_and_repels_below_it():
    network, whole = potentials(term_of(2.0))
    radii = covalent_radius(14) + covalent_radius(29)
    assert sum(term_of(2.0).radii) == pytest.approx(2.0) and radii > 2.0
    inside, outside = frames(1.9), frames(2.0)
    for group, differs in ((inside, True), (outside, False)):
        a, b = (predict(p, prepare(group, p.cutoffs))[0] for p in (network, whole))
        assert (b.energy - a.energy > 1e-6) == differs
        assert (b.forces[1, 2] - a.forces[1, 2] > 1e-5) == differs
        if not differs:
            np.testing.assert_allclose(b.forces, a.forces, atol=1e-12)


def test_without_close_atoms_it_ends_at_the_covalent_radii_and_the_cutoff_at_the_latest():
    assert sum(term_of(2.9).radii) == pytest.approx(covalent_radius(14) + covalent_radius(29))
    assert term_of(2.9, model={"name": "nequip", "cutoff": 2.0}).cutoff == pytest.approx(2.0)


def test_none_is_wanted():
    term = term_of(2.0, zbl=False)
    network, _ = potentials(term_of(2.0))
    assert term is None and complete(network, None) is network
