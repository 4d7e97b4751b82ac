"""Molecular dynamics that continues bitwise after a kill, with any ASE calculator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, thermalize_momenta

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
# What each integrator remembers besides positions, momenta, cell and random state, by the names that ASE gives it.
MEMORY = {
    "nve": (),
    "nvt": (),
    "nvt-bussi": ("transferred_energy",),
    "nvt-nhc": ("_thermostat._eta", "_thermostat._p_eta"),
    "npt": (
        "_cell0",
        "_volume0",
        "_eps",
        "_p_eps",
        "_thermostat._eta",
        "_thermostat._p_eta",
        "_barostat._xi",
        "_barostat._p_xi",
    ),
}
MAX_DISPLACEMENT = 1.0  # A in one step: ten times what hydrogen at 5000 K does in 1 fs


@dataclass(frozen=True)
class MDSettings:
    """What is integrated and what is written; a resumed run must have the same settings, intervals excepted.

    Ensembles: `nve` (velocity Verlet), `nvt` (Langevin, BAOAB splitting), `nvt-bussi` (stochastic velocity rescaling),
    `nvt-nhc` (Nose-Hoover chain), `npt` (isotropic Martyna-Tobias-Klein).

    Args:
        ensemble: one of the names above.
        temperature: target in K; for `nve` the temperature at which momenta are drawn.
        timestep: fs.
        pressure: target in GPa, `npt` only.
        thermostat_time: damping time of the thermostat in fs.
        barostat_time: damping time of the barostat in fs.
        initial_temperature: K; momenta are drawn at exactly this temperature. None keeps the structure's own, or draws
            them at `temperature` where it has none. (A relaxed crystal ends near half of it: equipartition.)
        seed: of the momenta and the thermostat's noise.
        log_every, frame_every, restart_every: steps between rows, trajectory frames and restart files.
    """

    ensemble: str = "nve"
    temperature: float | None = None
    timestep: float = 1.0
    pressure: float = 0.0
    thermostat_time: float = 100.0
    barostat_time: float = 1000.0
    initial_temperature: float | None = None
    seed: int = 0
    log_every: int = 10
    frame_every: int = 100
    restart_every: int = 1000

    def __post_init__(self):
        if self.ensemble not in MEMORY:
            raise ValueError(f"ensemble must be one of {', '.join(MEMORY)}; received {self.ensemble!r}")
        for name in ("timestep", "thermostat_time", "barostat_time"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be a positive number of fs; received {getattr(self, name)!r}")
        for name in ("log_every", "frame_every", "restart_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least one step; received {getattr(self, name)!r}")
        for name in ("temperature", "initial_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise ValueError(f"{name} must be a number of K, 0 or more; received {value!r}")
        if self.ensemble != "nve" and not self.temperature:
            raise ValueError(f"{self.ensemble} needs a temperature above 0 K; received {self.temperature!r}")
        if not np.isfinite(self.pressure):
            raise ValueError(f"pressure must be a number of GPa; received {self.pressure!r}")


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
        _check_structure(structure, settings)
    rng = np.random.default_rng(settings.seed)
    structure.calc = calculator
    if found:
        rng.bit_generator.state = found.rng
    else:
        _initial_momenta(structure, settings, rng)
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


def _check_structure(atoms: Atoms, settings: MDSettings) -> None:
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms")
    ensemble, kinds = settings.ensemble, {type(item).__name__ for item in atoms.constraints}
    if ensemble == "npt" and not atoms.pbc.all():
        raise ValueError(f"npt needs a cell periodic in all three directions; received pbc {atoms.pbc.tolist()}")
    if kinds and ensemble in ("npt", "nvt-nhc"):
        raise ValueError(f"{ensemble} does not support constraints; received {', '.join(sorted(kinds))}")
    if ensemble == "nvt" and kinds - {"FixAtoms", "FixCartesian", "FixCom"}:
        raise ValueError(f"nvt supports fixed atoms only; received {', '.join(sorted(kinds))} (nvt-bussi takes any)")


def _initial_momenta(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> None:
    temperature = settings.initial_temperature
    if temperature is None:
        temperature = settings.temperature
        drawn = settings.ensemble == "nve" and temperature is not None
        if atoms.has("momenta") and atoms.get_momenta().any() and not drawn:
            return
    if temperature is None:
        raise ValueError("nve needs a temperature, or a structure with momenta")
    thermalize_momenta(atoms, temperature, exact_temperature=True, rng=rng)
    if temperature > 0 and len(atoms) > 1 and not atoms.constraints:
        Stationary(atoms)
    if settings.ensemble == "nvt-bussi" and not atoms.get_momenta().any():
        raise ValueError("nvt-bussi rescales velocities and cannot start at 0 K")


def _integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> MolecularDynamics:
    fs, temperature = units.fs, settings.temperature
    step, tdamp = settings.timestep * fs, settings.thermostat_time * fs
    if settings.ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, step)
    if settings.ensemble == "nvt":
        from ase.md.langevinbaoab import LangevinBAOAB

        return LangevinBAOAB(atoms, step, temperature_K=temperature, T_tau=tdamp, rng=rng)
    if settings.ensemble == "nvt-bussi":
        from ase.md.bussi import Bussi

        return Bussi(atoms, step, temperature_K=temperature, taut=tdamp, rng=rng)
    from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT

    if settings.ensemble == "nvt-nhc":
        return NoseHooverChainNVT(atoms, step, temperature_K=temperature, tdamp=tdamp)
    pressure, pdamp = settings.pressure * units.GPa, settings.barostat_time * fs
    return IsotropicMTKNPT(atoms, step, temperature_K=temperature, pressure_au=pressure, tdamp=tdamp, pdamp=pdamp)


def _run(atoms, settings: MDSettings, steps: int, folder: RunFolder, rng, progress) -> MDRun:
    restart = folder.restart
    step, saved = (restart.step, restart.step) if restart else (0, None)
    try:
        dynamics = _integrator(atoms, settings, rng)
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
            "conserved_energy": _conserved(dynamics, settings.ensemble, potential + kinetic),
            "temperature": atoms.get_temperature(),
            "volume": atoms.get_volume() if atoms.cell.rank == 3 else None,
            "pressure_GPa": None if stress is None else -np.trace(stress) / 3 / units.GPa,
        }
        folder.row(values)
    if step % settings.frame_every == 0:
        folder.frame(atoms, step, time_fs=time)


def _conserved(dynamics: MolecularDynamics, ensemble: str, total: float) -> float | None:
    """The energy that exact integration keeps constant, in eV; Langevin dynamics has none."""
    if ensemble == "nvt":
        return None
    if ensemble == "nve":
        return total
    if ensemble == "nvt-bussi":
        return total - dynamics.transferred_energy
    try:
        return dynamics.get_conserved_energy()
    except PropertyNotImplementedError:  # a calculator without free_energy
        return None


def _save(dynamics: MolecularDynamics, settings: MDSettings, step: int, folder: RunFolder, rng) -> None:
    state = get_memory(dynamics, MEMORY[settings.ensemble])
    folder.save(dynamics.atoms, step, asdict(settings), state, rng.bit_generator.state)
