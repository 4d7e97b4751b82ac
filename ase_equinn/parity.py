"""Proof that a potential is the same in every engine: the same frames through each, beside EquiCalculator."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.io import read
from rich.table import Table

from .calculator import EquiCalculator
from .evaluate_batches import evaluate
from .runfiles import RunFileError

DISPLACED = 0.05  # A: of copies, where the file has too few frames
# What may differ: energies and stresses relative to their scale, forces relative to the largest one.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
TIMEOUT = 300.0  # s for an engine in processes of its own


class Engine(NamedTuple):
    """`run(potential, frames, device, dtype)` gives a dict of energy, forces and stress for each frame."""

    name: str
    package: str | None  # what has to be installed
    install: str  # and how
    run: Callable[[str | Path, list[Atoms], str, str], list[dict]]


class Row(NamedTuple):
    """The largest differences from EquiCalculator; None where the engine did not run, for the reason in `note`."""

    engine: str
    version: str | None
    energy: float | None  # eV/atom
    forces: float | None  # eV/A
    stress: float | None  # eV/A^3
    seconds: float | None
    passed: bool | None
    note: str = ""


class Parity(NamedTuple):
    potential: str
    structure: str
    dtype: str
    n_frames: int
    n_atoms: int
    max_force: float  # eV/A, of EquiCalculator
    limits: dict[str, float]  # of energy (eV/atom), forces (eV/A), stress (eV/A^3)
    rows: list[Row]

    @property
    def passed(self) -> bool:
        """Whether no engine that ran is off; engines that are not installed do not count."""
        return all(row.passed is not False for row in self.rows)


def parity(
    potential: str | Path,
    structure: Atoms | Sequence[Atoms] | str | Path,
    *,
    n_frames: int = 3,
    engines: Sequence[str] | None = None,
    device: str = "auto",
    dtype: str = "float64",
    tolerance: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Parity:
    """The largest differences of every engine's energies, forces and stresses from those of EquiCalculator.

        forces: max |F - F0| <= tolerance * max |F0|
        energy, per atom: max |E - E0| / n <= tolerance * max |F0| * 1 A
        stress: max |S - S0| <= tolerance * max |F0| / 1 A^2

    Args:
        potential: folder, file or shipped name.
        structure: Atoms, several, or a file that ASE reads.
        n_frames: of the structure's, spread evenly; where it has fewer, copies of the last, displaced by 0.05 A.
        engines: some of `ENGINES`; None means all.
        device, dtype: see `EquiCalculator`; LAMMPS chooses its device itself.
        tolerance: None means 1e-6 in float64, 1e-3 in float32.
        progress: called with an engine's name, how many are done and how many there are.
    Raises:
        ValueError: an engine of no such name; a structure that EquiCalculator refuses.
    """
    chosen = _engines(engines)
    frames = _frames(structure, n_frames)
    calculator = EquiCalculator(potential, device=device, dtype=dtype)
    expected = []
    for atoms in frames:
        calculator.calculate(atoms, ["stress"] if atoms.pbc.all() else ["forces"])
        expected.append(calculator.results)
    largest = max(float(np.abs(result["forces"]).max()) for result in expected)
    limit = (TOLERANCE[dtype] if tolerance is None else tolerance) * max(largest, 1e-3)
    limits = {"energy": limit, "forces": limit, "stress": limit}
    rows = []
    for done, engine in enumerate(chosen):
        if progress:
            progress(engine.name, done, len(chosen))
        rows.append(_row(engine, potential, frames, expected, limits, device, dtype))
    name = str(structure) if isinstance(structure, str | Path) else str(frames[0].symbols)
    return Parity(str(potential), name, dtype, len(frames), len(frames[-1]), largest, limits, rows)


def _engines(names: Sequence[str] | None) -> list[Engine]:
    if names is None:
        return list(ENGINES.values())
    for name in names:
        if name not in ENGINES:
            raise ValueError(f"engines can be {', '.join(ENGINES)}; got {name!r}")
    return [ENGINES[name] for name in names]


def _frames(structure, n_frames: int) -> list[Atoms]:
    if n_frames < 1:
        raise ValueError(f"n_frames must be at least 1, got {n_frames}")
    if isinstance(structure, str | Path):
        if not Path(structure).is_file():
            raise FileNotFoundError(f"no structure file {str(structure)!r}")
        try:
            structure = read(structure, ":")
        except Exception as error:
            raise RunFileError(f"ASE cannot read a structure from {str(structure)!r}: {error}") from error
    found = [structure] if isinstance(structure, Atoms) else list(structure)
    if not found or not all(len(atoms) for atoms in found):
        raise ValueError("parity needs a structure with atoms")
    spread = np.linspace(0, len(found) - 1, min(n_frames, len(found))).round().astype(int)
    frames = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in (found[k] for k in spread)]
    for seed in range(n_frames - len(frames)):
        copy = frames[-1].copy()
        copy.positions += np.random.default_rng(seed).normal(0.0, DISPLACED, copy.positions.shape)
        frames.append(copy)
    return frames


def _row(engine: Engine, potential, frames, expected, limits, device: str, dtype: str) -> Row:
    if engine.package and importlib.util.find_spec(engine.package) is None:
        return Row(engine.name, None, None, None, None, None, None, f"not installed: {engine.install}")
    start = time.perf_counter()
    number = _version(engine.package)
    try:
        found = engine.run(potential, [atoms.copy() for atoms in frames], device, dtype)
    except Skip as reason:
        return Row(engine.name, number, None, None, None, None, None, str(reason))
    except Exception as error:  # whatever an engine may say, the others shall run
        text = f"{type(error).__name__}: {error}"
        return Row(engine.name, number, None, None, None, time.perf_counter() - start, False, text)
    seconds = time.perf_counter() - start
    differences, missing = _differences(frames, expected, found)
    passed = not missing and all(differences[k] is None or differences[k] <= limits[k] for k in limits)
    return Row(engine.name, number, *differences.values(), seconds, passed, missing)


def _differences(frames, expected, found) -> tuple[dict[str, float | None], str]:
    """The largest differences, and what the engine does not give although it should."""
    if len(found) != len(expected):
        return dict.fromkeys(("energy", "forces", "stress")), f"{len(found)} results for {len(expected)} frames"
    energy = [(f["energy"] - e["energy"]) / len(a) for a, e, f in zip(frames, expected, found)]
    forces = [f["forces"] - e["forces"] for e, f in zip(expected, found)]
    pairs = [(e["stress"], f.get("stress")) for e, f in zip(expected, found) if "stress" in e]
    missing = "no stress" if any(f is None for _, f in pairs) else ""
    stress = [f - e for e, f in pairs if f is not None]
    return {"energy": _largest(energy), "forces": _largest(forces), "stress": _largest(stress)}, missing


def _largest(differences: list) -> float | None:
    """nan where one is nan, None where there are none."""
    return float(np.max([np.abs(x).max() for x in differences])) if differences else None


def _version(package: str | None) -> str | None:
    return version({"torch_sim": "torch-sim-atomistic"}.get(package, package)) if package else None


class Skip(Exception):
    """An engine that cannot take these frames, or is not there; the message says why."""


def _batch(potential, frames, device, dtype) -> list[dict]:
    return evaluate(frames, potential, device=device, dtype=dtype, progress=False)


def _torchsim(potential, frames, device, dtype) -> list[dict]:
    from .engines.torchsim import evaluate_frames

    if any(atoms.pbc.any() and not atoms.pbc.all() for atoms in frames):
        raise Skip("knows all directions periodic or none")
    return evaluate_frames(potential, frames, device=device, dtype=dtype)


def _ipi(potential, frames, device, dtype) -> list[dict]:
    from .engines.ipi_frames import evaluate as run

    return run(potential, frames, device=device, dtype=dtype, timeout=TIMEOUT)


def _lammps(n_ranks: int):
    def run(potential, frames, device, dtype) -> list[dict]:
        from .engines.lammps import evaluate as run

        return run(potential, frames, n_ranks, dtype=dtype, timeout=TIMEOUT)

    return run


def _extra(name: str) -> str:
    return f'pip install "ase_equinn[{name}]"'


_ALL = [
    Engine("batch", None, "", _batch),
    Engine("torch-sim", "torch_sim", _extra("torchsim"), _torchsim),
    Engine("i-pi", "ipi", _extra("ipi"), _ipi),
    *(Engine(f"lammps-{n}", "lammps", _extra("lammps"), _lammps(n)) for n in (1, 2, 4)),
]
ENGINES = {engine.name: engine for engine in _ALL}


def parity_table(found: Parity) -> Table:
    """The rows as a rich table."""
    title = f"{found.potential}, {found.n_frames} frames of {found.n_atoms} atoms, {found.dtype}"
    allowed = f"allowed {found.limits['forces']:.1e}, forces reach {found.max_force:.3g} eV/Å"
    table = Table(title=title, caption=f"largest differences from EquiCalculator; {allowed}")
    for name in ("engine", "version"):
        table.add_column(name)
    for name in ("energy eV/atom", "forces eV/Å", "stress eV/Å³", "s"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in found.rows:
        verdict = {True: "[green]same[/]", False: "[red]differs[/]", None: "[yellow]not run[/]"}[row.passed]
        if row.passed is False and row.forces is None:
            verdict = "[red]failed[/]"
        numbers = [f"{x:.1e}" if x is not None else "-" for x in (row.energy, row.forces, row.stress)]
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        table.add_row(row.engine, row.version or "", *numbers, seconds, verdict)
    return table


def notes(found: Parity) -> list[str]:
    """Why engines did not run, or what went wrong, a line for each."""
    return [f"{row.engine}: {row.note}" for row in found.rows if row.note]


def as_json(found: Parity) -> str:
    """The same as JSON text."""
    fields = found._asdict() | {"rows": [row._asdict() for row in found.rows], "passed": found.passed}
    return json.dumps(fields, indent=2) + "\n"
