"""Prints what an MD step costs beside the network, in microseconds: neighbours, checks, conversions, ASE.

    python benchmarks/overhead.py                    # ethanol, 216 and 8000 Si, one thread
    python benchmarks/overhead.py --cells 3 14 --skin 0.3

The model is a SchNet without layers, so "model" is little more than what any model pays around its network. "neighbors"
includes the checks of the atoms; "rest" is what `calculate` does beside these two; "ASE" what `atoms.get_forces()` adds
to it. "rebuild" is "neighbors" in a step in which the list is built anew; in the other columns it is kept. Atoms move a
little between steps. Every number is the median of a round's steps, in the best round. No test asserts any of them.
"""

import argparse
import statistics
from time import perf_counter

import numpy as np
import torch
from ase.build import bulk, molecule

from ase_equinn import EquiCalculator, Potential, SchNet

PHASES = ("neighbors", "model", "rest", "ASE")


def structures(cells: list[int]) -> dict:
    """Ethanol, and rattled diamond Si of 8 n^3 atoms."""
    found = {"ethanol": molecule("CH3CH2OH")}
    for n in cells:
        atoms = bulk("Si", cubic=True) * n
        atoms.rattle(0.05, seed=0)
        found[f"{len(atoms)} Si"] = atoms
    return found


def step(calc: EquiCalculator, atoms) -> dict[str, float]:
    """Seconds of one step by phase."""
    before = dict(calc.timings)
    start = perf_counter()
    atoms.get_forces()
    wall = perf_counter() - start
    spent = {key: calc.timings[key] - before[key] for key in ("neighbors", "model", "total")}
    rest = spent["total"] - spent["neighbors"] - spent["model"]
    return {"neighbors": spent["neighbors"], "model": spent["model"], "rest": rest, "ASE": wall - spent["total"]}


def measure(calc: EquiCalculator, atoms, n_steps: int, n_rounds: int) -> dict[str, float]:
    """Seconds of each phase, and of the neighbours in a step with a new list."""
    rng = np.random.default_rng(0)
    atoms, best = atoms.copy(), {}
    atoms.calc = calc
    atoms.get_forces()
    origin = atoms.positions.copy()
    for _ in range(n_rounds):
        kept, built = [], []
        for _ in range(n_steps):
            atoms.positions = origin + rng.normal(scale=0.003, size=origin.shape)
            kept.append(step(calc, atoms))
        for neighbors in calc._lists.values():
            neighbors._built = None
        atoms.positions = origin + rng.normal(scale=0.003, size=origin.shape)
        built.append(step(calc, atoms)["neighbors"])
        found = {name: statistics.median(one[name] for one in kept) for name in PHASES}
        found["rebuild"] = min(built)
        best = {name: min(value, best.get(name, value)) for name, value in found.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[3, 10], help="cubic supercells, 8 n^3 atoms")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--skin", type=float, default=0.5)
    parser.add_argument("--neighbors", default="vesin")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    potential = Potential([SchNet([1, 6, 8, 14], arguments.cutoff, n_channels=2, n_layers=0)])
    calc = EquiCalculator(potential, device="cpu", skin=arguments.skin, neighbors=arguments.neighbors)
    print(f"us a step, {arguments.threads} threads, cutoff {arguments.cutoff} A, skin {arguments.skin} A")
    print(f"{'':10s}" + "".join(f"{name:>12s}" for name in (*PHASES, "rebuild")))
    for name, atoms in structures(arguments.cells).items():
        n_steps = max(5, min(200, 100_000 // len(atoms)))
        found = measure(calc, atoms, n_steps, arguments.rounds)
        print(f"{name:10s}" + "".join(f"{1e6 * value:12.1f}" for value in found.values()), flush=True)


if __name__ == "__main__":
    main()
