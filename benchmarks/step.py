"""Prints the cost of one MD step (energy, forces and stress through the ASE calculator) of rattled diamond Si.

    python benchmarks/step.py                                # NequIP of preset S sizes, both implementations, 216 atoms
    python benchmarks/step.py --model silicon --cells 2 3 4  # a potential, several sizes

Positions move a little between steps, as in MD, so that the neighbour list's skin counts. Implementations are timed in
turn, several rounds; the median of the rounds is printed. No test asserts any of these numbers.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from ase.build import bulk

from ase_equinn import EquiCalculator, NequIP, Potential


def preset_s() -> Potential:
    """2 layers, l_max 1, 128x0e+64x1o, cutoff 5 A, random weights."""
    torch.manual_seed(0)
    model = NequIP([14], 5.0, 28.0, n_layers=2, irreps_hidden="128x0e+64x1o", radial_mlp=[64, 64])
    return Potential([model])


def seconds_per_step(calc: EquiCalculator, atoms, n_steps: int, rng: np.random.Generator) -> float:
    start = time.perf_counter()
    for _ in range(n_steps):
        atoms.positions += rng.normal(scale=0.002, size=atoms.positions.shape)
        calc.calculate(atoms, ["energy", "forces", "stress"])
    return (time.perf_counter() - start) / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a shipped name or path; default: NequIP of preset S sizes")
    parser.add_argument("--cells", type=int, nargs="+", default=[3], help="cubic supercells, 8 n^3 atoms")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = arguments.model or preset_s()
    calcs = {}
    for backend in ("reference", "auto"):
        calc = EquiCalculator(model, device=arguments.device, dtype=arguments.dtype, backend=backend)
        calcs[backend if calc.backend == "reference" else calc.backend] = calc
    print(f"{torch.get_num_threads()} threads, {arguments.dtype}, {arguments.model or 'NequIP 128x0e+64x1o'}")
    for n in arguments.cells:
        atoms = bulk("Si", cubic=True) * n
        atoms.rattle(0.1, seed=0)
        times = {name: [] for name in calcs}
        steps = max(2, 2000 // len(atoms))
        for calc in calcs.values():
            seconds_per_step(calc, atoms.copy(), 2, np.random.default_rng(0))
        for _ in range(arguments.rounds):
            for name, calc in calcs.items():
                times[name].append(seconds_per_step(calc, atoms.copy(), steps, np.random.default_rng(0)))
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, value in medians.items():
            ratio = medians["reference"] / value
            us = 1e6 * value / len(atoms)
            print(f"{len(atoms):7d} atoms  {name:10s} {1e3 * value:9.2f} ms  {us:8.1f} us/atom/step  {ratio:5.1f}x")


if __name__ == "__main__":
    main()
