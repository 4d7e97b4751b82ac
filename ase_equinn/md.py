"""Molecular dynamics that continues bitwise after a kill, with any ASE calculator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics

from .md_integrators import MEMORY, MDSettings, check_structure, conserved, initial_momenta, integrator
from .runfiles import (
    RunError,
    RunFileError,
    RunFolder,
    as_atoms,
    check_finite,
    check_same_atoms,
    get_memory,
    set_memory,
    stress_or_none,
)

COLUMNS = (
    "step",
    "time_fs",
    "potential_energy",
    "kinetic_energy",
    "total_energy",
    "conserved_energy",
    "temperature",
    "volume",
    "pressure_GPa",
)
MAX_DISPLACEMENT = 1.0  # A in one step: ten times what hydrogen at 5000 K does in 1 fs


class MDRun(NamedTuple):
    """The last structure (with its calculator) and the files of a run."""

    atoms: Atoms
    step: int
    log: Path
    trajectory: Path
    restart: Path


def md(
    atoms: Atoms | str | Path,
    calculator,
    settings: MDSettings | None = None,
    steps: int = 1000,
    *,
    output: str | Path = "md",
    existing: str = "refuse",
    progress: Callable[[int], None] | None = None,
) -> MDRun:
    """A run killed at any moment and resumed ends bitwise where an uninterrupted one ends, on the same machine.

    At most `restart_every` steps are repeated. This holds for calculators whose forces do not depend on history, such
    as EquiCalculator. Writes `md.csv` (eV, K, A^3, GPa), `md.xyz` (unwrapped positions) and `md.restart.npz`.

    Args:
        atoms: Atoms (left unchanged) or any file that ASE reads.
        calculator: any ASE calculator with energy and forces; `npt` needs stress.
        settings: None takes those of the restart file when resuming, else NVE with the structure's own momenta.
        steps: total number of steps, counted from the start of the run, resumed or not.
        output: folder.
        existing: files of an earlier run: `refuse` raises, `resume` continues it (or starts, where there is no restart
            file yet), `overwrite` starts anew.
        progress: called with the step number after each step.
    Raises:
        RunError: calculator error, numbers that are not finite, or an atom that moves more than 1 A in a step. The last
            restart file is intact and the message names its step.
    """
    folder = RunFolder(output, "md", COLUMNS, existing)
    found = folder.restart
    settings = _agreed(settings, found)
    structure = as_atoms(atoms)
    if found:
        check_same_atoms(structure, folder)
        if found.step > steps:
            raise ValueError(f"steps must be at least the {found.step} of {folder.restart_path}; received {steps}")
        structure = found.atoms
    else:
        check_structure(structure, settings)
    rng = np.random.default_rng(settings.seed)
    structure.calc = calculator
    if found:
        rng.bit_generator.state = found.rng
    else:
        initial_momenta(structure, settings, rng)
    try:
        folder.open()
        return _run(structure, settings, steps, folder, rng, progress)
    finally:
        folder.close()


def _agreed(settings: MDSettings | None, found) -> MDSettings:
    """The settings of a new or resumed run; a resumed one may change only how often it writes."""
    if not found:
        return settings or MDSettings()
    stored = MDSettings(**found.settings)
    if settings is None:
        return stored
    for field in fields(MDSettings):
        given, before = getattr(settings, field.name), getattr(stored, field.name)
        if given != before and not field.name.endswith("_every"):
            raise ValueError(f"the run to resume has {field.name} = {before!r}; received {given!r}")
    return settings


def _run(atoms, settings: MDSettings, steps: int, folder: RunFolder, rng, progress) -> MDRun:
    restart = folder.restart
    step, saved = (restart.step, restart.step) if restart else (0, None)
    try:
        dynamics = integrator(atoms, settings, rng)
        if restart:
            set_memory(dynamics, restart.state)
        else:
            _write(dynamics, settings, 0, folder)
            _save(dynamics, settings, 0, folder, rng)
            saved = 0
        while step < steps:
            before = atoms.positions.copy()
            dynamics.step()
            step += 1
            dynamics.nsteps = step
            _check_step(atoms, before, step)
            _write(dynamics, settings, step, folder)
            if step % settings.restart_every == 0 or step == steps:
                _save(dynamics, settings, step, folder, rng)
                saved = step
            if progress:
                progress(step)
    except (RunFileError, OSError):
        raise
    except Exception as error:
        kept = "no restart file yet" if saved is None else f"{folder.restart_path} holds step {saved}"
        reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        raise RunError(f"molecular dynamics stopped after step {step}: {reason} ({kept})") from error
    return MDRun(atoms, step, folder.paths["log"], folder.paths["trajectory"], folder.restart_path)


def _check_step(atoms: Atoms, before: np.ndarray, step: int) -> None:
    check_finite(atoms, f"at step {step}")
    moved = np.linalg.norm(atoms.positions - before, axis=1)
    i = int(moved.argmax())
    if moved[i] > MAX_DISPLACEMENT:
        raise RunError(
            f"atom {i} ({atoms.symbols[i]}) moved {moved[i]:.2f} A in one step: the run explodes. Try a shorter time "
            "step, a relaxed start, or check that the structure lies within what the potential was trained on"
        )


def _write(dynamics: MolecularDynamics, settings: MDSettings, step: int, folder: RunFolder) -> None:
    atoms, time = dynamics.atoms, step * settings.timestep
    if step % settings.log_every == 0:
        atoms.get_forces()  # before the energy: some calculators compute an energy alone with other roundings
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        stress = stress_or_none(atoms, include_ideal_gas=True)
        values = {
            "step": step,
            "time_fs": time,
            "potential_energy": potential,
            "kinetic_energy": kinetic,
            "total_energy": potential + kinetic,
            "conserved_energy": conserved(dynamics, settings.ensemble, potential + kinetic),
            "temperature": atoms.get_temperature(),
            "volume": atoms.get_volume() if atoms.cell.rank == 3 else None,
            "pressure_GPa": None if stress is None else -np.trace(stress) / 3 / units.GPa,
        }
        folder.row(values)
    if step % settings.frame_every == 0:
        folder.frame(atoms, step, time_fs=time)


def _save(dynamics: MolecularDynamics, settings: MDSettings, step: int, folder: RunFolder, rng) -> None:
    state = get_memory(dynamics, MEMORY[settings.ensemble])
    folder.save(dynamics.atoms, step, asdict(settings), state, rng.bit_generator.state)
