"""Molecular dynamics at constant energy: how well the total energy is conserved."""

import argparse

import numpy as np
from ase.build import bulk

from ase_equinn import EquiCalculator
from ase_equinn.md import MDSettings, md
from ase_equinn.plot import save_figure
from ase_equinn.plot_md import plot_energy, read_log

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--steps", type=int, default=2000, help="of 1 fs")
parser.add_argument("--out", default="nve", help="folder")
args = parser.parse_args()

atoms = bulk("Si", cubic=True).repeat(args.repeat)
# Momenta for 600 K: half of it goes into the potential energy, so the run settles near 300 K.
settings = MDSettings("nve", temperature=600, timestep=1.0, log_every=2)
run = md(atoms, EquiCalculator(args.potential), settings, args.steps, output=args.out, existing="overwrite")

log = read_log(run.log)
slope = np.polyfit(log["time_fs"] / 1000, log["total_energy"] / len(atoms), 1)[0]
print(f"mean temperature {log['temperature'].mean():.0f} K")
print(f"drift of the total energy {slope:+.1e} eV/atom/ps")
print("figure:", save_figure(plot_energy(run.log, len(atoms)), f"{args.out}/energy.png"))
