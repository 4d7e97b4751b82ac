"""Prints time and memory per atom of an MD step over the number of atoms, each size in a process of its own.

    python benchmarks/scaling.py [--case mace-64] [--sizes 216,1728,5832,21952,97336] [--steps 5]

The models are those of speed.py (random weights: time does not depend on them), the structure is rattled diamond silicon,
cutoff 5 A, float32, energy + forces + stress through the calculator. "step" is the median of the steps after the first, whose
atoms move as at room temperature. Memory is the process's largest resident set, less what it was before the first step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from peer import CUTOFF, structure
from speed import CASES


def memory_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(case: str, n_cells: int, n_steps: int) -> dict:
    """One size, in this process."""
    import numpy as np
    import torch

    import ase_equinn

    atoms = structure(f"Si:{n_cells}")
    options = dict(CASES[case].ours)
    torch.manual_seed(0)
    model = getattr(ase_equinn, options.pop("name"))([14], CUTOFF, 28.0, **options)
    calc = ase_equinn.EquiCalculator(ase_equinn.Potential([model]), device="cpu")
    small = structure("Si:1")
    calc.calculate(small, ["energy", "forces", "stress"])  # compiles
    start, before = atoms.positions.copy(), memory_gb()
    swing, times = np.random.default_rng(0).normal(scale=0.05, size=start.shape), []
    for step in range(n_steps + 1):
        atoms.positions = start + swing * np.sin(step / 15)
        begin = time.perf_counter()
        calc.calculate(atoms, ["energy", "forces", "stress"])
        times.append(time.perf_counter() - begin)
        if step == 0:
            calc.timings.update(neighbors=0.0, model=0.0, total=0.0, count=0)
    spent = calc.timings
    return {
        "n_atoms": len(atoms), "first_s": times[0], "step_s": statistics.median(times[1:]),
        "model_share": spent["model"] / spent["total"], "memory_gb": memory_gb(), "added_gb": memory_gb() - before,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[name for name, case in CASES.items() if case.structure == "Si:3"], default="mace-64")
    parser.add_argument("--sizes", default="216,1728,5832,21952,97336", help="atoms, rounded to cubes of cells")
    parser.add_argument("--steps", type=int, default=5, help="at least; small sizes get more")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.case, arguments.one, arguments.steps)))
        return
    print(f"{'atoms':>8s} {'us/atom':>8s} {'first s':>8s} {'model':>6s} {'GB':>6s} {'kB/atom':>8s}", flush=True)
    for size in map(int, arguments.sizes.split(",")):
        n_cells, n_steps = round((size / 8) ** (1 / 3)), max(arguments.steps, min(300, 100_000 // size))
        command = [sys.executable, __file__, "--case", arguments.case, "--one", str(n_cells), "--steps", str(n_steps)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
        print(
            f"{row['n_atoms']:8d} {1e6 * row['step_s'] / row['n_atoms']:8.2f} {row['first_s']:8.2f}"
            f" {row['model_share']:6.1%} {row['memory_gb']:6.2f} {1e6 * row['added_gb'] / row['n_atoms']:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
