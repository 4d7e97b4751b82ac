"""An element's crystal: its cell, lattice constants, bulk modulus and vacancy, with any ASE calculator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states

from .elastic import EquationOfState, equation_of_state
from .relax import RelaxSettings, relax
from .runfiles import stress_or_none

STRUCTURES = ("diamond", "fcc", "bcc", "hcp")
# Lattice constant over the distance of nearest neighbours.
RATIO = {"diamond": 4 / 3**0.5, "fcc": 2**0.5, "bcc": 2 / 3**0.5, "hcp": 1.0}


class Lattice(NamedTuple):
    """Where a crystal has its lowest energy, and where it has no stress.

    `atoms` is the cell of lowest energy, `lengths` its three in A; `lengths_stress` those at which the pressure is zero
    (None for a calculator without stress). Equal for a potential within the fit; see EquationOfState for when not.
    `energy` eV/atom, `volume` A^3/atom, bulk moduli GPa, `eos` the fit itself.
    """

    atoms: Atoms
    lengths: tuple[float, float, float]
    lengths_stress: tuple[float, float, float] | None
    energy: float
    volume: float
    bulk_modulus: float
    bulk_modulus_stress: float | None
    eos: EquationOfState


class Vacancy(NamedTuple):
    """Formation energy in eV with the atoms around it relaxed, and before; of `n_atoms` in the perfect supercell.

    `max_force` eV/A is what was left after `steps`; `converged` whether it is below the fmax asked for.
    """

    energy: float
    unrelaxed: float
    n_atoms: int
    steps: int
    max_force: float
    converged: bool


def crystal(symbol: str, structure: str | None = None) -> Atoms:
    """The conventional cell (8, 4 or 2 atoms) of an element in the structure of its reference state, or in another.

    Lattice constants are those of the reference state, or guessed from the covalent radius: a start for `lattice`.

    Args:
        symbol: chemical symbol.
        structure: diamond, fcc, bcc or hcp; None takes the reference state.
    Raises:
        ValueError: unknown symbol or structure, or an element whose reference state is none of the four.

    Source: ase.data.reference_states.
    """
    if symbol not in atomic_numbers or not atomic_numbers[symbol]:
        raise ValueError(f"{symbol!r} is not the symbol of an element")
    reference = reference_states[atomic_numbers[symbol]] or {}
    name = structure or reference.get("symmetry")
    if name not in STRUCTURES:
        if structure is None:
            raise ValueError(f"the reference state of {symbol} is {name!r}: choose one of {', '.join(STRUCTURES)}")
        raise ValueError(f"the structure must be one of {', '.join(STRUCTURES)}; received {structure!r}")
    known = name == reference.get("symmetry")
    a = reference["a"] if known else 2 * covalent_radii[atomic_numbers[symbol]] * RATIO[name]
    if name == "hcp":
        covera = reference.get("c/a", (8 / 3) ** 0.5) if known else (8 / 3) ** 0.5
        return bulk(symbol, "hcp", a=a, covera=covera)
    return bulk(symbol, name, a=a, cubic=True)


def check_crystal(atoms: Atoms) -> None:
    """Raises ValueError unless the atoms are those of one element, periodic in three directions."""
    if len(set(atoms.numbers.tolist())) != 1 or not atoms.pbc.all():
        found = f"{atoms.symbols}, pbc {atoms.pbc.tolist()}"
        raise ValueError(f"needs a crystal of one element, periodic in three directions; received {found}")


def neighbor_distance(atoms: Atoms) -> float:
    """The shortest distance between two atoms of a periodic structure, images included, in A."""
    from ase.neighborlist import neighbor_list

    cutoff = 1.5 * (atoms.get_volume() / len(atoms)) ** (1 / 3)
    while not len(distances := neighbor_list("d", atoms, cutoff)):
        cutoff *= 1.5
    return float(distances.min())


def lattice(atoms: Atoms, calculator) -> Lattice:
    """Lattice constants twice: from the minimum of the energies, and from the zero of the pressure.

    A crystal that symmetry does not hold in place (a force above 0.1 meV/A, a shear above 1 MPa, as for the c/a of
    hcp) is relaxed first, cell and atoms, and then at every volume of the fit, at which the shape of the cell is kept.

    Args:
        atoms: a crystal of one element (left unchanged), within some 15 % of its lattice constants.
        calculator: any ASE calculator; with stress for crystals that are not held in place by symmetry.
    Raises:
        ValueError: bad structure, no minimum found, or a relaxation that did not converge.

    Source: see elastic.equation_of_state.
    """
    check_crystal(atoms)
    free = not _held_by_symmetry(atoms, calculator)
    start = atoms
    if free:
        settings = RelaxSettings(fmax=1e-3, smax=1e-3, cell="full", optimizer="bfgs")
        result = relax(atoms, calculator, settings, steps=300)
        if not result.converged:
            left = f"{result.max_force:.2e} eV/A and {result.max_stress:.2e} GPa are left"
            raise ValueError(f"{atoms.symbols} did not relax in {result.steps} steps: {left}")
        start = result.atoms
    eos = equation_of_state(start, calculator, relaxed=free)
    cell = start.copy()
    cell.set_cell(start.cell * eos.scale, scale_atoms=True)
    lengths = start.cell.lengths()
    zero = None if eos.scale_stress is None else tuple((lengths * eos.scale_stress).tolist())
    return Lattice(
        cell, tuple((lengths * eos.scale).tolist()), zero, eos.energy / len(atoms), eos.volume / len(atoms),
        eos.bulk_modulus, eos.bulk_modulus_stress, eos,
    )  # fmt: skip


def _held_by_symmetry(atoms: Atoms, calculator) -> bool:
    """No forces, and a stress that is a pressure."""
    probe = atoms.copy()
    probe.calc = calculator
    stress = stress_or_none(probe)
    shear = 0.0 if stress is None else float(abs(stress - np.trace(stress) / 3 * np.eye(3)).max())
    return bool(abs(probe.get_forces()).max() < 1e-4 and shear < 1e-3 * units.GPa)


def repeats(atoms: Atoms, length: float) -> tuple[int, int, int]:
    """How often to repeat a cell along its axes to come near `length` A along each; at least once."""
    return tuple(max(1, round(length / side)) for side in atoms.cell.lengths().tolist())


def vacancy(
    atoms: Atoms, calculator, *, repeat: int | tuple[int, int, int] | None = None, fmax: float = 0.01, steps: int = 500
) -> Vacancy:
    """The energy that it costs to take one atom out of a crystal and put it back into the bulk, at constant volume.

        E_f = E(N - 1 atoms, relaxed) - (N - 1)/N E(N atoms)

    The atoms start off their sites by 0.02 A (a fixed draw): else the relaxation would keep the symmetry of the ideal
    vacancy, also where a distorted one is lower. Energies of a vacancy and its images are not corrected for.

    Args:
        atoms: a relaxed crystal of one element (left unchanged); its first atom is taken out.
        calculator: any ASE calculator.
        repeat: of the cell; None takes 3, for cells longer than 5.5 A less, down to 1 from 11 A on.
        fmax: eV/A. steps: most of the relaxation.
    Raises:
        ValueError: not a crystal of one element, or a supercell of one atom.
    """
    check_crystal(atoms)
    if repeat is None:
        repeat = tuple(max(1, min(3, round(16.5 / side))) for side in atoms.cell.lengths().tolist())
    perfect = atoms.repeat(repeat)
    n = len(perfect)
    if n < 2:
        raise ValueError(f"a supercell of one atom has none left around the vacancy; received repeat={repeat!r}")
    perfect.calc = calculator
    bulk_energy = perfect.get_potential_energy() * (n - 1) / n
    hole = perfect.copy()
    del hole[0]
    hole.calc = calculator
    unrelaxed = hole.get_potential_energy() - bulk_energy
    hole.rattle(0.02, seed=1)
    result = relax(hole, calculator, RelaxSettings(fmax=fmax), steps)
    energy = result.atoms.get_potential_energy() - bulk_energy
    return Vacancy(float(energy), float(unrelaxed), n, result.steps, result.max_force, result.converged)
