"""Prints where the time of an MD step goes: every kernel of the native program by itself, and the rest of the calculator.

    python benchmarks/profile_step.py                       # all cases of speed.py
    python benchmarks/profile_step.py mace-64 --calls 20    # one of them, and its dearest calls

One thread, float32. Each kernel of a program is run over all atoms alone, many times, on what the program left in memory;
the least CPU time of several rounds counts. Its operations and bytes are counted by operations.py, peaks are measured in the
same run (peaks.py). What a kernel takes at least is the longest of three times: its operations at the rate of multiply-adds
in registers (arithmetic); its moved bytes at that of loads from the first cache (loads); its bytes at that of a
triad of as many (memory). The last column names the longest with its share of the kernel's time. Where that is below a third
nothing is near a limit: dependent operations, divisions, short loops or the calls themselves take the time (latency).

Steps of the calculator are measured in CPU time too, the fastest counts. Others on the machine still cost caches and clock
rate: the numbers mean something if sgemm stays as fast through the run as the last line says.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple
from unittest import mock

import peer
import torch
from operations import Cost, Sizes, cost
from peaks import Peaks, least
from speed import CASES

from ase_equinn import EquiCalculator
from ase_equinn.graph import graph_and_vectors
from ase_equinn.ops.program import Parts
from ase_equinn.programs import make_program

_PHASES = ("neighbors", "model", "total")
_NEAR = 1 / 3  # of the time: a limit that explains it


class Row(NamedTuple):
    """A call, or several."""

    name: str
    count: int
    seconds: float
    needed: Cost
    floors: dict[str, float]


def floors(needed: Cost, peaks: Peaks) -> dict[str, float]:
    """Seconds that a call needs at least, by what limits it."""
    return {
        "arithmetic": needed.flop / peaks.fma,
        "loads": needed.moved / peaks.loads,
        "memory": needed.bytes / peaks.triad(needed.bytes),
    }


def rows_of(parts: Parts, sizes: Sizes, peaks: Peaks, rounds: int) -> list[Row]:
    """One for each call."""
    rows, forward = [], {call.name for call in parts.calls if not call.backward}
    for k, call in enumerate(parts.calls):
        times = max(1, int(1e-3 / least(lambda: parts.alone(k, 10), 2) * 10))
        seconds = least(lambda: parts.alone(k, times), rounds) / times
        name = f"{call.name} backward" if call.backward and call.name in forward else call.name
        needed = cost(call, sizes)
        rows.append(Row(name, 1, seconds, needed, floors(needed, peaks)))
    return rows


def summed(name: str, rows: list[Row]) -> Row:
    needed = sum((row.needed for row in rows), Cost())
    floors = {limit: sum(row.floors[limit] for row in rows) for limit in rows[0].floors}
    return Row(name, sum(row.count for row in rows), sum(row.seconds for row in rows), needed, floors)


HEADER = (
    f"  {'kind':22s} {'calls':>5s} {'us':>8s} {'share':>6s} {'MFLOP':>8s} {'GFLOP/s':>8s} {'of sgemm':>9s} {'MB':>7s}"
    f" {'GB/s':>6s} {'moved':>7s} {'FLOP/byte':>10s}  bound by"
)


def line_of(row: Row, total: float, peaks: Peaks) -> str:
    needed, seconds = row.needed, row.seconds
    rate, limit = needed.flop / seconds, max(row.floors, key=row.floors.get)
    share = row.floors[limit] / seconds
    bound = f"{limit} {share:4.0%}" if share >= _NEAR else f"latency ({limit} {share:.0%})"
    return (
        f"  {row.name:22s} {row.count:5d} {1e6 * seconds:8.1f} {seconds / total:6.1%} {needed.flop / 1e6:8.2f}"
        f" {rate / 1e9:8.1f} {rate / max(peaks.sgemm):9.1%} {needed.bytes / 1e6:7.2f} {needed.bytes / seconds / 1e9:6.1f}"
        f" {needed.moved / 1e6:7.1f} {needed.flop / max(needed.bytes, 1):10.2f}  {bound}"
    )


def step_of(name: str, seconds: float) -> tuple[dict[str, float], EquiCalculator]:
    """CPU seconds of a calculator's step and of its phases: the fastest of all steps; and the calculator."""
    case = CASES[name]
    atoms = peer.structure(case.structure)
    calculator = peer.ase_equinn(case.ours, "auto", atoms)
    start, done, best = atoms.positions.copy(), 3, {"step": float("inf")}
    peer.seconds_per_step(calculator, atoms, start, 0, done)
    end = time.perf_counter() + seconds
    with mock.patch("ase_equinn.calculator.perf_counter", time.thread_time):  # what its timings are taken with
        while time.perf_counter() < end:
            before = [calculator.timings[phase] for phase in _PHASES]
            _, spent = peer.seconds_per_step(calculator, atoms, start, done, 1)
            done += 1
            if spent < best["step"]:
                best = {"step": spent} | {phase: calculator.timings[phase] - t for phase, t in zip(_PHASES, before)}
    return best, calculator


def profile(name: str, peaks: Peaks, rounds: int, seconds: float, n_dearest: int) -> None:
    best, calculator = step_of(name, seconds)
    (potential,) = calculator.potentials
    atoms = peer.structure(CASES[name].structure)
    graph, vectors = graph_and_vectors(atoms, potential.cutoff)
    program, index = make_program(potential.models[0], tuple(sorted(set(atoms.numbers.tolist()))), potential.dtype)
    parts = program.parts(index(graph.numbers), graph.row_ptr, graph.edge_index[1], vectors)
    sizes = Sizes(len(atoms), len(vectors), potential.dtype.itemsize)
    whole = least(parts.whole, 5 * rounds)
    rows = rows_of(parts, sizes, peaks, rounds)
    peaks.measure()
    total = summed("all kernels", rows)
    print(
        f"\n{name}: {sizes.n} atoms, {sizes.n_edges / sizes.n:.1f} edges each, blocks of {program.block} atoms;"
        f" float32, one thread\n{HEADER}"
    )
    kinds = {row.name: [other for other in rows if other.name == row.name] for row in rows}
    groups = sorted((summed(*item) for item in kinds.items()), key=lambda row: -row.seconds)
    print(*(line_of(row, total.seconds, peaks) for row in [*groups, total]), sep="\n")
    if n_dearest:
        print("  its dearest calls, and where they stand")
        dearest = sorted(enumerate(rows), key=lambda item: -item[1].seconds)[:n_dearest]
        print(*(line_of(row._replace(name=f"{k:3d} {row.name}"), total.seconds, peaks) for k, row in dearest), sep="\n")
    print(
        f"  an atom: {total.needed.flop / sizes.n / 1e6:.3f} MFLOP, {total.needed.bytes / sizes.n / 1e3:.1f} kB,"
        f" {total.needed.moved / sizes.n / 1e3:.1f} kB moved, {1e6 * whole / sizes.n:.1f} us"
    )
    print_step(best, whole, total.seconds)


def print_step(best: dict[str, float], whole: float, alone: float) -> None:
    shares = {
        "program": whole,
        "Python around it": best["model"] - whole,
        "neighbour list": best["neighbors"],
        "calculator": best["total"] - best["model"] - best["neighbors"],
        "ASE and caller": best["step"] - best["total"],
    }
    text = ", ".join(f"{name} {1e6 * value:.0f} us {value / best['step']:.1%}" for name, value in shares.items())
    print(f"  a step {1e6 * best['step']:.0f} us: {text}; kernels alone add up to {alone / whole:.0%} of the program")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="for every kernel")
    parser.add_argument("--seconds", type=float, default=4.0, help="for the steps of a case")
    parser.add_argument("--calls", type=int, default=0, help="print so many single calls as well")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"cases are {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    peaks = Peaks()
    triads = ", ".join(f"{rate / 1e9:.0f} in {size >> 10} kB" for size, rate in peaks.triads.items())
    print(f"GFLOP/s: multiply-adds {peaks.fma / 1e9:.0f}, sgemm {peaks.sgemm[0] / 1e9:.0f}")
    print(f"GB/s: loads {peaks.loads / 1e9:.0f}; triad {triads}")
    for name in arguments.cases or CASES:
        profile(name, peaks, arguments.rounds, arguments.seconds, arguments.calls)
    print("\nsgemm through the run, GFLOP/s:", ", ".join(f"{rate / 1e9:.0f}" for rate in peaks.sgemm))


if __name__ == "__main__":
    main()
