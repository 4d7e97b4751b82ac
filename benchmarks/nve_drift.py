"""Prints the drift of the total energy in NVE: the slope of a least-squares line, eV/atom/ps.

    python benchmarks/nve_drift.py silicon        # 216 atoms, 300 K, 1 fs, 20 ps, float32

The first 0.5 ps, in which the crystal takes up its thermal energy, count like the rest.
"""

import argparse

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_equinn import EquiCalculator


def total_energies(calc: EquiCalculator, a: float, cells: int, kelvin: float, femtoseconds: float, steps: int):
    """(total energy eV/atom after each step, mean temperature of the second half)."""
    atoms = bulk("Si", cubic=True, a=a) * cells
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=2 * kelvin, rng=np.random.default_rng(0))
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, timestep=femtoseconds * units.fs)
    energies, temperatures = [], []
    for _ in dynamics.irun(steps):
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())
    return np.array(energies), float(np.mean(temperatures[len(temperatures) // 2 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lattice", type=float, default=5.469, help="A")
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--kelvin", type=float, default=300.0)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    calc = EquiCalculator(arguments.model, dtype=arguments.dtype)
    steps = round(1000 * arguments.ps / arguments.timestep)
    energies, kelvin = total_energies(
        calc, arguments.lattice, arguments.cells, arguments.kelvin, arguments.timestep, steps
    )
    time = 1e-3 * arguments.timestep * np.arange(len(energies))
    slope, offset = np.polyfit(time, energies - energies[0], 1)
    scatter = np.std(energies - energies[0] - slope * time - offset)
    n = 8 * arguments.cells**3
    print(f"{n} atoms, {kelvin:.0f} K, {arguments.timestep:g} fs, {arguments.ps:g} ps, {arguments.dtype}")
    print(f"slope {slope:.2e} eV/atom/ps, scatter {scatter:.1e} eV/atom")
    print(f"{1e3 * calc.timings['total'] / calc.timings['count']:.2f} ms a step")


if __name__ == "__main__":
    main()
