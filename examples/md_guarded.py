"""Molecular dynamics that stops when the potential is unsure: silicon is pressed together until it leaves the known."""

import argparse
from pathlib import Path

from ase.build import bulk
from ase.io import read

from ase_equinn import EquiCalculator
from ase_equinn.calibrate import calibrate
from ase_equinn.data import read_frames
from ase_equinn.md import MDSettings, md
from ase_equinn.runfiles import RunError

DATA = Path(__file__).parent / "data/si_zuo2020"
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--pressure", type=float, default=200.0, help="GPa")
parser.add_argument("--temperature", type=float, default=1000.0, help="K")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--steps", type=int, default=5000, help="of 1 fs")
parser.add_argument("--every", type=int, default=1, help="take every so many of the training structures")
parser.add_argument("--out", default="md_guarded", help="folder")
args = parser.parse_args()

# Once per potential; `equinn calibrate` does the same and writes a file, so that only the calculator is left to write.
train, valid = (read_frames(DATA / f"Si_{part}.xyz").frames for part in ("train", "valid"))
potential = calibrate(args.potential, train[:: args.every], valid)
known = potential.uncertainty.facts["valid"]
print(f"errors of forces on known ground: {known['error_rms']:.3f} eV/A, rank correlation {known['rank_correlation']:.2f}")

# Without guard_threshold it is twice the largest uncertainty on the validation set.
calc = EquiCalculator(potential, guard="stop", guard_file=f"{args.out}/uncertain.xyz")
atoms = bulk("Si", cubic=True).repeat(args.repeat)
settings = MDSettings(
    "npt", args.temperature, pressure=args.pressure, barostat_time=500, initial_temperature=2 * args.temperature
)
try:
    md(atoms, calc, settings, args.steps, output=args.out, existing="overwrite")
    print("the run never left what the potential knows")
except RunError as error:
    print(error)
    frame = read(f"{args.out}/uncertain.xyz")  # what to compute with the reference method, and to train on
    print(f"volume {frame.get_volume() / len(frame):.1f} A^3 per atom, at the start {atoms.get_volume() / len(atoms):.1f}")
    print(f"largest uncertainty {frame.arrays['forces_sigma'].max():.2f} eV/A")
