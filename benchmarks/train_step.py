"""Prints what a training step costs in this package and in mace-torch, measured in turn in one run, and the ratio.

    python benchmarks/train_step.py --mace-python VENV/bin/python --json train_step.json

mace-torch==0.3.16 lives in a virtual environment of its own. Both train the same MACE (two layers, max_ell 3,
correlation 3, cutoff 5 A) from random weights in float32 on batches of 5 rattled diamond Si cells of 64 atoms, with fixed
random labels and the mean squared errors of energies per atom and of forces as loss. Each trains in its own way
(train_peer.py): this package as `equinn train` does, mace-torch with its loader, WeightedEnergyForcesLoss, optimizer
and take_step. One worker stays alive and idle while the other is timed; medians of the rounds are printed. Without
--mace-python only ours is timed. Wall-clock ratios mean something on a quiet machine only; CPU time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from speed import HEADER, Case, line_of, measure, rows_of, workers_of
from speed import Worker as CalculatorWorker


class Worker(CalculatorWorker):
    """A training run in a process of its own."""

    script = Path(__file__).with_name("train_peer.py")


def _mace(irreps: str) -> Case:
    ours = {"name": "MACE", "n_layers": 2, "irreps_hidden": irreps, "lmax": 3, "correlation": 3}
    return Case("Si:2", ours, {"mace": {"hidden_irreps": irreps, "max_ell": 3, "correlation": 3}})


CASES = {"mace-64": _mace("64x0e+64x1o"), "mace-128": _mace("128x0e+128x1o")}
VARIANTS = {"ase_equinn": ("auto",), "mace": ("eager",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace-python", help="interpreter of an environment with mace-torch")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["mace-64"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="for one package in one round")
    parser.add_argument("--json", type=Path, help="write the rows")
    arguments = parser.parse_args()
    pythons = {"ase_equinn": sys.executable, "mace": arguments.mace_python}
    print(f"{arguments.threads} threads, float32, {arguments.rounds} rounds in turn; ratios to the first row of a case")
    print(HEADER, flush=True)
    rows = []
    for name in arguments.cases:
        workers = workers_of(CASES[name], pythons, VARIANTS, arguments.threads, Worker)
        try:
            measure(workers, arguments.rounds, arguments.seconds)
            found = rows_of(name, workers)
        finally:
            for worker in workers:
                worker.close()
        print(*map(line_of, found), sep="\n", flush=True)
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": arguments.threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
