"""Checks that a potential is sound: exact derivatives, exact symmetries, no jumps, stable dynamics."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols, covalent_radii
from ase.io import read
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from .check_physics import NOTHING, Subject, difference, evaluate
from .check_physics import checks as physics_checks
from .relax import RelaxSettings, relax
from .runfiles import as_atoms


class CheckResult(NamedTuple):
    """One line of the table: `value` must not exceed `tolerance`, both in `unit`; `note` says where or why."""

    name: str
    value: float
    tolerance: float
    passed: bool
    seconds: float
    unit: str
    note: str = ""


def check(
    model: Any,
    atoms: Atoms | str | Path | None = None,
    *,
    device: str = "auto",
    loosen: float = 1.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[CheckResult]:
    """Every result passes for a sound potential; each one fails for a calculator broken in the way that it looks for.

    Derivatives and symmetries are judged in float64, the dynamics in float32, as users run them.

    Args:
        model: a potential (folder, file, shipped name, Potential), an EquiCalculator, or any other ASE calculator,
            which is judged in the precision that it has.
        atoms: structure, or a file that ASE reads. None takes the first of check.xyz in the potential's folder, or a
            crystal made of its elements. Forces and symmetries are judged on a rattled and strained copy.
        device: for the calculators that are built here.
        loosen: factor on all tolerances; some 1e4 suits a calculator that works in float32 throughout.
        seed: of the displacements, rotations and momenta.
        progress: called with the name of a check, its number and how many there are, before it starts.
    Returns:
        One CheckResult each; an exception within a check is its failure, with the message as note.
    Raises:
        ValueError: an element that the potential does not know, or a plain calculator without a structure.
    """
    subject = _subject(model, atoms, device, np.random.default_rng(seed))
    todo = [*physics_checks(subject), ("NVE drift", _nve_drift)]
    if subject.single is not None:
        todo += [("float32 energy", _float32_energy), ("float32 forces", _float32_forces)]
    if subject.stored:
        todo += [("stored values", _stored_values)]
    results = []
    for number, (name, function) in enumerate(todo):
        if progress:
            progress(name, number, len(todo))
        start = perf_counter()
        try:
            value, tolerance, unit, note = function(subject)
        except Exception as error:
            value, tolerance, unit, note = float("nan"), float("nan"), "", f"{type(error).__name__}: {error}"
        tolerance *= loosen
        passed = bool(value <= tolerance)
        results.append(CheckResult(name, float(value), float(tolerance), passed, perf_counter() - start, unit, note))
    return results


def as_dict(results: list[CheckResult]) -> dict:
    """`passed` for all together, and `checks`, one dict each; JSON can hold it (a value that is not finite is None)."""
    checks = [result._asdict() for result in results]
    for entry in checks:
        for key in ("value", "tolerance"):
            entry[key] = entry[key] if np.isfinite(entry[key]) else None
    report = {"passed": all(result.passed for result in results), "checks": checks}
    json.dumps(report, allow_nan=False)
    return report


def check_table(results: list[CheckResult]):
    """The results as a rich table."""
    from rich.table import Table

    table = Table("check", "value", "at most", "unit", "s", "", "note")
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    for column in table.columns[:-1]:
        column.no_wrap = True
    for r in results:
        mark = "[green]pass[/green]" if r.passed else "[bold red]FAIL[/bold red]"
        note = r.note.replace("[", r"\[")
        table.add_row(r.name, f"{r.value:.1e}", f"{r.tolerance:.1e}", r.unit, f"{r.seconds:.1f}", mark, note)
    return table


# ---- what is judged


def _subject(model: Any, structure, device: str, rng: np.random.Generator) -> Subject:
    single, isolated, cutoffs, stored = None, {}, (), []
    if isinstance(model, BaseCalculator):
        double = model
    else:
        from .calculator import EquiCalculator

        double = EquiCalculator(model, device=device, dtype="float64")
        stored = _check_frames(model)
    if hasattr(double, "potentials"):
        double, single = copy.deepcopy(double), copy.deepcopy(double)
        double.set(dtype="float64")
        single.set(dtype="float32")
        isolated, cutoffs = _of_potentials(double.potentials)
    if structure is not None:
        start = as_atoms(structure)
    elif stored:
        start = stored[0].copy()
    elif isolated:
        start = crystal_of(sorted(isolated), rng)
    else:
        raise ValueError("a calculator that is not an EquiCalculator needs a structure to be judged on")
    if len(start) == 0:
        raise ValueError("the structure has no atoms")
    unknown = sorted(set(start.numbers.tolist()) - set(isolated))
    if isolated and unknown:
        symbols = [chemical_symbols[z] for z in unknown]
        raise ValueError(f"the potential does not know {', '.join(symbols)} of the structure {start.symbols}")
    start.set_constraint()
    return Subject(double, single, start, rattled(start, rng), cutoffs, isolated, stored, rng)


def _of_potentials(potentials) -> tuple[dict[int, float], tuple[float, ...]]:
    """Energies of isolated atoms that the potentials record (the mean of a committee), and all cutoffs."""
    species = set.intersection(*(set(p.species) for p in potentials))
    isolated = {z: float(np.mean([p.isolated_energy(z) for p in potentials])) for z in sorted(species)}
    return isolated, tuple(sorted({c for p in potentials for c in p.cutoffs}))


def _check_frames(model: Any) -> list[Atoms]:
    """The frames of check.xyz beside a potential's file, if there is one."""
    from .potential import find_potential

    if not isinstance(model, (str, Path)):
        return []
    path = find_potential(model).parent / "check.xyz"
    return read(path, ":") if path.is_file() else []


def crystal_of(numbers: list[int], rng: np.random.Generator) -> Atoms:
    """The element's own cubic crystal where ASE knows it; else a simple cubic one with the elements mixed at random."""
    if len(numbers) == 1:
        try:
            atoms = bulk(chemical_symbols[numbers[0]], cubic=True)
        except (ValueError, RuntimeError, KeyError):
            pass
        else:
            return atoms.repeat((2, 2, 2)) if len(atoms) < 8 else atoms.repeat((2, 1, 1))
    spacing = max(1.6, 2.1 * max(covalent_radii[z] for z in numbers))
    atoms = bulk("Po", "sc", a=spacing).repeat((3, 3, 3))
    atoms.numbers = rng.permutation(np.resize(numbers, len(atoms)))
    return atoms


def rattled(atoms: Atoms, rng: np.random.Generator, displacement: float = 0.08, strain: float = 0.02) -> Atoms:
    """A copy without symmetry: atoms moved by `displacement` A (rms per axis), a periodic cell strained at random."""
    atoms = atoms.copy()
    if atoms.pbc.all():
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain * rng.uniform(-1, 1, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, displacement, atoms.positions.shape)
    return atoms


# ---- checks that need a second calculator, a run, or a file


def _float32_energy(subject: Subject):
    energy = evaluate(subject.single, subject.atoms).energy - subject.reference.energy
    return abs(energy) / len(subject.atoms), 2e-5, "eV/atom", "vs float64"


def _float32_forces(subject: Subject):
    forces = evaluate(subject.single, subject.atoms).forces
    return abs(forces - subject.reference.forces).max(), 2e-4 * subject.scale, "eV/A", "vs float64"


def _stored_values(subject: Subject):
    """Largest difference from any energy per atom, force or stress in check.xyz."""
    worst, compared = 0.0, 0
    for frame in subject.stored:
        if frame.calc is None:
            continue
        results, now = frame.calc.results, evaluate(subject.calculator, frame)
        stress = frame.get_stress(voigt=False) if "stress" in results else None
        stored = now._replace(energy=results.get("energy", now.energy), forces=results.get("forces", now.forces))
        worst = max(worst, difference(now, stored._replace(stress=stress), len(frame)))
        compared += 1
    if compared == 0:
        raise ValueError("check.xyz holds no energies")
    return worst, 1e-4, "eV, A", f"{compared} structures"


def _nve_drift(subject: Subject):
    """Slope of a line through the total energy of the last 180 of 240 steps, from a relaxed start at 300 K."""
    calculator = subject.single or subject.calculator
    atoms = relax(subject.start, calculator, RelaxSettings(fmax=0.05), steps=100).atoms
    step = 1.0 if atoms.get_masses().min() > 6 else 0.25
    thermalize_momenta(atoms, 600, exact_temperature=True, rng=subject.rng)
    if len(atoms) > 1:
        Stationary(atoms)
    dynamics, times, energies = VelocityVerlet(atoms, step * units.fs), [], []
    for n in range(240):
        dynamics.step()
        if n >= 60:
            times.append(n * step / 1000)
            energies.append(atoms.get_total_energy())
    if not np.isfinite(energies).all():
        return NOTHING, 0.0, "eV/atom/ps", "the energy is not finite"
    slope = np.polyfit(times, energies, 1)[0] / len(atoms)
    return abs(slope), 1e-3, "eV/atom/ps", f"{step} fs, 300 K, {len(atoms)} atoms"
