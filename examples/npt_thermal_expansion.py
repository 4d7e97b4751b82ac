"""Thermal expansion: the mean lattice constant at several temperatures and zero pressure.

The default is a start, not a result: with 64 atoms and 5 ps a temperature the expansion coefficient is known to about
1e-6 / K, as large as that of silicon itself. Classical atoms lack the negative expansion below 120 K.
"""

import argparse

import numpy as np
from ase.build import bulk

from ase_equinn import EquiCalculator
from ase_equinn.md import MDSettings, md
from ase_equinn.plot_md import read_log
from ase_equinn.relax import RelaxSettings, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--temperatures", type=float, nargs="+", default=[300, 600, 900], help="K")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--steps", type=int, default=2500, help="of 2 fs, at each temperature")
parser.add_argument("--out", default="npt", help="folder")
args = parser.parse_args()

calculator = EquiCalculator(args.potential)
atoms = relax(bulk("Si", cubic=True), calculator, RelaxSettings(cell="isotropic")).atoms.repeat(args.repeat)
lengths = []
for temperature in args.temperatures:
    settings = MDSettings(
        "npt", temperature, 2.0, barostat_time=500.0, initial_temperature=2 * temperature, log_every=2
    )
    run = md(atoms, calculator, settings, args.steps, output=f"{args.out}/{temperature:g}K", existing="overwrite")
    log = read_log(run.log)
    late = slice(len(log["step"]) // 3, None)
    a = (log["volume"][late] ** (1 / 3)).mean() / args.repeat
    lengths.append(a)
    print(f"{temperature:6.0f} K: {a:.4f} A, {log['pressure_GPa'][late].mean():+.2f} GPa")
    atoms = run.atoms  # the next temperature starts from here, with new momenta

if len(lengths) > 1:
    slope = np.polyfit(args.temperatures, lengths, 1)[0]
    print(f"linear expansion {slope / np.mean(lengths):.1e} / K")
