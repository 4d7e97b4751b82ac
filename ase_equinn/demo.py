"""`equinn demo`: silicon relaxed, run and measured with the shipped potential, beside what DFT gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.io import read

from .elastic import elastic_constants, equation_of_state
from .md import MDSettings, md
from .plot import save_figure
from .plot_md import plot_energy, plot_rdf, plot_relaxation, plot_temperature, read_log
from .potential_file import write_atomic
from .relax import RelaxSettings, relax

TEMPERATURE = 300.0  # K
MARKER = "results.json"  # a folder that holds it is an earlier demo's
# PBE with clamped atoms, from the labels of the training data (Zuo et al. 2020): A and GPa.
DFT = {"a": 5.469, "B": (153 + 2 * 56.5) / 3, "C11": 153.0, "C12": 56.5, "C44": 98.9}


class Row(NamedTuple):
    """One quantity, with the atoms clamped and relaxed, beside DFT with clamped atoms; None where there is no value."""

    quantity: str
    unit: str
    clamped: float | None
    relaxed: float | None
    dft: float | None


class DemoReport(NamedTuple):
    """What the demo measured and how long it took; the files lie in `folder`."""

    rows: list[Row]
    folder: Path
    seconds: float
    notes: list[str]


class _Progress:
    """Passes (name, steps done, steps in all) on; every stage has a share that it fills as it goes."""

    def __init__(self, report: Callable[[str, int, int], None] | None, shares: dict[str, int]):
        self.report, self.shares, self.name = report, shares, ""

    def start(self, name: str) -> None:
        self.name = name
        self(0)

    def __call__(self, step: int, *_) -> None:
        if self.report:
            names = list(self.shares)
            before = sum(self.shares[name] for name in names[: names.index(self.name)])
            self.report(self.name, before + min(step, self.shares[self.name]), sum(self.shares.values()))


def demo(
    output: str | Path = "equinn-demo",
    potential: Any = "silicon",
    *,
    steps: int = 1000,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoReport:
    """Relaxes, runs and measures silicon without any download, in some two minutes on two cores.

    A rattled and strained cell of 64 atoms and a vacancy are relaxed; 1 ps NVE and 1 ps NVT are run at 300 K; lattice
    constant, bulk modulus and elastic constants are fitted. Every number is also in `results.json`.

    Args:
        output: folder for `relax/`, `vacancy/`, `nve/`, `nvt/` (logs, trajectories), four PNG figures and
            `results.json`. What an earlier demo wrote is replaced, a folder of anything else is refused.
        potential: see EquiCalculator; or any ASE calculator that knows silicon.
        steps: of 1 fs, for each of the two runs.
        device: for a calculator that is built here.
        progress: called with (name of the stage, steps done, steps in all).
    Raises:
        ValueError: the folder holds something else, or the potential does not know silicon.
    """
    begin = perf_counter()
    folder = Path(output)
    if folder.exists() and not folder.is_dir() or folder.is_dir() and any(folder.iterdir()) and not _is_own(folder):
        raise ValueError(f"{folder} holds other files than those of a demo; choose another output")
    calculator = _calculator(potential, device)
    shares = {"relax 64 atoms": 60, "relax vacancy": 60, "NVE": steps, "NVT": steps, "elastic constants": 60}
    advance = _Progress(progress, shares)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / MARKER, b'{"finished": false}\n')

    advance.start("relax 64 atoms")
    settings = RelaxSettings(cell="full", restart_every=1000)
    cell = relax(_start(), calculator, settings, output=folder / "relax", existing="overwrite", progress=advance)
    advance.start("relax vacancy")
    settings = RelaxSettings(restart_every=1000)
    hole = relax(
        _vacancy(cell.atoms), calculator, settings, output=folder / "vacancy", existing="overwrite", progress=advance
    )
    runs = {}
    for name in ("NVE", "NVT"):
        advance.start(name)
        # Drawn at twice the temperature: half of the kinetic energy goes into the springs within a tenth of a ps.
        chosen = MDSettings(name.lower(), TEMPERATURE, initial_temperature=2 * TEMPERATURE, log_every=2, frame_every=10)
        place = folder / name.lower()
        runs[name] = md(cell.atoms, calculator, chosen, steps, output=place, existing="overwrite", progress=advance)
    advance.start("elastic constants")
    rows = _crystal(calculator, cell.atoms, advance) + _dynamics(runs, hole.atoms, cell.atoms)
    _figures(folder, runs, cell.atoms)
    notes = [
        f"{name} not relaxed after {result.steps} steps: {result.max_force:.3f} eV/A are left"
        for name, result in (("64 atoms", cell), ("vacancy", hole))
        if not result.converged
    ]
    report = DemoReport(rows, folder, perf_counter() - begin, notes)
    numbers = {"finished": True, **report._asdict(), "folder": str(folder), "rows": [row._asdict() for row in rows]}
    write_atomic(folder / MARKER, (json.dumps(numbers, indent=2) + "\n").encode())
    return report


def demo_table(report: DemoReport):
    """The report as a rich table."""
    from rich.table import Table

    caption = ["DFT: PBE, clamped atoms, from the labels of the training data", *report.notes]
    table = Table(title="Silicon", caption="\n".join(caption))
    table.add_column("")
    table.add_column("unit")
    for name in ("clamped atoms", "relaxed atoms", "DFT"):
        table.add_column(name, justify="right")
    for quantity, unit, *values in report.rows:
        digits = 4 if unit == "A" else 2 if unit == "eV" else 4 if unit == "meV/atom/ps" else 1
        table.add_row(quantity, unit, *("-" if value is None else f"{value:.{digits}f}" for value in values))
    return table


def _is_own(folder: Path) -> bool:
    return (folder / MARKER).is_file()


def _calculator(potential: Any, device: str):
    if isinstance(potential, BaseCalculator):
        return potential
    from .calculator import EquiCalculator

    calculator = EquiCalculator(potential, device=device)
    species = {z for member in calculator.potentials for z in member.species}
    if 14 not in species:
        raise ValueError(
            f"the demo is about silicon, which {potential!r} does not know: its elements are {sorted(species)}"
        )
    return calculator


def _start() -> Atoms:
    """64 silicon atoms off their sites by 0.1 A, in a cell that is sheared, too long in x and too short in z."""
    atoms = bulk("Si", cubic=True, a=5.43).repeat(2)
    atoms.set_cell(atoms.cell @ np.array([[1.03, 0.02, 0], [0, 1.0, -0.02], [0, 0.01, 0.98]]), scale_atoms=True)
    atoms.rattle(0.1, seed=7)
    return atoms


def _vacancy(crystal: Atoms) -> Atoms:
    atoms = crystal.copy()
    del atoms[0]
    atoms.rattle(0.05, seed=8)
    return atoms


def _crystal(calculator, relaxed: Atoms, advance) -> list[Row]:
    """Lattice constant and stiffness, from the primitive cell, whose elastic axes are those of the cube."""
    atoms = bulk("Si", a=5.43)
    eos = equation_of_state(atoms, calculator)
    advance(10)
    atoms.set_cell(atoms.cell * eos.scale, scale_atoms=True)
    stiff = elastic_constants(atoms, calculator)
    advance(20)
    soft = elastic_constants(atoms, calculator, relaxed=True, fmax=5e-4)
    advance(60)
    cube = float((relaxed.get_volume() * 8 / len(relaxed)) ** (1 / 3))  # eight atoms in a cube
    zero = None if eos.scale_stress is None else 5.43 * eos.scale_stress
    rows = [
        Row("a of lowest energy", "A", 5.43 * eos.scale, cube, DFT["a"]),
        Row("a of zero stress", "A", zero, None, None),
        Row("bulk modulus", "GPa", eos.bulk_modulus, soft.bulk_modulus, DFT["B"]),
    ]
    for name, clamped, free in zip(("C11", "C12", "C44"), stiff.cubic, soft.cubic, strict=False):
        rows.append(Row(name, "GPa", clamped, free, DFT[name]))
    return rows


def _dynamics(runs: dict, hole: Atoms, crystal: Atoms) -> list[Row]:
    formation = hole.get_potential_energy() - crystal.get_potential_energy() * len(hole) / len(crystal)
    nve, nvt = read_log(runs["NVE"].log), read_log(runs["NVT"].log)
    slope = np.polyfit(nve["time_fs"] / 1000, nve["total_energy"] * 1000 / len(crystal), 1)[0]
    late = nvt["temperature"][len(nvt["step"]) // 2 :]
    return [
        Row("vacancy formation", "eV", None, float(formation), None),
        Row("NVE energy drift", "meV/atom/ps", None, float(slope), None),
        Row("NVT mean temperature", "K", None, float(late.mean()), None),
    ]


def _figures(folder: Path, runs: dict, crystal: Atoms) -> None:
    relaxations = {"64 atoms and cell": folder / "relax/relax.csv", "vacancy, fixed cell": folder / "vacancy/relax.csv"}
    save_figure(plot_relaxation(relaxations), folder / "relaxation.png")
    save_figure(plot_energy(runs["NVE"].log, len(crystal)), folder / "energy.png")
    logs = {name: run.log for name, run in runs.items()}
    save_figure(plot_temperature(logs, TEMPERATURE), folder / "temperature.png")
    frames = read(runs["NVT"].trajectory, ":")
    later = frames[len(frames) // 4 :]
    perfect = bulk("Si", cubic=True, a=(crystal.get_volume() * 8 / len(crystal)) ** (1 / 3))
    save_figure(plot_rdf({f"NVT, {TEMPERATURE:g} K": later}, perfect), folder / "rdf.png")
