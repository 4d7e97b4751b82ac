"""Atoms pushed together, and hot dynamics: in a sound energy surface what comes too close is driven apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols

from .calculator import EquiCalculator
from .evaluator import Evaluator
from .md_integrators import MDSettings, initial_momenta, integrator
from .robustness_known import Hole, Known, closest, evaluate_each, pairs

NEAREST, STEP = 0.2, 0.02  # A, of the scan over distances
LENGTHS = np.linspace(1.0, 0.5, 51)  # of the compression, in units of the relaxed length
MAX_ATOMS = 64  # of the crystal in the hot run
MAX_MOVE = 1.0  # A in a step: the run explodes
COLLISION = 0.4  # of the sum of covalent radii: hot atoms come nearer than bonds are long, but not that near


class ScanResult(NamedTuple):
    """`turns`: A (or fraction of the length) where the energy stops to rise on the way in; `highest`: eV (per atom)."""

    name: str
    n_points: int
    turns: float | None
    highest: float
    holes: list[Hole]


class HotResult(NamedTuple):
    """`steps` that were done, `shortest` distance in units of the covalent radii, `force`: the largest, eV/A."""

    name: str
    steps: int
    shortest: float
    force: float
    temperature: float
    holes: list[Hole]


def scan_pairs(ready: Evaluator, known: Known) -> list[ScanResult]:
    """Two free atoms of each pair of elements, from 0.2 A to the cutoff: below what was seen they repel ever more."""
    found, alone = [], {}
    for a, b in pairs(known.molecule.numbers if known.molecule else ready.potential.species):
        lengths = np.arange(NEAREST, ready.potential.cutoff, STEP)[::-1]
        structures = [Atoms([a, b], [[0, 0, 0], [0.6 * r, 0.8 * r, 0]]) for r in lengths]
        energies = _energies(ready, structures)
        for z in {a, b} - alone.keys():
            alone[z] = float(_energies(ready, [Atoms([z], [[0, 0, 0]])])[0])
        name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
        unseen = lengths < known.short(a, b)
        found.append(_rising(name, structures, energies - alone[a] - alone[b], lengths, unseen, "A"))
    return found


def compress(ready: Evaluator, known: Known) -> list[ScanResult]:
    """A relaxed structure made smaller, down to half its length: its energy rises all the way."""
    found = []
    for structure in known.structures.values():
        structures = []
        for length in LENGTHS:
            atoms = Atoms(structure.numbers, structure.positions * length, cell=structure.cell, pbc=structure.pbc)
            atoms.set_cell(atoms.cell.array * length)
            structures.append(atoms)
        energies = _energies(ready, structures) / len(structure)
        formula = structure.symbols.formula
        name = str(formula.reduce()[0] if structure.pbc.any() else formula.convert("hill"))
        found.append(_rising(name, structures, energies - energies[0], LENGTHS, LENGTHS < 0.995, ""))
    return found


def _energies(ready: Evaluator, structures: list[Atoms]) -> np.ndarray:
    results = evaluate_each(ready, structures, gradient=False)
    return np.array([np.nan if result is None else result["energy"] for result in results])


def _rising(
    name: str, structures, energies: np.ndarray, where: np.ndarray, judged: np.ndarray, unit: str
) -> ScanResult:
    """The first point, on the way in, at which the energy falls, and how deep it falls, is the hole."""
    if not np.isfinite(energies).all():
        k = int(np.flatnonzero(~np.isfinite(energies))[0])
        hole = Hole("not finite", f"{name} at {where[k]:.2f} {unit}".rstrip(), structures[k])
        return ScanResult(name, len(where), float(where[k]), float(np.nanmax(energies)), [hole])
    falls = np.flatnonzero((np.diff(energies) < 0) & judged[1:])
    highest, holes = float(energies.max()), []
    if len(falls):
        first = int(falls[0])
        deepest = first + int(energies[first:].argmin())
        text = f"{name} falls below {where[first]:.2f} {unit}".rstrip()
        text += f" from {energies[first]:.2f} to {energies[deepest]:.2f} eV"
        holes.append(Hole("no repulsion", text, structures[deepest]))
    return ScanResult(name, len(where), float(where[falls[0]]) if len(falls) else None, highest, holes)


def run_hot(
    ready: Evaluator,
    known: Known,
    calculator: EquiCalculator,
    *,
    temperature: float = 3000.0,
    picoseconds: float = 10.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[HotResult]:
    """Langevin dynamics of each relaxed structure in its cell: no two atoms merge, nothing falls below the limit."""
    results = []
    for structure in known.structures.values():
        atoms = _larger(structure)
        timestep = 1.0 if atomic_masses[atoms.numbers].min() > 6 else 0.25
        settings = MDSettings("nvt", temperature, timestep, initial_temperature=temperature, seed=seed)
        rng, n_steps = np.random.default_rng(seed), round(1000 * picoseconds / timestep)
        atoms.calc = calculator
        initial_momenta(atoms, settings, rng)
        results.append(_hot(ready, known, atoms, integrator(atoms, settings, rng), n_steps, progress))
    return results


def _hot(ready: Evaluator, known: Known, atoms: Atoms, dynamics, n_steps: int, progress) -> HotResult:
    name, limit = str(atoms.symbols), known.limit(atoms)
    shortest, force, temperatures, hole = np.inf, 0.0, [], None
    done = 0
    while done < n_steps and hole is None:
        before = atoms.positions.copy()
        try:
            dynamics.step()
            forces, energy = atoms.get_forces(), atoms.get_potential_energy() / len(atoms)
        except (ValueError, RuntimeError) as error:
            atoms.positions = before
            hole = "not finite", f"{name} after {done} steps: {error}"
            break
        done += 1
        moved = float(np.linalg.norm(atoms.positions - before, axis=1).max())
        force = max(force, float(np.linalg.norm(forces, axis=1).max()))
        if done % 5 == 0 or moved > MAX_MOVE:
            pair = closest(ready, [atoms])[0]
            shortest = min(shortest, np.inf if pair is None else pair.ratio)
            temperatures.append(atoms.get_temperature())
        if moved > MAX_MOVE:
            hole = "explosion", f"{name}: an atom moves {moved:.1f} A in step {done}"
        elif energy < limit:
            hole = "energy", f"{name}: {limit - energy:.2f} eV/atom below the limit in step {done}"
        elif shortest < COLLISION:
            hole = "distance", f"{name}: {shortest:.2f} of the covalent radii in step {done}"
        if progress:
            progress(done, n_steps)
    holes = [Hole(*hole, _plain(atoms))] if hole else []
    half = temperatures[len(temperatures) // 2 :]
    return HotResult(name, done, shortest, force, float(np.mean(half)) if half else np.nan, holes)


def _larger(structure: Atoms) -> Atoms:
    """The molecule, or as many cells of the crystal as stay within 64 atoms, evenly along its vectors."""
    atoms = _plain(structure)
    if not atoms.pbc.all():
        return atoms
    counts = np.ones(3, int)
    while True:
        lengths = atoms.cell.lengths() * counts
        more = counts + (np.arange(3) == lengths.argmin())
        if len(atoms) * more.prod() > MAX_ATOMS:
            return atoms.repeat(tuple(int(c) for c in counts))
        counts = more


def _plain(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
