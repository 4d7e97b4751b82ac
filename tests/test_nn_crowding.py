"""nn_crowding: the sum over neighbours, for every pair of elements."""

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_equinn.graph import graph_and_vectors
from ase_equinn.nn_crowding import Crowding
from ase_equinn.radial_transforms import covalent_radius


def crowding(atoms, species, cutoff=4.0):
    graph, vectors = graph_and_vectors(atoms, cutoff)
    numbers = torch.tensor([list(species).index(z) for z in atoms.numbers])
    return Crowding(species, cutoff).double()(graph, vectors, numbers)


@pytest.mark.parametrize("species", [(6,), (1, 6, 8)])
def test_it_is_the_sum_over_neighbours(species):
    rng = np.random.default_rng(0)
    atoms = Atoms(numbers=rng.choice(species, 12), positions=rng.uniform(0, 5, (12, 3)))
    distances, radii = atoms.get_all_distances(), np.array([covalent_radius(z) for z in atoms.numbers])
    x = distances / 4.0
    envelope = np.where(x < 1, 1 - 21 * x**5 + 35 * x**6 - 15 * x**7, 0)
    for k, found in zip((6, 12), crowding(atoms, species)):
        terms = np.exp(-k * (distances / (radii[:, None] + radii) - 1)) * envelope
        np.fill_diagonal(terms, 0)
        np.testing.assert_allclose(found, terms.sum(1), rtol=1e-6)


def test_touching_atoms_count_one():
    atoms = Atoms("CO", [[0, 0, 0], [covalent_radius(6) + covalent_radius(8), 0, 0]])
    np.testing.assert_allclose(torch.stack(crowding(atoms, (6, 8))), np.ones((2, 2)), atol=0.1)


def test_atoms_at_one_place_are_finite():
    assert torch.isfinite(torch.stack(crowding(Atoms("C2", [[0, 0, 0], [1e-3, 0, 0]]), (6,)))).all()


def test_an_atom_alone_is_not_crowded():
    assert [sums.tolist() for sums in crowding(Atoms("C"), (6,))] == [[0.0], [0.0]]
