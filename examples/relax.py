"""Relax positions and cell of a distorted silicon crystal; a killed relaxation goes on where it was."""

import argparse

from ase.build import bulk

from ase_equinn import EquiCalculator
from ase_equinn.dynamics import RelaxSettings, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--repeat", type=int, default=2, help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--fmax", type=float, default=0.01, help="eV/A")
parser.add_argument("--out", default="relax", help="folder")
args = parser.parse_args()

atoms = bulk("Si", cubic=True).repeat(args.repeat)
atoms.set_cell(atoms.cell * [1.03, 1.0, 0.98], scale_atoms=True)
atoms.rattle(0.1, seed=1)
atoms.calc = EquiCalculator(
    args.potential
)  # an ASE calculator: atoms.get_potential_energy(), ase.optimize, ase.md, ...
print(f"before: {atoms.get_potential_energy() / len(atoms):.4f} eV/atom, cell {atoms.cell.lengths().round(3)} A")

# The same from the shell: equinn relax silicon start.cif --cell full --out relax
settings = RelaxSettings(cell="full", fmax=args.fmax)
result = relax(atoms, atoms.calc, settings, output=args.out, existing="resume")
relaxed = result.atoms
print(f"after {result.steps} steps: {relaxed.get_potential_energy() / len(relaxed):.4f} eV/atom")
a, b, c = relaxed.cell.lengths() / args.repeat
print(f"a = {a:.4f}, {b:.4f}, {c:.4f} A")
print(f"left: {result.max_force:.4f} eV/A and {result.max_stress:.4f} GPa; files in {args.out}")
