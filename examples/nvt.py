"""Molecular dynamics at constant temperature: g(r) of a crystal, or of a melt at 3000 K."""

import argparse

from ase.build import bulk
from ase.io import read

from ase_equinn import EquiCalculator
from ase_equinn.md import MDSettings, md
from ase_equinn.plot import save_figure
from ase_equinn.plot_md import plot_rdf, plot_temperature, read_log

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--steps", type=int, default=2000, help="of 1 fs")
parser.add_argument("--out", default="nvt", help="folder")
args = parser.parse_args()

crystal = bulk("Si", cubic=True)
atoms = crystal.repeat(args.repeat)
# "nvt" is Langevin dynamics; "nvt-bussi" and "nvt-nhc" disturb the trajectories less. A killed run goes on bitwise with
# existing="resume", and so does one whose number of steps is raised.
settings = MDSettings("nvt", args.temperature, initial_temperature=2 * args.temperature, log_every=2, frame_every=20)
run = md(atoms, EquiCalculator(args.potential), settings, args.steps, output=args.out, existing="overwrite")

log, frames = read_log(run.log), read(run.trajectory, ":")
half = len(log["step"]) // 2
print(f"mean temperature of the second half {log['temperature'][half:].mean():.0f} K")
print(f"mean pressure of the second half {log['pressure_GPa'][half:].mean():.2f} GPa")
name = f"{args.temperature:g} K"
print("figure:", save_figure(plot_rdf({name: frames[len(frames) // 2 :]}, crystal), f"{args.out}/rdf.png"))
print("figure:", save_figure(plot_temperature({name: run.log}, args.temperature), f"{args.out}/temperature.png"))
