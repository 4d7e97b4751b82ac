"""Energies of the low-index surfaces of a crystal, with any ASE calculator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import surface as cut

from .properties_crystal import check_crystal
from .relax import RelaxSettings, relax

LOW_INDEX = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
JOULE_PER_M2 = units.J / units.m**2  # in eV/A^2


class Surface(NamedTuple):
    """Energy in J/m^2 of an unreconstructed surface, relaxed and before; of a slab of `n_atoms`, `thickness` A."""

    miller: tuple[int, int, int]
    energy: float
    unrelaxed: float
    n_atoms: int
    thickness: float
    converged: bool


def surface(
    atoms: Atoms,
    calculator,
    miller: tuple[int, int, int] = (1, 0, 0),
    *,
    thickness: float = 12.0,
    vacuum: float = 10.0,
    fmax: float = 0.01,
) -> Surface:
    """The energy per area that it costs to cleave a crystal, each half keeping the smallest cell of its surface.

        gamma = (E(slab of N atoms) - N e_bulk) / (2 A)

    Between any two atomic planes the crystal could break; the cut that costs least before relaxation is taken. A cell
    of one surface unit cannot reconstruct, as Si(100) does by dimers. The mean of both sides counts where they differ.

    Args:
        atoms: a relaxed crystal of one element (left unchanged); the indices refer to its cell.
        calculator: any ASE calculator.
        miller: indices of the plane.
        thickness: A; the slab has the fewest periods of the crystal that fill it.
        vacuum: between slab and its image, A: more than the cutoff of the calculator changes nothing.
        fmax: eV/A.
    Raises:
        ValueError: not a crystal of one element, bad indices, thickness or vacuum.
    """
    check_crystal(atoms)
    if len(miller) != 3 or not any(miller) or any(int(index) != index for index in miller):
        raise ValueError(f"miller must be three whole numbers, not all zero; received {miller!r}")
    for name, value in (("thickness", thickness), ("vacuum", vacuum)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be a positive number of A; received {value!r}")
    bulk = atoms.copy()
    bulk.calc = calculator
    per_atom = bulk.get_potential_energy() / len(bulk)
    slabs = _slabs(atoms, miller, thickness, vacuum)
    for slab in slabs:
        slab.calc = calculator
    energies = [slab.get_potential_energy() for slab in slabs]
    best = slabs[int(np.argmin(energies))]
    result = relax(best, calculator, RelaxSettings(fmax=fmax))
    area = 2 * np.linalg.norm(np.cross(best.cell[0], best.cell[1])) * JOULE_PER_M2
    found = [(e - len(best) * per_atom) / area for e in (result.atoms.get_potential_energy(), min(energies))]
    height = float(np.ptp(best.positions[:, 2]))
    return Surface(tuple(int(i) for i in miller), *map(float, found), len(best), height, result.converged)


def _slabs(atoms: Atoms, miller: tuple[int, int, int], thickness: float, vacuum: float) -> list[Atoms]:
    """Slabs of equally many planes, one that begins at each of the planes of which the crystal's period is made."""
    one = cut(atoms, miller, 1)
    period = atoms.get_volume() * len(one) / len(atoms) / np.linalg.norm(np.cross(one.cell[0], one.cell[1]))
    layers = int(np.ceil(thickness / period))
    block = cut(atoms, miller, layers + 1)
    order = np.argsort(block.positions[:, 2], kind="stable")
    plane = np.cumsum(np.diff(block.positions[order, 2], prepend=-np.inf) > 1e-3) - 1
    count = (plane[-1] + 1) // (layers + 1)
    slabs = []
    for first in range(count):
        slab = block[order[(plane >= first) & (plane < first + count * layers)]]
        slab.center(vacuum=vacuum / 2, axis=2)
        slab.pbc = True
        slabs.append(slab)
    return slabs
