"""The formation energy of a vacancy, before and after its neighbours relax, for growing cells.

E_f = E(N - 1 atoms) - (N - 1)/N E(N atoms)
"""

import argparse

from ase.build import bulk

from ase_equinn import EquiCalculator
from ase_equinn.relax import RelaxSettings, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--repeat", type=int, nargs="+", default=[2, 3], help="cubic cells along each axis, 8 atoms each")
parser.add_argument("--fmax", type=float, default=0.01, help="eV/A")
args = parser.parse_args()

calculator = EquiCalculator(args.potential)
unit = relax(bulk("Si", cubic=True), calculator, RelaxSettings(cell="isotropic", fmax=args.fmax)).atoms
per_atom = unit.get_potential_energy() / len(unit)

for repeat in args.repeat:
    atoms = unit.repeat(repeat)
    del atoms[0]
    atoms.calc = calculator
    ideal = atoms.get_potential_energy() - len(atoms) * per_atom
    atoms.rattle(0.02, seed=1)  # or the relaxation would keep the symmetry of the ideal vacancy
    result = relax(atoms, calculator, RelaxSettings(fmax=args.fmax))
    formation = result.atoms.get_potential_energy() - len(atoms) * per_atom
    print(f"{len(atoms):5d} atoms: {formation:.3f} eV relaxed in {result.steps} steps, {ideal:.3f} eV unrelaxed")
