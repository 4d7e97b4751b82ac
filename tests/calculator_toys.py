"""Potentials and structures that the tests of the calculator share."""

import numpy as np
import pytest
import torch
from ase import Atoms
from toy import Embedded, Pair

from ase_equinn.potential import Potential

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SPECIES = (6, 14)


def toy_potential(seed=0, scale=1.0, cutoffs=(4.0, 5.0), dtype=torch.float64) -> Potential:
    """A pair and a many-body model with two cutoffs, random weights and reference energies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = [Pair(SPECIES, cutoffs[0]), Embedded(SPECIES, cutoffs[1])]
    references = {6: -3.25 * scale, 14: 1.5 * scale}
    potential = Potential(models, scale=scale, reference_energies=references).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1 + 1e-9)  # weights that float32 cannot hold
    return potential.to(dtype=dtype)


def crystal(pbc=True, n=4, seed=0) -> Atoms:
    """A triclinic cell, shorter than every cutoff, of atoms on a jittered lattice, at least 1.2 A apart."""
    cell = np.array([[3.1, 0.2, 0.1], [0.9, 2.8, 0.3], [-0.4, 0.7, 3.3]])
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[:n]
    rng = np.random.default_rng(seed)
    numbers = np.resize([14, 6, 6], n)
    return Atoms(numbers, positions=sites @ cell + rng.uniform(-0.2, 0.2, (n, 3)), cell=cell, pbc=pbc)


def left_handed(pbc=True) -> Atoms:
    """`crystal` with two cell vectors exchanged: the same points in space."""
    atoms = crystal()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    atoms.pbc = pbc
    return atoms


def tiny() -> Atoms:
    return Atoms("Si", cell=[[0, 1.3, 1.3], [1.3, 0, 1.3], [1.3, 1.3, 0.1]], pbc=True)


def slab() -> Atoms:
    atoms = crystal(pbc=[True, True, False])
    atoms.cell[2] = 0
    return atoms


def wire() -> Atoms:
    return Atoms("Si2C", [[0, 0, 0.1], [0.4, 1.1, 1.2], [0.9, -0.8, 2.0]], cell=[0, 0, 2.9], pbc=[False, False, True])


def molecule() -> Atoms:
    return Atoms("C2Si2", [[0, 0, 0], [1.5, 0.1, 0.2], [-0.6, 1.6, 0.1], [0.3, -0.5, 1.9]])


def unwrapped() -> Atoms:
    atoms = crystal()
    atoms.positions += np.array([[3, -2, 1], [0, 0, -7], [-1, 5, 0], [0, 0, 0]]) @ atoms.cell.array
    return atoms


def no_edges() -> Atoms:
    return Atoms("CSi", [[0, 0, 0], [8, 8, 8]], cell=[16, 16, 16], pbc=True)


STRUCTURES = {
    "triclinic": crystal, "left-handed": left_handed, "tiny cell": tiny, "slab": slab, "wire": wire, "molecule": molecule,
    "single atom": lambda: Atoms("C"), "no edges": no_edges, "unwrapped": unwrapped,
}  # fmt: skip
