"""What `guard="warn"` adds to a step of a calibrated potential: steps with and without in turn, medians.

OMP_NUM_THREADS=1 python benchmarks/guard_cost.py silicon --cells 2
OMP_NUM_THREADS=1 python benchmarks/guard_cost.py acac
"""

import argparse
import time

import ase.io
import numpy as np
from ase.build import bulk
from ase.data import chemical_symbols

from ase_equinn import EquiCalculator, read_header
from ase_equinn.potential_find import find_potential


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential", help="calibrated: folder, file or shipped name")
    parser.add_argument("--cells", type=int, help="an elemental crystal of so many cubic cells in each direction")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    if options.cells:
        element = chemical_symbols[read_header(options.potential)["species"][0]]
        atoms = bulk(element, cubic=True).repeat(options.cells)
        atoms.rattle(0.05)
    else:
        atoms = ase.io.read(find_potential(options.potential).parent / "check.xyz", "0")
        atoms.calc = None
    both = [atoms.copy(), atoms.copy()]
    for guard, copy in zip((None, "warn"), both):
        copy.calc = EquiCalculator(options.potential, device="cpu", guard=guard)
    random, seconds = np.random.default_rng(0), np.zeros((options.steps, 2))
    for k in range(options.steps):
        moved = atoms.positions + random.normal(0, 0.003, atoms.positions.shape)
        for i, copy in enumerate(both):
            copy.positions = moved
            start = time.perf_counter()
            copy.get_forces()
            seconds[k, i] = time.perf_counter() - start
    plain, guarded = 1e6 * np.median(seconds, axis=0)
    print(f"{len(atoms)} atoms: {plain:.0f} -> {guarded:.0f} us, {100 * (guarded / plain - 1):.1f} %")


if __name__ == "__main__":
    main()
