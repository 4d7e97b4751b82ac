"""Relax a pymatgen Structure: it takes any ASE calculator. pip install "ase_equinn[pymatgen]"."""

import argparse

from pymatgen.core import Lattice, Structure

from ase_equinn import EquiCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--fmax", type=float, default=0.01, help="eV/A")
args = parser.parse_args()

structure = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.6), ["Si"], [[0, 0, 0]])
structure.perturb(0.05)
calculator = EquiCalculator(args.potential)

relaxed = structure.relax(calculator=calculator, relax_cell=True, fmax=args.fmax, verbose=False)
print(f"{relaxed.composition}: a = {relaxed.lattice.a:.3f}, {relaxed.lattice.b:.3f}, {relaxed.lattice.c:.3f} A")
print(f"space group {relaxed.get_space_group_info(symprec=0.05)[0]}")
energy = structure.calculate(calculator=calculator).results["energy"]
print(f"energy before {energy / len(structure):.4f} eV/atom")
