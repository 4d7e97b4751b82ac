"""Prints lattice and elastic constants, defects, phonons and stability of elemental crystals beside DFT, as Markdown.

    python benchmarks/crystals.py silicon copper molybdenum --plots . --json crystals.json

A potential is named by folder, file or shipped name; its element decides what it is compared with. DFT (PBE, VASP, Zuo
et al., J. Phys. Chem. A 124, 731 (2020)) are values computed from the labels of the training data, elastic constants
with clamped ions; those of C11 of copper scatter by 10 GPa. Targets: lattice constants within 0.3 %, elastic constants
within 5 %, no imaginary phonon, and 50 ps of liquid Si at 2000 K, and of crystalline Cu and Mo at 0.9 of their melting
points (1358, 2896 K), without an accident. Each run has 64 to 128 atoms: some minutes of one core for each potential.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from ase_equinn import EquiCalculator
from ase_equinn.elastic import elastic_constants
from ase_equinn.plot import save_figure
from ase_equinn.plot_properties import plot_properties
from ase_equinn.potential_file import write_atomic
from ase_equinn.properties import DYNAMICS, Properties, as_dict, dynamics_rows, elastic_names, properties
from ase_equinn.properties_crystal import crystal


class Reference(NamedTuple):
    """DFT's lattice constant A and clamped-ion constants GPa (with their uncertainty), and at what to run, K."""

    a: float
    elastic: dict[str, float]
    uncertainty: dict[str, float]
    solid: float | None = None
    liquid: float | None = None


REFERENCES = {
    "Si": Reference(5.469, {"C11": 153.0, "C12": 56.5, "C44": 98.9}, {}, liquid=2000.0),
    "Cu": Reference(3.616, {"C11": 180.0, "C12": 134.0, "C44": 84.0}, {"C11": 10.0}, solid=0.9 * 1358),
    "Mo": Reference(3.168, {"C11": 484.0, "C12": 163.0, "C44": 107.0}, {}, solid=0.9 * 2896),
}
LATTICE, ELASTIC = 0.3, 5.0  # targets, %


def compared(found: Properties, reference: Reference) -> list[tuple[str, float, float, float, bool]]:
    """(quantity, value, DFT, deviation in %, whether it meets the target) for all that DFT is known of."""
    crystal, listed = found.lattice, []
    lengths = {"lowest energy": crystal.lengths, "zero stress": crystal.lengths_stress}
    for kind, value in lengths.items():
        if value:
            deviation = 100 * (value[0] / reference.a - 1)
            listed.append((f"a, {kind}, Å", value[0], reference.a, deviation, abs(deviation) <= LATTICE))
    bulk = (reference.elastic["C11"] + 2 * reference.elastic["C12"]) / 3
    stiff = {"B": crystal.bulk_modulus, **(elastic_names(found.clamped) if found.clamped else {})}
    for name, dft in {"B": bulk, **reference.elastic}.items():
        if name in stiff:
            deviation = 100 * (stiff[name] / dft - 1)
            allowed = max(ELASTIC, 100 * reference.uncertainty.get(name, 0.0) / dft)
            listed.append((f"{name}, GPa", stiff[name], dft, deviation, abs(deviation) <= allowed))
    return listed


def at_reference(name: str, symbol: str) -> str:
    """How stresses change with strain at DFT's lattice constant, beside the labels, which were taken there: C11 - p, C12 + p, C44 - p."""
    reference, atoms = REFERENCES[symbol], crystal(symbol)
    atoms.set_cell(atoms.cell.array * (reference.a / atoms.cell.lengths()[0]), scale_atoms=True)
    found = elastic_constants(atoms, EquiCalculator(name, dtype="float64"))
    pressure = -found.residual_stress[:3].mean()
    slopes = {key: value + (pressure if key == "C12" else -pressure) for key, value in elastic_names(found).items()}
    values = ", ".join(f"{key} {slopes[key]:.1f} ({dft:g})" for key, dft in reference.elastic.items())
    return f"At DFT's {reference.a} Å (here at {pressure:.2f} GPa) stresses change with strain by {values} GPa (DFT)."


def table(potential: str, found: Properties, reference: Reference) -> str:
    """One potential as Markdown: beside DFT, then what DFT is not at hand for, then the runs."""
    symbol = found.lattice.atoms.get_chemical_symbols()[0]
    lines = [f"### {potential} ({symbol}, {found.seconds:.0f} s)", ""]
    lines += ["| | potential | DFT | deviation, % | target |", "|---|---|---|---|---|"]
    for name, value, dft, deviation, met in compared(found, reference):
        digits = 4 if name.startswith("a") else 1
        dft_text = f"{dft:.{3 if name.startswith('a') else 1}f}"
        lines.append(f"| {name} | {value:.{digits}f} | {dft_text} | {deviation:+.2f} | {'met' if met else 'missed'} |")
    lines += ["", "| | |", "|---|---|"]
    if found.relaxed:
        values = ", ".join(f"{name} {value:.1f}" for name, value in elastic_names(found.relaxed).items())
        lines.append(f"| with relaxed ions, GPa | {values} |")
    if found.vacancy:
        hole = found.vacancy
        lines.append(f"| vacancy, eV | {hole.energy:.3f} relaxed, {hole.unrelaxed:.3f} ideal, {hole.n_atoms} atoms |")
    if found.surfaces:
        values = ", ".join(f"({''.join(map(str, face.miller))}) {face.energy:.2f}" for face in found.surfaces)
        lines.append(f"| surfaces, not reconstructed, J/m² | {values} |")
    if found.phonons:
        waves = found.phonons
        state = "imaginary" if waves.imaginary else "none imaginary"
        edges = ", ".join(f"{name} {min(values):.2f}" for name, values in waves.special.items() if name != "G")
        text = f"{state}, lowest {waves.lowest:.2f}, highest {waves.highest:.2f}; lowest at {edges}"
        lines.append(f"| phonons, THz, {waves.n_atoms} atoms | {text} |")
    for run in dynamics_rows(found):
        run = dict(zip(DYNAMICS, run, strict=True))
        text = "; ".join(f"{name} {value}" for name, value in list(run.items())[1:] if value is not None)
        lines.append(f"| {run['run']} | {text} |")
    return "\n".join(
        [*lines, *(f"\nfailed: {note}" for note in found.failed), *(f"\n{note}" for note in found.skipped)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+", help="of one element each: Si, Cu or Mo")
    parser.add_argument("--md-time", type=float, default=50.0, help="ps; 0 leaves molecular dynamics out")
    parser.add_argument("--json", type=Path, help="write all numbers")
    parser.add_argument("--plots", type=Path, help="folder for a figure of each")
    arguments = parser.parse_args()
    everything = {}
    for name in arguments.potentials:
        symbol = element(name)
        reference = REFERENCES[symbol]
        heats = {"solid": reference.solid, "liquid": reference.liquid, "time": arguments.md_time}
        found = properties(name, symbol, **(heats if arguments.md_time > 0 else {}))
        label = Path(name).name
        print(table(label, found, reference), end="\n\n", flush=True)
        print(at_reference(name, symbol), end="\n\n", flush=True)
        everything[name] = as_dict(found)
        if arguments.plots:
            save_figure(plot_properties(found), arguments.plots / f"{label}-properties.png")
    if arguments.json:
        write_atomic(arguments.json, (json.dumps(everything, indent=2) + "\n").encode())


def element(potential: str) -> str:
    """The one element of REFERENCES that a potential knows; it says so before anything is measured."""
    from ase.data import chemical_symbols

    from ase_equinn import Potential

    known = [chemical_symbols[z] for z in Potential.load(potential).species]
    found = [symbol for symbol in known if symbol in REFERENCES]
    if len(found) != 1:
        raise SystemExit(f"{potential} knows {' '.join(known)}; one of {', '.join(REFERENCES)} is needed")
    return found[0]


if __name__ == "__main__":
    main()
