"""Phonons of a crystal by finite displacements, with any ASE calculator; needs phonopy (the extra `phonons`)."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.cell import Cell

from .properties_crystal import repeats

TOLERANCE = 0.05  # THz: rounding of float32 forces moves a zero by 0.01, a soft mode lies far lower
SUPERCELL = 15.0  # A


class Phonons(NamedTuple):
    """Frequencies in THz; an imaginary one is written as a negative number.

    `lowest` is the least on the bands and on a mesh of the whole zone, at the point `lowest_at` (fractional), without
    the three acoustic modes at Gamma; `imaginary` whether it lies below -`tolerance`; `highest` the largest anywhere.
    The bands: `points` (k, 3) fractional, `distances` (k,) 1/A, `frequencies` (k, modes),
    `labels` [(distance, name)]; `special` the frequencies at each named point. `n_atoms` is that of the supercell.
    """

    lowest: float
    lowest_at: tuple[float, float, float]
    highest: float
    imaginary: bool
    tolerance: float
    n_atoms: int
    points: np.ndarray
    distances: np.ndarray
    frequencies: np.ndarray
    labels: list[tuple[float, str]]
    special: dict[str, list[float]]


def phonons(
    atoms: Atoms, calculator, *, repeat: int | tuple[int, int, int] | None = None, distance: float = 0.01,
    points: int = 150, mesh: int = 12, tolerance: float = TOLERANCE,
) -> Phonons:  # fmt: skip
    """Phonon frequencies along the standard path of the lattice and on a mesh; below zero the crystal is unstable.

        omega^2 e = D(q) e,   D(q) = 1/sqrt(M M') sum_R Phi(R) exp(i q R),   Phi from forces of displaced atoms

    Force constants have the symmetry of the crystal and obey the acoustic sum rule.

    Args:
        atoms: a crystal without forces, at the lattice constants wanted (left unchanged).
        calculator: any ASE calculator; forces in float64 if there is a choice.
        repeat: of the cell, for the supercell; None comes near 15 A along each axis. What reaches farther than half
            of it is folded back.
        distance: of the displacement, A.
        points: on the path. mesh: points along each axis of the zone.
        tolerance: THz.
    Raises:
        ModuleNotFoundError: phonopy is not installed.
        ValueError: not a crystal, or forces above 0.05 eV/A.

    Source: A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023); paths: W. Setyawan, S. Curtarolo, Comput. Mater. Sci. 49,
    299 (2010), by ase.lattice.
    """
    if not atoms.pbc.all() or not len(atoms):
        raise ValueError(f"phonons need a crystal; received {atoms.symbols}, pbc {atoms.pbc.tolist()}")
    for name, value in (("distance", distance), ("points", points), ("mesh", mesh)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0; received {value!r}")
    phonon, n_atoms = _force_constants(atoms, calculator, repeat or repeats(atoms, SUPERCELL), distance)
    path = Cell(phonon.primitive.cell).bandpath(npoints=points)
    frequencies = _frequencies(phonon, path.kpts)
    axis = (np.arange(mesh) + 0.5 * (mesh % 2 == 0)) / mesh  # off the planes of symmetry; Gamma is on the path
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    q = np.concatenate([path.kpts, grid])
    every = np.concatenate([frequencies, _frequencies(phonon, grid)])
    at_gamma = abs(q - np.rint(q)).max(1) < 1e-9
    for k in np.flatnonzero(at_gamma):
        every[k, np.argsort(abs(every[k]))[:3]] = np.inf
    k, mode = np.unravel_index(every.argmin(), every.shape)
    special = {name: _frequencies(phonon, [point])[0].tolist() for name, point in path.special_points.items()}
    x, ticks, names = path.get_linear_kpoint_axis()
    labels = [(float(tick), name) for tick, name in zip(ticks, names, strict=True)]
    lowest, highest = float(every[k, mode]), float(every[np.isfinite(every)].max())
    return Phonons(
        lowest, tuple(q[k].tolist()), highest, lowest < -tolerance, tolerance, n_atoms, path.kpts, x,
        frequencies, labels, special,
    )  # fmt: skip


def _force_constants(atoms: Atoms, calculator, repeat: int | tuple[int, int, int], distance: float):
    """A Phonopy object with force constants, and the number of atoms of its supercell."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    start = atoms.copy()
    start.calc = calculator
    left = float(abs(start.get_forces()).max())
    if not left <= 0.05:
        raise ValueError(f"phonons need relaxed atoms; a force of {left:.3g} eV/A is left")
    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions())
    matrix = np.diag(np.broadcast_to(repeat, 3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "primitive_matrix defaulted")  # phonopy 4 says so also where it was asked to
        phonon = Phonopy(cell, supercell_matrix=matrix, primitive_matrix="auto")
    phonon.generate_displacements(distance=distance)
    forces = []
    for moved in phonon.supercells_with_displacements:
        displaced = Atoms(numbers=moved.numbers, cell=moved.cell, scaled_positions=moved.scaled_positions, pbc=True)
        displaced.calc = calculator
        forces.append(displaced.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon, len(phonon.supercell)


def _frequencies(phonon, points) -> np.ndarray:
    phonon.run_qpoints(np.asarray(points))
    return np.array(phonon.qpoints.frequencies)
