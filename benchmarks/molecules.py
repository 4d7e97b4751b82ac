"""What a potential of a molecule does when it is used: dynamics, torsions, bonds that break or are pressed together.

    python benchmarks/molecules.py potentials/3bpa --figure 3bpa.png --json 3bpa.json
    python benchmarks/molecules.py potentials/acac --paths benchmarks/acac_paths.xyz

The molecule is the first structure of the potential's check.xyz; no data file is needed. Dynamics are Langevin NVT,
0.5 fs. `--paths` compares energies along paths of a labelled file (config_type names them). molecules.md tells how to
read the tables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import molecule_scans as scans
import numpy as np
from ase import Atoms, units
from molecule_scans import Curve, Molecule
from markdown_tables import markdown

from ase_equinn import EquiCalculator
from ase_equinn.data import read_frames
from ase_equinn.dynamics import MDSettings, RunError, md
from ase_equinn.plot import save_figure
from ase_equinn.plot_md import read_log

TIMESTEP = 0.5  # fs
EVERY = 20  # steps between frames that are looked at


class Dynamics(NamedTuple):
    """A run: times in ps, longest bond in units of its relaxed length at each, and its row of the table."""

    kelvin: float
    times: np.ndarray
    stretch: np.ndarray
    row: dict[str, Any]


def dynamics(molecule: Molecule, calculator, kelvin: float, ps: float) -> Dynamics:
    """One run; a run that explodes is judged up to there."""
    settings = MDSettings(
        "nvt", kelvin, timestep=TIMESTEP, seed=1, log_every=EVERY, frame_every=EVERY, restart_every=1_000_000
    )
    exploded = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            md(molecule.atoms, calculator, settings, round(1000 * ps / TIMESTEP), output=folder)
        except RunError as error:
            exploded = str(error).split("(")[0]
        frames = ase.io.read(f"{folder}/md.xyz", ":")
        log = read_log(f"{folder}/md.csv")
    return judge(molecule, frames, log, kelvin, exploded)


def judge(molecule: Molecule, frames: Sequence[Atoms], log: dict, kelvin: float, exploded: str | None) -> Dynamics:
    """Bonds that are lost, hydrogens that change partners, the longest bond, extent and temperature of a run."""
    times = 1e-3 * TIMESTEP * EVERY * np.arange(len(frames))
    stretch = np.array([longest_bond(molecule, frame) for frame in frames])
    found = [scans.changed(molecule, frame) for frame in frames]
    broken = next((f"{what} at {time:.1f} ps" for time, (what, _) in zip(times, found) if what), None)
    hops = sum(before[1] != after[1] for before, after in zip(found, found[1:]))
    n, settled = len(molecule.atoms), len(log["temperature"]) // 10
    harmonic = 0.5 * (3 * n - 6) * units.kB * kelvin
    row = {
        "ran": f"{times[-1]:.0f} ps" + (f", then {exploded}" if exploded else ""),
        "molecule": broken or "kept",
        "hydrogen transfers": hops,
        "mean T, K": round(float(log["temperature"][settled:].mean())),
        "longest bond / relaxed": float(stretch.max()),
        "extent, A (relaxed)": "{:.1f} ({:.1f})".format(
            max(f.get_all_distances().max() for f in frames), frames[0].get_all_distances().max()
        ),
        "potential energy / harmonic": float(
            (log["potential_energy"][settled:].mean() - log["potential_energy"][0]) / harmonic
        ),
    }
    return Dynamics(kelvin, times, stretch, row)


def longest_bond(molecule: Molecule, atoms: Atoms) -> float:
    """In units of its length in the relaxed molecule; a hydrogen of N or O counts with the N or O nearest to it."""
    distances, relaxed = atoms.get_all_distances(), molecule.atoms.get_all_distances()
    takers, found = np.isin(atoms.numbers, (7, 8)), []
    for i, j in molecule.bonds:
        bridging = {atoms.numbers[i], atoms.numbers[j]} in ({1, 7}, {1, 8})
        h = i if atoms.numbers[i] == 1 else j
        found.append((distances[h, takers].min() if bridging else distances[i, j]) / relaxed[i, j])
    return max(found)


def torsion_table(curves: Sequence[tuple[Curve, Curve]]) -> dict[str, dict]:
    return {
        relaxed.name: {
            "barrier, eV": float(relaxed.energies.max() - relaxed.energies.min()),
            "at, degrees": int(relaxed.x[relaxed.energies.argmax()]),
            "lowest, eV": float(relaxed.energies.min()),
            "rigid, highest, eV": float(rigid.energies.max()),
            "rigid, lowest, eV": float(rigid.energies.min()),
            "relaxed molecule": relaxed.note or "kept",
        }
        for rigid, relaxed in curves
    }


def breaking_table(curves: Sequence[Curve]) -> dict[str, dict]:
    rows = {}
    for curve in curves:
        x, energies, (far,) = curve.x[:-1], curve.energies[:-1], curve.energies[-1:]
        k = int(energies.argmin())
        outward, inward = scans.turn(x[k:], energies[k:]), scans.turn(x[k::-1], energies[k::-1])
        rows[curve.name] = {
            "lowest at, A": float(x[k]),
            "+ at 0.7 A, eV": float(np.interp(0.7, x, energies) - energies[k]),
            "+ at 2 A": float(np.interp(2.0, x, energies) - energies[k]),
            "+ at 4 A": float(energies[-1] - energies[k]),
            "+ apart": float(far - energies[k]),
            "stretched": _turn(outward),
            "compressed": _turn(inward),
        }
    return rows


def compression_table(curves: Sequence[Curve], kind) -> dict[str, dict]:
    """Bonds of one kind together: how many are driven apart all the way to 0.4 A."""
    rows = {}
    for curve in curves:
        row = rows.setdefault(kind(curve), {"bonds": 0, "repel down to 0.4 A": 0, "least at 0.4 A, eV": np.inf})
        fall = scans.turn(curve.x[::-1], curve.energies[::-1])
        row["bonds"] += 1
        row["repel down to 0.4 A"] += fall is None
        row["least at 0.4 A, eV"] = min(row["least at 0.4 A, eV"], float(curve.energies[0]))
        if fall:
            row["falls"] = f"{curve.name}: {_turn(fall)}"
    return rows


def _turn(found: tuple[float, float] | None) -> str:
    return "rises" if found is None else f"falls by {found[1]:.2f} eV from {found[0]:.2f} A on"


def transfer_table(curve: Curve | None) -> dict[str, dict]:
    if curve is None:
        return {}
    low, middle = curve.energies.min(), len(curve.x) // 2
    mirror = np.abs(curve.energies - curve.energies[::-1]).max()
    row = {"barrier, meV": 1000 * float(curve.energies[middle] - low), "ends differ by, meV": 1000 * float(mirror)}
    return {curve.name: {**row, "largest, meV": 1000 * float(curve.energies.max() - low)}}


def path_table(potential: Any, file: Path, molecule: Molecule) -> dict[str, dict]:
    """Energies along labelled paths, each from its first structure on, in meV."""
    rows, groups = {}, {}
    for frame in read_frames(file).frames:
        groups.setdefault(frame.config_type or "path", []).append(frame)
    for name, frames in groups.items():
        if any(frame.atoms.get_chemical_formula() != molecule.atoms.get_chemical_formula() for frame in frames):
            raise ValueError(f"{file}: {name} is not of {molecule.atoms.get_chemical_formula()}")
        label = np.array([frame.energy for frame in frames])
        ours = scans.energies(potential, [frame.atoms for frame in frames])
        for k in range(1, len(frames)):
            found = {"reference, meV": 1000 * (label[k] - label[0]), "potential, meV": 1000 * (ours[k] - ours[0])}
            rows[f"{name} {k}"] = {key: round(float(value), 1) for key, value in found.items()}
    return rows


def figure(runs: Sequence[Dynamics], turned, broken: Sequence[Curve], pressed: Sequence[Curve], title: str):
    """Bond lengths in dynamics, relaxed (and rigid) torsions, breaking and compressed bonds, as a matplotlib Figure."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 8.4), layout="constrained")
    drawn.suptitle(title, fontsize=11)
    run, torsion, bond, press = drawn.subplots(2, 2).ravel()
    for found in runs:
        run.plot(found.times, found.stretch, lw=0.7, label=f"{found.kelvin:g} K: {found.row['molecule']}")
    run.set(xlabel="ps", ylabel="longest bond / relaxed", title="dynamics")
    run.set_ylim(0.98, min(3.0, max(1.5, *(found.stretch.max() for found in runs))) if runs else 2)
    for k, (rigid, relaxed) in enumerate(turned):
        torsion.plot(relaxed.x, relaxed.energies, ".-", color=f"C{k}", label=relaxed.name)
        torsion.plot(rigid.x, rigid.energies, ":", color=f"C{k}", lw=0.8)
    highest = max((relaxed.energies.max() for _, relaxed in turned), default=1)
    torsion.set(xlabel="degrees", ylabel="eV", title="torsions: relaxed, dotted rigid")
    torsion.set_ylim(min(-0.05, *(1.1 * c.energies.min() for pair in turned for c in pair)), 1.3 * highest + 0.1)
    for curve in broken:
        bond.plot(curve.x[:-1], curve.energies[:-1], label=f"{curve.name}, apart {curve.energies[-1]:.2f} eV")
    bond.set(xlabel="A", ylabel="eV", title="bonds stretched", xlim=(0.7, 4), ylim=(-0.5, 8))
    for curve in pressed:
        press.plot(curve.x, curve.energies, lw=0.8)
    press.set(xlabel="A", ylabel="eV", title="every bond compressed", yscale="symlog")
    for panel in (run, torsion, bond):
        if panel.lines:
            panel.legend(fontsize=7)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential", type=Path, help="a folder with a model and its check.xyz")
    parser.add_argument("--ps", type=float, default=20.0, help="of each run, 0 for none")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 600.0, 1200.0])
    parser.add_argument("--paths", type=Path, help="labelled structures along paths")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    potential, start = str(arguments.potential), ase.io.read(arguments.potential / "check.xyz", "0")
    if start.pbc.any():
        raise SystemExit(f"{potential}: the first structure of check.xyz is periodic; a molecule is wanted")
    calculator = EquiCalculator(potential, device="cpu", dtype="float64")
    cutoff = max(max(p.cutoffs) for p in calculator.potentials)
    molecule = scans.relaxed_molecule(Atoms(start.numbers, start.positions), calculator)
    single = EquiCalculator(potential, device="cpu")
    tables = {}

    def show(title: str, rows: dict, corner: str = "") -> None:
        if rows:
            tables[title] = rows
            print(f"\n{title}\n\n{markdown(rows, corner)}", flush=True)

    runs = [dynamics(molecule, single, kelvin, arguments.ps) for kelvin in arguments.temperatures if arguments.ps > 0]
    show("Dynamics, NVT, 0.5 fs", {f"{run.kelvin:g} K": run.row for run in runs})
    turned = [scans.torsion_curves(molecule, potential, torsion) for torsion in scans.torsions(molecule)]
    show("Torsions", torsion_table(turned), "a-i-j-b, about i-j")
    show("Hydrogen transfer, relaxed", transfer_table(scans.transfer(molecule, calculator)), "donor-H-acceptor")
    broken, pressed = scans.breaking(molecule, potential, cutoff), scans.compression(molecule, potential)
    show("Bonds stretched", breaking_table(broken), "bond")
    names = dict(zip((curve.name for curve in pressed), (molecule.kind(*bond) for bond in molecule.bonds)))
    show("Bonds compressed", compression_table(pressed, lambda curve: names[curve.name]), "kind")
    if arguments.paths:
        show("Along paths with reference energies", path_table(potential, arguments.paths, molecule), "structure")
    if arguments.figure:
        title = f"{potential}: {molecule.atoms.get_chemical_formula()}"
        save_figure(figure(runs, turned, broken, pressed, title), arguments.figure)
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
