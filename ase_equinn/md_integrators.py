"""The ensembles of `md`: which of ASE's integrators each one is, what it remembers, and how it starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, thermalize_momenta

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


def check_structure(atoms: Atoms, settings: MDSettings) -> None:
    """Raises ValueError for a structure that the ensemble cannot treat, naming what stands in the way."""
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms")
    ensemble, kinds = settings.ensemble, {type(item).__name__ for item in atoms.constraints}
    if ensemble == "npt" and not atoms.pbc.all():
        raise ValueError(f"npt needs a cell periodic in all three directions; received pbc {atoms.pbc.tolist()}")
    if kinds and ensemble in ("npt", "nvt-nhc"):
        raise ValueError(f"{ensemble} does not support constraints; received {', '.join(sorted(kinds))}")
    if ensemble == "nvt" and kinds - {"FixAtoms", "FixCartesian", "FixCom"}:
        raise ValueError(f"nvt supports fixed atoms only; received {', '.join(sorted(kinds))} (nvt-bussi takes any)")


def initial_momenta(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> None:
    """Draws momenta at exactly the temperature wanted, without drift of the whole; or keeps those of the structure."""
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


def integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> MolecularDynamics:
    """ASE's integrator for atoms that have their calculator and momenta."""
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


def conserved(dynamics: MolecularDynamics, ensemble: str, total: float) -> float | None:
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
