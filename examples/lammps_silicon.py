"""Silicon in LAMMPS on several MPI ranks: heated at constant pressure, then quenched.

python examples/lammps_silicon.py --repeat 5 --steps 1000 --ranks 2        (pip install "ase_equinn[lammps]")

The same from the shell, with the input that this writes: equinn lammps silicon.lmp --potential silicon -n 2
"""

import argparse
from pathlib import Path

import numpy as np

from ase_equinn.engines.lammps import run_script

INPUT = """
units           metal
lattice         diamond 5.47
region          box block 0 {repeat} 0 {repeat} 0 {repeat}
create_box      1 box
create_atoms    1 box
mass            1 28.0855
velocity        all create {temperature} 1

pair_style      equinn              # the potential; its elements follow from the masses

timestep        0.002
thermo          {every}
thermo_style    custom step temp pe etotal press vol
restart         {steps} silicon.1.restart silicon.2.restart
fix             hot all npt temp {temperature} {temperature} 0.1 iso 0 0 1
fix             table all print {every} "$(step) $(temp) $(pe/atoms) $(lx/{repeat})" file silicon.dat screen no
run             {steps}
unfix           hot
minimize        0 0.01 20 40
print           "quenched: $(pe/atoms:%.4f) eV/atom" append silicon.dat
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeat", type=int, default=5, help="cubic cells along each side")
parser.add_argument("--steps", type=int, default=1000, help="of 2 fs")
parser.add_argument("--temperature", type=float, default=600.0, help="K")
parser.add_argument("--ranks", type=int, default=2)
options = parser.parse_args()

every = max(1, options.steps // 50)
Path("silicon.lmp").write_text(
    INPUT.format(repeat=options.repeat, temperature=options.temperature, steps=options.steps, every=every)
)
if status := run_script("silicon.lmp", "silicon", n_ranks=options.ranks):
    raise SystemExit(status)

*table, last = Path("silicon.dat").read_text().splitlines()[1:]
rows = np.array([line.split() for line in table], dtype=float)
_, temperature, energy, a = rows[len(rows) // 2 :].mean(axis=0)
print(f"second half: {temperature:.0f} K, {energy:.4f} eV/atom, a = {a:.3f} A")
print(last)
