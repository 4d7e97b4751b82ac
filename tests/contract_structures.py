"""The structures on which tests/contract.py tries a model, and how it evaluates them."""

import numpy as np
import torch
from ase import Atoms

from ase_equinn.derivatives import derivatives, energy_only
from ase_equinn.graph import Graph, collate, from_atoms


def molecule(species) -> Atoms:
    """Seven atoms without symmetry, 1.0 to 3.6 A apart, every species among them."""
    positions = [[0, 0, 0], [1.1, 0.1, 0.2], [-0.4, 1.2, 0.1], [0.1, -0.9, 1.2], [1.9, 1.1, 0.4], [2.1, -0.3, -0.9],
                 [0.6, 0.7, -1.3]]  # fmt: skip
    return Atoms(np.resize(species, 7), positions)


def crystal(species) -> Atoms:
    """Four atoms without symmetry in a triclinic cell with edges of 3.1 to 3.7 A, less than the cutoff."""
    cell = [[3.1, 0.2, -0.3], [0.4, 3.4, 0.1], [-0.2, 0.5, 3.6]]
    scaled = [[0.02, 0.01, 0.97], [0.53, 0.48, 0.03], [0.47, 0.04, 0.52], [0.01, 0.55, 0.46]]
    return Atoms(np.resize(species, 4), scaled_positions=scaled, cell=cell, pbc=True)


def slab(species) -> Atoms:
    atoms = crystal(species)
    atoms.pbc = (True, True, False)
    return atoms


def one_atom_cell(species) -> Atoms:
    """All edges join the atom to its own images."""
    return Atoms([species[0]], [[0.3, 0.2, 0.1]], cell=[[2.4, 0.1, 0.0], [-0.3, 2.2, 0.2], [0.5, 0.1, 2.6]], pbc=True)


STRUCTURES = {"molecule": molecule, "crystal": crystal, "slab": slab, "one_atom_cell": one_atom_cell}


def rotation(seed: int = 0, determinant: int = 1) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix)) * determinant


def transformed(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell multiplied by a 3 x 3 matrix that acts on column vectors."""
    return Atoms(atoms.numbers, atoms.positions @ matrix.T, cell=atoms.cell.array @ matrix.T, pbc=atoms.pbc)


def moved(atoms: Atoms, displacement) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += displacement
    return atoms


def batch(potential, structures) -> tuple[tuple[Graph, ...], torch.Tensor]:
    graphs = [collate([from_atoms(a, cutoff) for a in structures]).to(potential.device) for cutoff in potential.cutoffs]
    positions = torch.tensor(np.concatenate([a.positions for a in structures]), device=potential.device)
    return tuple(graphs), positions


def evaluate(potential, *structures):
    """Energy, forces, ... of structures evaluated together, as numpy arrays."""
    return type(results := derivatives(potential, *batch(potential, structures)))(*(x.cpu().numpy() for x in results))


def energies(potential, structures) -> np.ndarray:
    """Energy of each structure, without any gradient."""
    graphs, positions = batch(potential, structures)
    node_energy = energy_only(potential, graphs, positions)
    return node_energy.new_zeros(len(structures)).index_add(0, graphs[0].batch, node_energy).cpu().numpy()


def deviation(actual, expected) -> float:
    """Largest difference relative to the largest expected value, which has to be large enough to mean something."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape and actual.size
    assert np.isfinite(actual).all() and np.isfinite(expected).all()
    assert np.abs(expected).max() > 1e-4
    return np.abs(actual - expected).max() / np.abs(expected).max()
