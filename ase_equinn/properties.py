"""`equinn properties`: what a potential says about an element's crystal and liquid, as one report."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from .elastic import ElasticConstants, elastic_constants
from .properties_crystal import STRUCTURES, Lattice, Vacancy, check_crystal, crystal, lattice, vacancy
from .properties_md import Stability, stability
from .properties_phonons import Phonons, phonons
from .properties_surface import LOW_INDEX, Surface, surface
from .runfiles import RunError, as_atoms

FMAX = 5e-4  # eV/A: relaxed ions; float32 forces reach it


class Properties(NamedTuple):
    """Everything that was measured. None or missing: not asked for, failed (`failed` has the reason), or `skipped`."""

    name: str
    lattice: Lattice
    clamped: ElasticConstants | None
    relaxed: ElasticConstants | None
    vacancy: Vacancy | None
    surfaces: list[Surface]
    phonons: Phonons | None
    dynamics: list[Stability]
    failed: list[str]
    skipped: list[str]
    seconds: float


class Row(NamedTuple):
    """One number of the report."""

    quantity: str
    value: float | str
    unit: str


class _Parts:
    """Runs the parts of a report; one that fails leaves its reason, and the others still run."""

    def __init__(self, report: Callable[[str, int, int], None] | None, shares: dict[str, int]):
        self.report, self.shares, self.failed = report, shares, []

    def advance(self, name: str, fraction: float) -> None:
        if self.report:
            names = list(self.shares)
            before = sum(self.shares[key] for key in names[: names.index(name)])
            self.report(name, before + round(fraction * self.shares[name]), sum(self.shares.values()))

    def run(self, name: str, function: Callable, *args, **kwargs) -> Any:
        self.advance(name, 0.0)
        try:
            return function(*args, **kwargs)
        except (ValueError, RunError, NotImplementedError) as error:
            self.failed.append(f"{name}: {error}")
            return None
        finally:
            self.advance(name, 1.0)


def properties(
    potential: Any,
    symbol: str | None = None,
    *,
    structure: str | Path | Atoms | None = None,
    solid: float | None = None,
    liquid: float | None = None,
    time: float = 10.0,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Properties:
    """Lattice, elastic constants, vacancy, surfaces, phonons and stability of an element's crystal, by a potential.

    Args:
        potential: see EquiCalculator (float64 for the crystal, float32 for the dynamics); or any ASE calculator.
        symbol: element; None takes that of the structure, or of a potential that knows one only.
        structure: diamond, fcc, bcc, hcp, Atoms, or a file; None takes the element's reference state.
        solid, liquid: K, at which a crystal and a liquid are run for `time` ps each; None leaves them out.
        device: for calculators that are built here.
        progress: called with (name of the part, done, total).
    Raises:
        ValueError: bad input, or no lattice constant. Other parts that fail leave their reason in `failed`.
    """
    begin = perf_counter()
    for name, value in (("solid", solid), ("liquid", liquid)):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name} must be a temperature above 0 K; received {value!r}")
    if not 0 < time < np.inf:
        raise ValueError(f"time must be a positive number of ps; received {time!r}")
    fine, fast = _calculators(potential, device)
    name, start = _start(fine, symbol, structure)
    heats = {f"{state} at {kelvin} K": kelvin for state, kelvin in (("crystal", solid), ("liquid", liquid)) if kelvin}
    shares = {"lattice": 3, "elastic, clamped": 3, "elastic, relaxed": 10, "vacancy": 10}
    shares |= {f"surface {miller}": 2 for miller in LOW_INDEX} | {"phonons": 15}
    parts = _Parts(progress, shares | {label: max(20, round(10 * time)) for label in heats})
    parts.advance("lattice", 0.0)
    found = lattice(start, fine)
    cell = found.atoms
    clamped = parts.run("elastic, clamped", elastic_constants, cell, fine)
    relaxed = parts.run("elastic, relaxed", elastic_constants, cell, fine, relaxed=True, fmax=FMAX)
    hole = parts.run("vacancy", vacancy, cell, fine)
    planes = LOW_INDEX if _cubic(cell) else ()
    faces = [parts.run(f"surface {miller}", surface, cell, fine, miller) for miller in planes]
    skipped = [] if planes else ["surfaces: their indices are those of a cubic cell"]
    waves = None
    if find_spec("phonopy"):
        waves = parts.run("phonons", phonons, cell, fine)
    else:
        skipped.append('phonons: phonopy is not installed; it comes with: pip install "ase_equinn[phonons]"')
    runs = [_dynamics(parts, label, cell, fast, kelvin, time) for label, kelvin in heats.items()]
    faces, runs = [face for face in faces if face], [run for run in runs if run]
    if hole and not hole.converged:
        parts.failed.append(f"vacancy: {hole.max_force:.3f} eV/A are left after {hole.steps} steps")
    parts.failed += [f"surface {face.miller}: not relaxed in 500 steps" for face in faces if not face.converged]
    seconds = perf_counter() - begin
    return Properties(name, found, clamped, relaxed, hole, faces, waves, runs, parts.failed, skipped, seconds)


def _dynamics(parts: _Parts, label: str, cell: Atoms, calculator, kelvin: float, time: float) -> Stability | None:
    return parts.run(
        label, stability, cell, calculator, kelvin, liquid=label.startswith("liquid"), time=time,
        progress=lambda done, total: parts.advance(label, done / total),
    )  # fmt: skip


def _calculators(potential: Any, device: str) -> tuple[Any, Any]:
    """For small differences, and for long runs."""
    if isinstance(potential, BaseCalculator):
        return potential, potential
    from .calculator import EquiCalculator

    return tuple(EquiCalculator(potential, device=device, dtype=dtype) for dtype in ("float64", "float32"))


def _start(calculator, symbol: str | None, structure: Any) -> tuple[str, Atoms]:
    """Name and cell of the crystal to measure."""
    if structure is not None and structure not in STRUCTURES:
        if isinstance(structure, str) and not Path(structure).exists():
            raise ValueError(f"structure must be a file or one of {', '.join(STRUCTURES)}; received {structure!r}")
        atoms = as_atoms(structure)
        check_crystal(atoms)
        if symbol not in (None, atoms.get_chemical_symbols()[0]):
            raise ValueError(f"the structure is of {atoms.symbols}; received symbol {symbol!r}")
        return str(atoms.symbols) if isinstance(structure, Atoms) else str(structure), atoms
    species = sorted({z for member in getattr(calculator, "potentials", ()) for z in member.species})
    if symbol is None:
        from ase.data import chemical_symbols

        if len(species) != 1:
            known = " ".join(chemical_symbols[z] for z in species) or "any element"
            raise ValueError(f"choose a symbol: the potential knows {known}")
        symbol = chemical_symbols[species[0]]
    atoms = crystal(symbol, structure)
    if species and atoms.numbers[0] not in species:
        raise ValueError(f"the potential does not know {symbol}: its elements are {species}")
    return f"{symbol}, {structure}" if structure else symbol, atoms


def _cubic(atoms: Atoms) -> bool:
    """Three equal axes at right angles, along which (100), (110) and (111) are the low-index planes."""
    a, b, c, *angles = atoms.cell.cellpar()
    return bool(np.ptp([a, b, c]) < 1e-3 * a and np.allclose(angles, 90, atol=0.05))


def rows(found: Properties) -> list[Row]:
    """The crystal's numbers, one a row."""
    crystal = found.lattice
    listed = [Row("a, lowest energy", crystal.lengths[0], "Å")]
    if crystal.lengths_stress:
        listed.append(Row("a, zero stress", crystal.lengths_stress[0], "Å"))
    if not np.isclose(crystal.lengths[2], crystal.lengths[0], rtol=1e-3):
        listed += [Row("c, lowest energy", crystal.lengths[2], "Å")]
    listed += [Row("energy", crystal.energy, "eV/atom"), Row("volume", crystal.volume, "Å³/atom")]
    listed.append(Row("bulk modulus", crystal.bulk_modulus, "GPa"))
    for ions, constants in (("clamped", found.clamped), ("relaxed", found.relaxed)):
        if constants:
            listed += [Row(f"{name}, {ions} ions", value, "GPa") for name, value in elastic_names(constants).items()]
    if found.vacancy:
        hole = found.vacancy
        listed += [Row(f"vacancy, relaxed, {hole.n_atoms} atoms", hole.energy, "eV")]
        listed += [Row("vacancy, ideal", hole.unrelaxed, "eV")]
    for face in found.surfaces:
        label = "".join(map(str, face.miller))
        listed.append(Row(f"surface ({label}), not reconstructed", face.energy, "J/m²"))
    if found.phonons:
        waves = found.phonons
        edge = min(min(values) for name, values in waves.special.items() if name != "G")
        listed += [Row(f"highest phonon, {waves.n_atoms} atoms", waves.highest, "THz")]
        listed += [Row("lowest phonon, Γ's acoustic ones excluded", waves.lowest, "THz")]
        listed += [Row("lowest phonon at a named point of the zone's edge", edge, "THz")]
        listed += [Row(f"imaginary phonons (below -{waves.tolerance} THz)", "yes" if waves.imaginary else "no", "")]
    return listed


def elastic_names(constants: ElasticConstants) -> dict[str, float]:
    """C11, C12, C44 for a tensor that is cubic within 1 %, nine constants for others; GPa."""
    cubic = constants.cubic
    if cubic.spread < 0.01 * abs(cubic.c11):
        return {"C11": cubic.c11, "C12": cubic.c12, "C44": cubic.c44}
    pairs = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (1, 2), (1, 3), (2, 3))
    return {f"C{i}{j}": float(constants.tensor[i - 1, j - 1]) for i, j in pairs}


def dynamics_rows(found: Properties) -> list[list]:
    """For each run: quantity by quantity, under the names of DYNAMICS."""
    listed = []
    for run in found.dynamics:
        peak = f"{run.peak[0]:.2f} Å, {run.peak[1]:.1f}" if run.peak else None
        off = None if run.max_deviation is None else f"{run.max_deviation:.0f} ({run.deviation_sigmas:.1f} σ)"
        numbers = (
            run.mean_temperature,
            run.pressure,
            run.min_distance,
            run.displacement,
            run.energy_slope,
            run.nve_drift,
        )
        mean, pressure, closest, moved, slope, drift = (None if x is None else float(f"{x:.3g}") for x in numbers)
        listed.append([
            f"{run.temperature:g} K, {run.n_atoms} atoms, {run.timestep:.2f} fs",
            f"{run.state}, {run.survived:.1f} of {run.time:g} ps", "yes" if run.stable else f"no: {run.reason}",
            mean, off, pressure, closest, peak, moved, slope, drift,
        ])  # fmt: skip
    return listed


DYNAMICS = (
    "run", "state", "stable", "mean T, K", "largest deviation, K", "pressure, GPa", "shortest distance, Å",
    "first peak of g(r)", "displacement², Å²", "slope of E_pot, meV/atom/ps", "NVE drift, meV/atom/ps",
)  # fmt: skip


def as_dict(found: Properties) -> dict:
    """What `--json` writes: numbers and lists, without Atoms."""

    def plain(value):
        if isinstance(value, Atoms):
            cell = value.cell.tolist()
            return {
                "symbols": str(value.symbols),
                "cell": cell,
                "scaled_positions": value.get_scaled_positions().tolist(),
            }
        if isinstance(value, np.ndarray):
            return value.tolist()
        if hasattr(value, "_asdict"):
            return {key: plain(item) for key, item in value._asdict().items()}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return plain(found)
