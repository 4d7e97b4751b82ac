"""Train a potential for one molecule from 100 DFT frames of ethanol, test it, and run the molecule at 300 K."""

import argparse
from pathlib import Path

import numpy as np
from ase.io import read

from ase_equinn import EquiCalculator
from ase_equinn.md import MDSettings, md
from ase_equinn.train import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max-time", default="5min", help="wall-clock budget of the training")
parser.add_argument("--irreps", default="32x0e+16x1o", help="features of an atom")
parser.add_argument("--steps", type=int, default=400, help="of 0.5 fs, after the training")
parser.add_argument("--out", default="ethanol", help="folder of the potential")
args = parser.parse_args()

data = Path(__file__).parent / "data" / "ethanol_rmd17"
config = {
    "data": {"train": [str(data / "train.xyz"), str(data / "isolated.xyz")], "valid": str(data / "valid.xyz")},
    "output": args.out,
    "model": {"name": "nequip", "cutoff": 4.0, "irreps_hidden": args.irreps, "lmax": 2},
}
train(config, max_time=args.max_time)

calculator = EquiCalculator(args.out)
frames = read(data / "valid.xyz", ":")
errors, energies = [], []
for frame in frames:
    errors.append(calculator.get_property("forces", frame) - frame.arrays["REF_forces"])
    energies.append(calculator.get_property("energy", frame) - frame.info["REF_energy"])
print(f"force MAE {1000 * np.abs(errors).mean():.0f} meV/A, energy MAE {1000 * np.abs(energies).mean():.0f} meV")

settings = MDSettings("nvt", 300, timestep=0.5, frame_every=20)
run = md(frames[0], calculator, settings, args.steps, output=f"{args.out}/md", existing="overwrite")
bond = run.atoms.get_distance(0, 1)
print(f"after {args.steps * 0.5:g} fs the C-C bond is {bond:.2f} A long; trajectory: {run.trajectory}")
