"""Relaxation of positions and cell that continues bitwise after a kill, with any ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from .potential_file import write_atomic
from .runfiles import (
    RunError,
    RunFileError,
    RunFolder,
    as_atoms,
    check_finite,
    check_same_atoms,
    frame_text,
    get_memory,
    set_memory,
    stress_or_none,
)

COLUMNS = ("step", "energy", "max_force", "max_stress_GPa", "volume")
OPTIMIZERS = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
CELLS = ("fixed", "isotropic", "full")
# What each optimizer remembers of earlier steps, by the names that ASE gives it.
MEMORY = {
    "bfgs": ("state.hessian", "pos0", "forces0"),
    "lbfgs": ("state.iteration", "state.s", "state.y", "state.rho", "r0", "f0"),
    "fire": ("vel", "dt", "a", "Nsteps"),
}


@dataclass(frozen=True)
class RelaxSettings:
    """When a structure counts as relaxed, and how it gets there.

    Args:
        fmax: largest length of a force left, eV/A.
        smax: largest stress component left (applied pressure taken off), GPa; unused where the cell is fixed.
        cell: `fixed`, `isotropic` (volume only) or `full` (six strains).
        pressure: applied, GPa.
        optimizer: `bfgs` (fewest steps, a dense Hessian: up to some hundred atoms), `lbfgs` or `fire` (most robust).
        restart_every: steps between restart files.
    """

    fmax: float = 0.01
    smax: float = 0.02
    cell: str = "fixed"
    pressure: float = 0.0
    optimizer: str = "lbfgs"
    restart_every: int = 10

    def __post_init__(self):
        for name, allowed in (("cell", CELLS), ("optimizer", tuple(OPTIMIZERS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; received {getattr(self, name)!r}")
        for name in ("fmax", "smax"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; received {getattr(self, name)!r}")
        if not np.isfinite(self.pressure):
            raise ValueError(f"pressure must be a number of GPa; received {self.pressure!r}")
        if self.restart_every < 1:
            raise ValueError(f"restart_every must be at least one step; received {self.restart_every!r}")


class Relaxed(NamedTuple):
    """The last structure (with its calculator); max_force in eV/A, max_stress in GPa or None for a fixed cell."""

    atoms: Atoms
    converged: bool
    steps: int
    max_force: float
    max_stress: float | None


def relax(
    atoms: Atoms | str | Path,
    calculator,
    settings: RelaxSettings | None = None,
    steps: int = 500,
    *,
    output: str | Path | None = None,
    existing: str = "refuse",
    progress: Callable[[int, float], None] | None = None,
) -> Relaxed:
    """The result has no force above fmax and, where the cell moves, no stress above smax, if `converged` is true.

    Args:
        atoms: Atoms (left unchanged) or any file that ASE reads. Constraints are respected.
        calculator: any ASE calculator with energy and forces; a moving cell needs stress.
        settings: None takes the defaults, or those of the restart file when resuming.
        steps: most steps in total, resumed or not.
        output: folder for `relax.csv`, `relax.xyz` (all steps), `relax.restart.npz` and `relaxed.xyz` (the result,
            written in one stroke at the end). None writes nothing.
        existing: files of an earlier run: `refuse` raises, `resume` continues bitwise, `overwrite` starts anew.
        progress: called with the step number and the largest force after each step.
    Raises:
        RunError: calculator error or numbers that are not finite; the last restart file is intact.
    """
    structure = as_atoms(atoms)
    if len(structure) == 0:
        raise ValueError("the structure has no atoms")
    folder = None if output is None else RunFolder(output, "relax", COLUMNS, existing)
    found = folder.restart if folder else None
    settings = _agreed(settings, found)
    if settings.cell != "fixed" and not structure.pbc.all():
        pbc = structure.pbc.tolist()
        raise ValueError(f"cell={settings.cell!r} needs a cell periodic in all three directions; received pbc {pbc}")
    if found:
        check_same_atoms(structure, folder)
        structure = found.atoms
    structure.calc = calculator
    try:
        if folder:
            folder.open()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "logm result may be inaccurate")  # by 1e-12, of ASE's cell filter
            result = _run(structure, settings, steps, folder, progress)
    finally:
        if folder:
            folder.close()
    if folder:
        write_atomic(folder.folder / "relaxed.xyz", frame_text(result.atoms, converged=result.converged).encode())
    return result


def _agreed(settings: RelaxSettings | None, found) -> RelaxSettings:
    """The settings of a new or resumed run; a resumed one may change its tolerances and how often it writes."""
    if not found:
        return settings or RelaxSettings()
    stored = RelaxSettings(**found.settings)
    if settings is None:
        return stored
    for field in fields(RelaxSettings):
        given, before = getattr(settings, field.name), getattr(stored, field.name)
        if given != before and field.name in ("cell", "pressure", "optimizer"):
            raise ValueError(f"the run to resume has {field.name} = {before!r}; received {given!r}")
    return settings


def optimizer_of(atoms: Atoms, settings: RelaxSettings, state: dict[str, np.ndarray]) -> Optimizer:
    """An optimizer on the atoms, or on atoms and cell; with the memory of a restart file if there is one."""
    target: Any = atoms
    if settings.cell != "fixed":
        cell = state.get("orig_cell", np.array(atoms.cell))
        # In x = factor * log(strain) a stiffness of 160 GPa has the curvature that ASE's optimizers expect of atoms.
        factor = max(4.0, (abs(np.linalg.det(cell)) * 160 * units.GPa / 70) ** 0.5)
        target = FrechetCellFilter(
            atoms,
            exp_cell_factor=factor,
            hydrostatic_strain=settings.cell == "isotropic",
            scalar_pressure=settings.pressure * units.GPa,
        )
        target.orig_cell = cell
    optimizer = OPTIMIZERS[settings.optimizer](target, logfile=None)
    memory = {name: value for name, value in state.items() if name != "orig_cell"}
    if not memory:
        return optimizer
    if settings.optimizer == "bfgs":
        optimizer.H0 = memory.pop("state.hessian")
        optimizer.update(memory["pos0"], memory["forces0"], None, None)  # the first update takes H0 as it is
    set_memory(optimizer, memory)
    if settings.optimizer == "lbfgs":
        for name in ("s", "y", "rho"):
            setattr(optimizer.state, name, list(getattr(optimizer.state, name)))
    return optimizer


def _memory(optimizer: Optimizer, settings: RelaxSettings) -> dict[str, Any]:
    """What the optimizer remembers of earlier steps; nothing before the first."""
    state = {} if optimizer.nsteps == 0 else get_memory(optimizer, MEMORY[settings.optimizer])
    if settings.cell != "fixed":
        state["orig_cell"] = np.array(optimizer.optimizable.filterobj.orig_cell)
    return state


def residual(atoms: Atoms, settings: RelaxSettings) -> tuple[float, float | None]:
    """The largest force in eV/A and, where the cell moves, the largest stress component in GPa."""
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    if settings.cell == "fixed":
        return force, None
    stress = atoms.get_stress(voigt=False) / units.GPa + settings.pressure * np.eye(3)
    if settings.cell == "isotropic":
        return force, float(abs(np.trace(stress)) / 3)
    return force, float(abs(stress).max())


def _run(atoms: Atoms, settings: RelaxSettings, steps: int, folder: RunFolder | None, progress) -> Relaxed:
    restart = folder.restart if folder else None
    step = restart.step if restart else 0
    try:
        optimizer = optimizer_of(atoms, settings, restart.state if restart else {})
        optimizer.nsteps = step
        force, stress = residual(atoms, settings)
        if folder and not restart:
            _write(optimizer, settings, force, stress, folder, atoms)
        while not (converged := force <= settings.fmax and (stress or 0.0) <= settings.smax) and step < steps:
            optimizer.step()
            step += 1
            optimizer.nsteps = step
            check_finite(atoms, f"at step {step}")
            force, stress = residual(atoms, settings)
            if folder:
                _write(optimizer, settings, force, stress, folder, atoms)
            if progress:
                progress(step, force)
    except (RunFileError, OSError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        raise RunError(f"relaxation stopped after step {step}: {reason}") from error
    return Relaxed(atoms, converged, step, force, stress)


def _write(optimizer: Optimizer, settings: RelaxSettings, force: float, stress: float | None, folder, atoms) -> None:
    step = optimizer.nsteps
    if stress is None:
        full = stress_or_none(atoms)
        stress = None if full is None else float(abs(full).max() / units.GPa)
    volume = atoms.get_volume() if atoms.cell.rank == 3 else None
    values = (step, atoms.get_potential_energy(), force, stress, volume)
    folder.row(dict(zip(COLUMNS, values, strict=True)))
    folder.frame(atoms, step)
    if step % settings.restart_every == 0:
        folder.save(atoms, step, asdict(settings), _memory(optimizer, settings))
