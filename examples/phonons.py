"""Phonon bands of silicon by finite displacements with phonopy: pip install "ase_equinn[phonons]"."""

import argparse

import numpy as np
from ase import Atoms
from ase.build import bulk
from matplotlib.figure import Figure
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints_and_path_connections
from phonopy.structure.atoms import PhonopyAtoms

from ase_equinn import EquiCalculator
from ase_equinn.relax import RelaxSettings, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--repeat", type=int, default=4, help="primitive cells along each axis of the supercell")
parser.add_argument("--out", default="phonons.png")
args = parser.parse_args()

calculator = EquiCalculator(args.potential, dtype="float64")
cell = relax(bulk("Si"), calculator, RelaxSettings(cell="isotropic", smax=1e-3)).atoms
phonon = Phonopy(
    PhonopyAtoms(symbols=cell.get_chemical_symbols(), cell=cell.cell[:], scaled_positions=cell.get_scaled_positions()),
    supercell_matrix=np.eye(3, dtype=int) * args.repeat,
)
phonon.generate_displacements(distance=0.01)
forces = []
for moved in phonon.supercells_with_displacements:
    atoms = Atoms(moved.symbols, cell=moved.cell, scaled_positions=moved.scaled_positions, pbc=True)
    forces.append(calculator.get_property("forces", atoms))
phonon.forces = forces
phonon.produce_force_constants()
phonon.symmetrize_force_constants()

corners = {"Γ": (0, 0, 0), "X": (0.5, 0, 0.5), "K": (3 / 8, 3 / 8, 3 / 4), "L": (0.5, 0.5, 0.5)}
path = [[corners["Γ"], corners["X"]], [corners["K"], corners["Γ"], corners["L"]]]
points, connections = get_band_qpoints_and_path_connections(path, npoints=51)
phonon.run_band_structure(points, path_connections=connections)
bands = phonon.band_structure
print(f"highest at Γ {bands.frequencies[0][0].max():.2f} THz, lowest anywhere {np.min(bands.frequencies):.2f} THz")

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
    axes.plot(distances, frequencies, color="#2060a0", lw=1.2)
ticks = [bands.distances[0][0], *(distances[-1] for distances in bands.distances)]
axes.set(xticks=ticks, xticklabels=["Γ", "X|K", "Γ", "L"], xlim=(ticks[0], ticks[-1]), ylabel="frequency (THz)")
axes.grid(axis="x", color="0.8")
axes.axhline(0, color="0.6", lw=0.8)
figure.savefig(args.out, dpi=150)
print("figure:", args.out)
