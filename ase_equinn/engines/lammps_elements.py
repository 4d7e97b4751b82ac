"""Which elements the atom types of a LAMMPS run are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

_TOLERANCE = 0.1  # amu


def numbers_of_types(lmp, species: Sequence[int], elements: Sequence[str] | None) -> list[int]:
    """The atomic number of each atom type, as named or by its mass.

    Args:
        lmp: lammps.lammps with a box.
        species: atomic numbers that the potential knows.
        elements: symbols of the types 1, 2, ...; None: the nearest by mass, within 0.1 amu.
    Raises:
        ValueError: not one element for each type, no such element, a mass that is none's, an element that the
            potential does not know.
    """
    n_types = lmp.extract_global("ntypes")
    if elements is None:
        masses = lmp.numpy.extract_atom("mass")
        numbers = [_by_mass(t, None if masses is None else float(masses[t])) for t in range(1, n_types + 1)]
    else:
        if len(elements) != n_types:
            raise ValueError(f"{n_types} atom types need as many elements, got {' '.join(elements) or 'none'}")
        unknown = [symbol for symbol in elements if symbol not in atomic_numbers or symbol == "X"]
        if unknown:
            raise ValueError(f"there is no element {unknown[0]!r}")
        numbers = [atomic_numbers[symbol] for symbol in elements]
    for t, number in enumerate(numbers, 1):
        if number not in species:
            known = ", ".join(chemical_symbols[z] for z in species)
            raise ValueError(f"atom type {t} is {chemical_symbols[number]}; the potential knows {known}")
    return numbers


def _by_mass(atom_type: int, mass: float | None) -> int:
    advice = "name the elements of the types (--elements)"
    if not mass:
        raise ValueError(f"atom type {atom_type} has no mass yet: put `mass` before the potential, or {advice}")
    number = int(np.nanargmin(np.abs(atomic_masses[1:] - mass))) + 1
    if abs(atomic_masses[number] - mass) > _TOLERANCE:
        nearest = f"{chemical_symbols[number]} has {atomic_masses[number]:.3f}"
        raise ValueError(f"atom type {atom_type} has mass {mass:g}, which is no element's ({nearest}): {advice}")
    return number
