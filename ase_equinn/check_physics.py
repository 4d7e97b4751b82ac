"""What must hold for every potential: forces and stress are derivatives, symmetries are exact, nothing jumps.

Each check takes a Subject and returns (value, tolerance, unit, note).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from .runfiles import stress_or_none

EXACT = 1e-7  # eV, A: round-off of float64 sums over thousands of atoms is far below, a broken symmetry far above
NOTHING = float("inf")
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # of a first derivative, error of order h^4
Outcome = tuple[float, float, str, str]


class Evaluated(NamedTuple):
    """Energy eV, forces (n, 3) eV/A, stress (3, 3) eV/A^3 or None."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


@dataclass
class Subject:
    """What is judged: a calculator in float64, its float32 twin if it has one, and the structures to judge it on."""

    calculator: Any
    single: Any
    start: Atoms  # as given
    atoms: Atoms  # rattled and strained
    cutoffs: tuple[float, ...]
    isolated: dict[int, float]
    stored: list[Atoms]
    rng: np.random.Generator = field(repr=False)

    @cached_property
    def reference(self) -> Evaluated:
        return evaluate(self.calculator, self.atoms)

    @cached_property
    def scale(self) -> float:
        """The largest force component in eV/A, 1 at least: what differences of forces are measured by."""
        return max(1.0, float(abs(self.reference.forces).max()))

    @cached_property
    def jumps(self) -> tuple[tuple[float, str], tuple[float, str]]:
        return _jumps(self)


def evaluate(calculator, atoms: Atoms) -> Evaluated:
    """Results for a copy of the atoms."""
    atoms = atoms.copy()
    atoms.calc = calculator
    forces = atoms.get_forces()
    return Evaluated(atoms.get_potential_energy(), np.array(forces), stress_or_none(atoms))


def difference(a: Evaluated, b: Evaluated, n: int) -> float:
    """The largest difference of energy per atom, force component and stress component; in eV and A."""
    parts = [abs(a.energy - b.energy) / n, abs(a.forces - b.forces).max()]
    if a.stress is not None and b.stress is not None:
        parts.append(abs(a.stress - b.stress).max())
    return float(np.max(parts))


def checks(subject: Subject) -> list[tuple[str, Callable[[Subject], Outcome]]]:
    """The checks that apply to the structure at hand: stress, wrapping and supercells need periodicity."""
    found: list[tuple[str, Callable[[Subject], Outcome]]] = [("forces", forces)]
    if subject.atoms.pbc.all():
        found.append(("stress", stress))
    found += [("rotation", rotation), ("inversion", inversion), ("translation", translation)]
    found.append(("permutation", permutation))
    if subject.atoms.pbc.any():
        found += [("wrapping", wrapping), ("supercell", supercell)]
    found += [("repeatable", repeatable), ("isolated atoms", isolated_atoms)]
    found += [("energy at cutoff", energy_at_cutoff), ("forces at cutoff", forces_at_cutoff)]
    return found


# ---- derivatives


def _energy(subject: Subject, atoms: Atoms) -> float:
    atoms.calc = subject.calculator
    return atoms.get_potential_energy()


def forces(subject: Subject, h: float = 2e-4) -> Outcome:
    """The work along twelve directions, each of one atom, and along two of all atoms, is the energy that is lost."""
    atoms, n = subject.atoms, len(subject.atoms)
    picked = subject.rng.permutation(n)[:12]
    directions = np.zeros((len(picked) + 2, n, 3))
    for k, i in enumerate(picked):
        directions[k, i] = subject.rng.normal(size=3)
    directions[-2:] = subject.rng.normal(size=(2, n, 3))
    worst, where = 0.0, ""
    for k, direction in enumerate(directions):
        direction /= np.linalg.norm(direction)
        slope = 0.0
        for step, weight in STENCIL:
            moved = atoms.copy()
            moved.positions += step * h * direction
            slope += weight * _energy(subject, moved) / h
        error = abs(slope + (direction * subject.reference.forces).sum())
        if not error <= worst:
            worst, where = error, f"atom {picked[k]}" if k < len(picked) else "all atoms"
    return worst, 1e-5 * subject.scale, "eV/A", where


def stress(subject: Subject, h: float = 1e-4) -> Outcome:
    """All nine components of dE/dstrain / V, so that an energy that changes with a rotation of the cell is seen too."""
    atoms, volume = subject.atoms, subject.atoms.get_volume()
    given = subject.reference.stress
    if given is None:
        raise ValueError("the calculator gives no stress for a cell that is periodic in three directions")
    numerical = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for step, weight in STENCIL:
                strain = np.eye(3)
                strain[i, j] += step * h
                moved = atoms.copy()
                moved.set_cell(atoms.cell @ strain, scale_atoms=True)
                numerical[i, j] += weight * _energy(subject, moved) / (h * volume)
    scale = max(0.01, float(abs(given).max()))
    return float(abs(numerical - given).max()), 1e-5 * scale, "eV/A^3", f"largest {abs(given).max():.3f}"


# ---- symmetries


def _turned(subject: Subject, matrix: np.ndarray) -> Outcome:
    atoms = subject.atoms.copy()
    atoms.set_cell(atoms.cell @ matrix.T)
    atoms.positions = atoms.positions @ matrix.T
    was = subject.reference
    expected = Evaluated(
        was.energy, was.forces @ matrix.T, None if was.stress is None else matrix @ was.stress @ matrix.T
    )
    return _compare(subject, evaluate(subject.calculator, atoms), expected)


def _compare(subject: Subject, now: Evaluated, expected: Evaluated) -> Outcome:
    return difference(now, expected, len(subject.atoms)), EXACT * subject.scale, "eV, A", ""


def rotation(subject: Subject) -> Outcome:
    matrix, _ = np.linalg.qr(subject.rng.normal(size=(3, 3)))
    return _turned(subject, matrix * np.sign(np.linalg.det(matrix)))


def inversion(subject: Subject) -> Outcome:
    return _turned(subject, -np.eye(3))


def translation(subject: Subject) -> Outcome:
    atoms = subject.atoms.copy()
    atoms.positions += subject.rng.uniform(-30, 30, 3)
    return _compare(subject, evaluate(subject.calculator, atoms), subject.reference)


def permutation(subject: Subject) -> Outcome:
    order = subject.rng.permutation(len(subject.atoms))
    now, was = evaluate(subject.calculator, subject.atoms[order]), subject.reference
    return _compare(subject, now, was._replace(forces=was.forces[order]))


def wrapping(subject: Subject) -> Outcome:
    """Every atom moved by lattice vectors of its own."""
    atoms = subject.atoms.copy()
    shifts = subject.rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc
    atoms.positions += shifts @ np.array(atoms.cell)
    return _compare(subject, evaluate(subject.calculator, atoms), subject.reference)


def supercell(subject: Subject) -> Outcome:
    """Doubled along every periodic direction for few atoms, along the first one for many."""
    periods = np.where(subject.atoms.pbc, 2, 1)
    if len(subject.atoms) > 40:
        periods = np.where(np.arange(3) == np.argmax(subject.atoms.pbc), 2, 1)
    copies = int(np.prod(periods))
    now, was = evaluate(subject.calculator, subject.atoms.repeat(tuple(periods))), subject.reference
    expected = was._replace(forces=np.tile(was.forces, (copies, 1)))
    outcome = _compare(subject, now._replace(energy=now.energy / copies), expected)
    return *outcome[:3], "x".join(map(str, periods))


def repeatable(subject: Subject) -> Outcome:
    """The same atoms again after others, from the same calculator, which must not have changed the atoms."""
    atoms, other = subject.atoms.copy(), subject.atoms.copy()
    before = {name: values.copy() for name, values in atoms.arrays.items()}
    other.positions += subject.rng.normal(0, 0.3, other.positions.shape)
    evaluate(subject.calculator, other)
    atoms.calc = subject.calculator
    atoms.get_forces()
    changed = [name for name, values in before.items() if not np.array_equal(values, atoms.arrays[name])]
    if changed or set(atoms.arrays) != set(before):
        return NOTHING, 0.0, "eV, A", f"the calculator changed {', '.join(changed) or 'the arrays'} of the atoms"
    evaluate(subject.calculator, other)
    return _compare(subject, evaluate(subject.calculator, atoms), subject.reference)


# ---- limits


def isolated_atoms(subject: Subject) -> Outcome:
    """One atom has no force, and the energy that the file records for it; in a large periodic box too."""
    worst = 0.0
    for number in sorted(set(subject.isolated or subject.atoms.numbers.tolist())):
        free = evaluate(subject.calculator, Atoms(numbers=[number], positions=[[0.1, 0.2, 0.3]]))
        boxed = Atoms(numbers=[number], positions=[[0.1, 0.2, 0.3]], cell=[60.0] * 3, pbc=True)
        expected = Evaluated(subject.isolated.get(int(number), free.energy), np.zeros((1, 3)), np.zeros((3, 3)))
        for now in (free, evaluate(subject.calculator, boxed)):
            worst = float(np.max([worst, difference(now, expected, 1)]))
    return worst, EXACT, "eV, A", "vs file" if subject.isolated else "none on record"


def _crossings(subject: Subject) -> list[tuple[Atoms, int, np.ndarray, str]]:
    """Structures with one atom exactly at a cutoff from another: (atoms, index of the atom, direction, description)."""
    species = sorted(set(subject.isolated or subject.atoms.numbers.tolist()))
    found = []
    for pair in list(combinations_with_replacement(species, 2))[:10]:
        for cutoff in subject.cutoffs or (_range(subject, pair),):
            atoms = Atoms(numbers=pair, positions=[[0, 0, 0], [cutoff, 0, 0]])
            name = "".join(chemical_symbols[z] for z in pair)
            found.append((atoms, 1, np.array([1.0, 0, 0]), f"{name} at {cutoff:.3f} A"))
    cluster = subject.atoms.copy()
    cluster.pbc = False
    middle = cluster.positions.mean(0)
    i = int(np.linalg.norm(cluster.positions - middle, axis=1).argmin())
    for cutoff in subject.cutoffs or (_range(subject, (cluster.numbers[i],) * 2),):
        centre = cluster.positions[i]
        near = np.linalg.norm(cluster.positions - centre, axis=1) < cutoff - 2.0  # no closer to the probe than 2 A
        near[i] = True
        nearby = cluster[near]
        direction = subject.rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        probe = Atoms(numbers=[species[0]], positions=[centre + cutoff * direction])
        found.append((nearby + probe, len(nearby), direction, f"near {len(nearby)} at {cutoff:.3f} A"))
    return found


def _range(subject: Subject, pair: tuple[int, int]) -> float:
    """The distance beyond which a dimer's energy no longer changes, by bisection; for calculators of unknown cutoff."""

    def energy(r: float) -> float:
        return _energy(subject, Atoms(numbers=pair, positions=[[0, 0, 0], [r, 0, 0]]))

    inside, outside = float(covalent_radii[list(pair)].sum()), 30.0
    far = energy(outside)
    while outside - inside > 1e-9:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if energy(middle) == far else (middle, outside)
    return inside


def _jumps(subject: Subject, step: float = 1e-7) -> tuple[tuple[float, str], tuple[float, str]]:
    """Largest jump of the energy beyond the work done, and of a force, between `step` A before and after the cutoff."""
    energy, force = (0.0, ""), (0.0, "")
    for atoms, index, direction, name in _crossings(subject):
        sides = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[index] += sign * step * direction
            sides.append(evaluate(subject.calculator, moved))
        before, after = sides
        work = (before.forces[index] + after.forces[index]) @ direction * step
        energy = max(energy, (abs(after.energy - before.energy + work), name))
        force = max(force, (float(abs(after.forces - before.forces).max()), name))
    return energy, force


def energy_at_cutoff(subject: Subject) -> Outcome:
    value, name = subject.jumps[0]
    return value, 1e-6, "eV", name


def forces_at_cutoff(subject: Subject) -> Outcome:
    value, name = subject.jumps[1]
    return value, 1e-4, "eV/A", name
