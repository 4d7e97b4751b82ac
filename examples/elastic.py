"""Relax a cell, then fit its equation of state and elastic constants, with the atoms clamped and relaxed."""

import argparse

from ase.build import bulk

from ase_equinn import EquiCalculator
from ase_equinn.elastic import elastic_constants, equation_of_state
from ase_equinn.relax import RelaxSettings, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="silicon", help="shipped name, folder or file")
parser.add_argument("--element", default="Si")
parser.add_argument("--strain", type=float, default=0.005, help="largest strain of the fit")
args = parser.parse_args()

# Small displacements of few atoms: float64 costs little here and keeps the fit free of noise.
calculator = EquiCalculator(args.potential, dtype="float64")
atoms = bulk(args.element)  # the primitive cell; its cubic axes lie along x, y and z
relaxed = relax(atoms, calculator, RelaxSettings(cell="full", fmax=1e-4, smax=1e-3))
atoms = relaxed.atoms
print(f"cell relaxed in {relaxed.steps} steps, stress left {relaxed.max_stress:.1e} GPa")
print(f"lattice constant {(atoms.get_volume() / len(atoms) * 8) ** (1 / 3):.4f} A (if diamond)")

eos = equation_of_state(atoms, calculator)
print(f"bulk modulus {eos.bulk_modulus:.1f} GPa from energies, {eos.bulk_modulus_stress:.1f} GPa from stresses")
print(f"scale of lowest energy {eos.scale:.5f}, of zero stress {eos.scale_stress:.5f}")

print(f"{'GPa':16s}{'C11':>8s}{'C12':>8s}{'C44':>8s}")
for name, ions in (("clamped atoms", False), ("relaxed atoms", True)):
    result = elastic_constants(atoms, calculator, strain=args.strain, relaxed=ions)
    c11, c12, c44, spread = result.cubic
    print(f"{name:16s}{c11:8.1f}{c12:8.1f}{c44:8.1f}   (off cubic symmetry by {spread:.2g})")
