"""train_terms: the repulsive core is as wide as the labelled forces allow, labels are freed of it."""

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
from ase_equinn.terms.zbl import ZBL
from ase_equinn.train_config import load_config
from ase_equinn.train_terms import COST, complete, repulsion, without


def config_of(**options):
    return load_config({"data": {"train": "a.xyz"}, "output": "x"} | options)


def frames(distance, symbols="SiCu"):
    """Pairs at least `distance` apart."""
    pairs = [Atoms(symbols, [[0, 0, 0], [0, 0, d]]) for d in (distance, 3.0)]
    return [Frame(atoms, 0.0, np.zeros((2, 3)), None) for atoms in pairs]


def term_of(distance, **options):
    return repulsion(config_of(**options), (14, 29), prepare(frames(distance), [5.0]))


def test_a_core_of_no_labelled_forces_ends_at_the_shortest_distance():
    assert sum(term_of(1.8).radii) == pytest.approx(1.8)


@pytest.mark.parametrize("size", [0.3, 3.0, 1e5])
def test_the_core_is_as_wide_as_a_part_of_the_labelled_forces_allows(size):
    """Of the pair at 1.8 A: the other is too far to feel any core."""
    force = np.array([[0, 0, -size], [0, 0, size]])
    labelled = [frame._replace(forces=force) for frame in frames(1.8)]
    term = repulsion(config_of(), (14, 29), prepare(labelled, [5.0]))

    def felt(radii):
        found = predict(Potential([ZBL((14, 29), radii=radii).double()]), prepare(labelled, [5.0]))
        return np.sqrt(np.mean([part.forces**2 for part in found])) / (size / np.sqrt(3))

    assert 0 < felt(term.radii) <= COST
    if size == 1e5:  # nothing is wider than the covalent radii
        assert term.radii == pytest.approx([covalent_radius(14), covalent_radius(29)])
    else:
        assert felt([1.001 * radius for radius in term.radii]) > COST


def test_labels_are_those_of_the_network_and_the_sum_has_both():
    rng = np.random.default_rng(0)
    given = []
    for pbc in (True, False):
        atoms = Atoms("Si2Cu", rng.uniform(0, 2.0, (3, 3)) + np.eye(3), cell=np.eye(3) * 6, pbc=pbc)
        stress = rng.normal(size=(3, 3)) if pbc else None
        given.append(Frame(atoms, rng.normal(), rng.normal(size=(3, 3)), stress))
    term = term_of(2.0)  # of a training set whose atoms stay further apart, as those of a validation set may not
    bare = without(given, term)
    torch.manual_seed(0)
    network = Potential([NequIP([14, 29], 5.0, 4.0, irreps_hidden="4x0e+4x1o").double()], scale=2.0, shift=0.3)
    whole = complete(network, term)
    one, two = (
        predict(potential, prepare(group, potential.cutoffs)) for potential, group in ((network, bare), (whole, given))
    )
    assert max(abs(frame.energy - rest.energy) for frame, rest in zip(given, bare)) > 1e-3  # the core acts here
    for frame, rest, a, b in zip(given, bare, one, two):
        assert b.energy - frame.energy == pytest.approx(a.energy - rest.energy, abs=1e-9)
        np.testing.assert_allclose(b.forces - frame.forces, a.forces - rest.forces, atol=1e-9)
        assert (rest.stress is None) == (frame.stress is None)
        if frame.stress is not None:
            np.testing.assert_allclose(b.stress - frame.stress, a.stress - rest.stress, atol=1e-10)


def test_missing_labels_stay_missing():
    bare = without([frames(1.8)[0]._replace(energy=None, forces=None)], term_of(1.8))
    assert bare[0].energy is None and bare[0].forces is None


def test_without_close_atoms_it_ends_at_the_covalent_radii_and_the_cutoff_at_the_latest():
    assert sum(term_of(2.9).radii) == pytest.approx(covalent_radius(14) + covalent_radius(29))
    assert term_of(2.9, model={"name": "nequip", "cutoff": 2.0}).cutoff == pytest.approx(2.0)


def test_none_is_wanted():
    network = Potential([NequIP([14], 5.0, irreps_hidden="4x0e")])
    term, given = term_of(2.0, zbl=False), frames(2.0)
    assert term is None and complete(network, None) is network and without(given, None) == given
