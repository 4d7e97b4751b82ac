"""Pairs of many structures at once are to the bit those of each alone, however the lists were kept."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_equinn.neighbors import neighbor_list
from ase_equinn.neighbors_batch import BatchNeighborList


def arrays(structures):
    positions = np.concatenate([atoms.positions for atoms in structures])
    cell = np.array([atoms.cell.array for atoms in structures])
    pbc = np.array([atoms.pbc for atoms in structures])
    return *map(torch.from_numpy, (positions, cell, pbc)), [len(atoms) for atoms in structures]


def assert_same(pairs, structures, cutoff):
    atom = edge = 0
    for atoms in structures:
        alone = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        n, e = len(atoms), len(alone.shift)
        assert torch.equal(pairs.edge_index[:, edge : edge + e] - atom, alone.edge_index)
        assert torch.equal(pairs.shift[edge : edge + e], alone.shift)
        assert torch.equal(pairs.vectors[edge : edge + e], alone.vectors)
        assert torch.equal(pairs.row_ptr[atom : atom + n + 1] - edge, alone.row_ptr)
        atom, edge = atom + n, edge + e
    assert pairs.edge_index.shape == (2, edge)


@pytest.fixture
def structures():
    wire = Atoms("He2", [[0, 0, 0], [0, 0, 1.0]], cell=[3, 0, 0], pbc=[1, 0, 0])
    slab = bulk("Cu", cubic=True)
    slab.pbc[2] = False
    return [bulk("Si"), molecule("CH3CH2OH"), slab, Atoms("Ar"), Atoms(), wire, bulk("Si", cubic=True) * (2, 1, 1)]


@pytest.mark.parametrize("skin", [0.0, 0.6])
def test_pairs_equal_those_of_each_structure_alone(structures, skin):
    """Atoms drift, swing and leave their cells, cells strain; some structures at each step, others stay."""
    rng = np.random.default_rng(0)
    lists = BatchNeighborList(5.0, skin)
    for _ in range(12):
        for atoms in structures:
            if rng.random() < 0.6:
                atoms.positions += rng.normal(0, 0.04, (len(atoms), 3)) + rng.normal(0, 1, 3)
            if rng.random() < 0.3 and atoms.pbc.all():
                atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
        assert_same(lists.update(*arrays(structures)), structures, 5.0)
    everything = 12 * len(structures)
    assert len(structures) < lists.n_builds < everything / 2 if skin else lists.n_builds > everything / 2


def test_a_skin_saves_searches_and_other_structures_cost_them(structures):
    lists = BatchNeighborList(4.0, 0.5)
    lists.update(*arrays(structures))
    assert lists.n_builds == len(structures)
    structures[0].positions[0] += 0.1
    lists.update(*arrays(structures))
    assert lists.n_builds == len(structures)
    structures[0].positions[0] += 0.5
    assert_same(lists.update(*arrays(structures)), structures, 4.0)
    assert lists.n_builds == len(structures) + 1
    swapped = [bulk("Ge"), *structures[1:]]  # as many atoms as Si, another cell
    assert_same(lists.update(*arrays(swapped)), swapped, 4.0)
    structures[0].pbc = False
    assert_same(lists.update(*arrays(structures)), structures, 4.0)
    assert_same(lists.update(*arrays(structures[::-1])), structures[::-1], 4.0)
    assert_same(lists.update(*arrays(structures[:2])), structures[:2], 4.0)


def test_what_cannot_be_searched_is_named(structures):
    lists = BatchNeighborList(4.0, 0.5)
    lists.update(*arrays(structures))
    structures[1].positions[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"structure 1: the position of atom 2 is not finite: \[.*nan"):
        lists.update(*arrays(structures))
    structures[1].positions[2, 1] = 0.0
    structures[6].cell[2] = structures[6].cell[1]
    with pytest.raises(ValueError, match="structure 6: .*span no volume"):
        lists.update(*arrays(structures))
    with pytest.raises(ValueError, match="2 structures have the shapes"):
        lists.update(*arrays(structures)[:3], [3, 4])
    for cutoff, skin in ((0.0, 0.0), (float("nan"), 0.0), (4.0, -1.0)):
        with pytest.raises(ValueError, match="number of A, got"):
            BatchNeighborList(cutoff, skin)
