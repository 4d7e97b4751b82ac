"""Prints what an MD step costs in this package and in others, measured in turn in one run, and the ratios.

    python benchmarks/speed.py --nequip-python VENV/bin/python --mace-python VENV/bin/python --json speed.json

Each peer lives in a virtual environment of its own (torch==2.13.0 first, then nequip==0.19.1 or mace-torch==0.3.16). All
get the same hyper-parameters, structures, precision (float32) and threads: rattled diamond Si of 216 atoms, cutoff 5 A,
energy + forces + stress through the ASE calculator, or ethanol with energy + forces. One worker (peer.py) a calculator
stays alive and idle while the others are timed; every round times each of them once; medians of the rounds are printed.

A peer runs at its best: nequip eager and compiled ahead of time by nequip-compile's AOTInductor (its torch.compile mode
answers a single structure with the eager model); mace-torch eager, which is all that it has on a CPU. Without a peer's
interpreter its rows are left out. Wall-clock ratios mean something on a quiet machine only; CPU time is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

WORKER = Path(__file__).with_name("peer.py")


class Case(NamedTuple):
    """One model at one size. `ours` and `peers` are the arguments of the architectures."""

    structure: str  # of peer.structure
    ours: dict[str, Any]
    peers: dict[str, dict[str, Any]]  # by package


def _nequip(n_layers: int, irreps: str, features: list[int]) -> Case:
    lmax = len(features) - 1
    ours = {"name": "NequIP", "n_layers": n_layers, "irreps_hidden": irreps, "lmax": lmax, "radial_mlp": [128]}
    peer = {
        "num_layers": n_layers, "l_max": lmax, "num_features": features, "parity": False,
        "type_embed_num_features": 32, "radial_mlp_depth": 1, "radial_mlp_width": 128,
    }  # fmt: skip
    return Case("Si:3", ours, {"nequip": peer})


def _mace(structure: str, irreps: str) -> Case:
    ours = {"name": "MACE", "n_layers": 2, "irreps_hidden": irreps, "lmax": 3, "correlation": 3}
    return Case(structure, ours, {"mace": {"hidden_irreps": irreps, "max_ell": 3, "correlation": 3}})


CASES = {
    "nequip-S": _nequip(2, "128x0e+64x1o", [128, 64]),
    "nequip-M": _nequip(4, "128x0e+64x1o+32x2e", [128, 64, 32]),
    "mace-64": _mace("Si:3", "64x0e+64x1o"),
    "mace-128": _mace("Si:3", "128x0e+128x1o"),
    "mace-64-ethanol": _mace("CH3CH2OH", "64x0e+64x1o"),
    "schnet": Case("Si:3", {"name": "SchNet"}, {}),
    "nequip-32": Case("Si:3", {"name": "NequIP", "n_layers": 3, "irreps_hidden": "32x0e+32x1o+32x2e"}, {}),
}
VARIANTS = {"ase_equinn": ("auto",), "nequip": ("eager", "aotinductor"), "mace": ("eager",)}


class Worker:
    """A calculator in a process of its own."""

    script = WORKER

    def __init__(self, python: str, package: str, variant: str, model: dict, structure: str, threads: int):
        self.package, self.variant = package, variant
        task = {"package": package, "variant": variant, "model": model, "structure": structure, "threads": threads}
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if package == "mace":  # e3nn 0.4.4, which it pins, loads its own constants the old way
            environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        self.messages = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen(
            [python, str(self.script), json.dumps(task)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.messages,
        )  # fmt: skip
        self.ready = self._answer()
        self.n_atoms, self.rounds = self.ready["n_atoms"], []

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.messages.seek(0)
            raise RuntimeError(f"{self.package} ({self.variant}) failed:\n{self.messages.read()[-2000:]}")
        return json.loads(line)

    def time(self, n_steps: int) -> dict:
        self.process.stdin.write(f"{n_steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def median(self, key: str) -> float:
        return statistics.median(answer[key] for answer in self.rounds)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.messages.close()


def workers_of(
    case: Case, pythons: dict[str, str], variants: dict[str, tuple], threads: int, kind: type[Worker] = Worker
) -> list[Worker]:
    """Ours first. A variant that cannot be built is named on standard error and left out."""
    models = {"ase_equinn": case.ours} | {name: model for name, model in case.peers.items() if pythons.get(name)}
    workers = []
    for package, model in models.items():
        for variant in variants[package]:
            try:
                workers.append(kind(pythons[package], package, variant, model, case.structure, threads))
            except RuntimeError as error:
                print(error, file=sys.stderr)
    return workers


def measure(workers: list[Worker], rounds: int, seconds: float) -> None:
    steps = [max(1, min(1000, int(seconds / worker.time(2)["wall_s"]))) for worker in workers]
    for _ in range(rounds):
        for worker, n_steps in zip(workers, steps):
            worker.rounds.append(worker.time(n_steps))


def rows_of(name: str, workers: list[Worker]) -> list[dict]:
    rows = []
    for worker in workers:
        row = {"case": name, "package": worker.package, "variant": worker.variant, "n_atoms": worker.n_atoms}
        row |= {key: worker.median(key) for key in ("wall_s", "cpu_s", "memory_mb")}
        row["us_per_atom"] = 1e6 * row["wall_s"] / worker.n_atoms
        row["spread"] = max(a["wall_s"] for a in worker.rounds) / min(a["wall_s"] for a in worker.rounds)
        row["wall_ratio"] = worker.median("wall_s") / workers[0].median("wall_s")
        row["cpu_ratio"] = worker.median("cpu_s") / workers[0].median("cpu_s")
        rows.append(row | {"build_s": worker.ready["build_s"]})
    return rows


def line_of(row: dict) -> str:
    return (
        f"{row['case']:16s} {row['package']:10s} {row['variant']:11s} {row['n_atoms']:6d} {1e3 * row['wall_s']:9.2f}"
        f" {row['us_per_atom']:9.1f} {row['wall_ratio']:7.2f} {1e3 * row['cpu_s']:9.2f} {row['cpu_ratio']:7.2f}"
        f" {row['spread']:7.2f} {row['memory_mb']:7.0f} {row['build_s']:7.1f}"
    )


HEADER = (
    f"{'case':16s} {'package':10s} {'variant':11s} {'atoms':>6s} {'ms/step':>9s} {'us/atom':>9s} {'ratio':>7s}"
    f" {'CPU ms':>9s} {'ratio':>7s} {'max/min':>7s} {'MB':>7s} {'build s':>7s}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nequip-python", help="interpreter of an environment with nequip")
    parser.add_argument("--mace-python", help="interpreter of an environment with mace-torch")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for one calculator in one round")
    parser.add_argument("--reference", action="store_true", help="this package's reference implementation as well")
    parser.add_argument("--no-aotinductor", action="store_true", help="spare its minutes of compilation")
    parser.add_argument("--json", type=Path, help="write the rows")
    arguments = parser.parse_args()
    pythons = {"ase_equinn": sys.executable, "nequip": arguments.nequip_python, "mace": arguments.mace_python}
    variants = dict(VARIANTS)
    if arguments.reference:
        variants["ase_equinn"] = ("auto", "reference")
    if arguments.no_aotinductor:
        variants["nequip"] = ("eager",)
    print(f"{arguments.threads} threads, float32, {arguments.rounds} rounds in turn; ratios to the first row of a case")
    print(HEADER, flush=True)
    rows = []
    for name in arguments.cases:
        workers = workers_of(CASES[name], pythons, variants, arguments.threads)
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
