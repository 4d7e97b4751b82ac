"""What a potential costs on this machine: time for each atom and step by size, where it goes, and memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.data import chemical_symbols

import ase_equinn

from .calculator import EquiCalculator
from .check import crystal_of
from .cuda_graph import Replay
from .evaluator import Evaluator
from .programs import Programs
from .runfiles import as_atoms

SIZES = (8, 64, 216, 1000)
_PERIOD = 15.0  # fs; atoms swing as sin(t / this), some 10 THz
_MOST_ATOMS = 10_000_000
_WARM_UP = 6  # steps of each size: after so many memory is reserved, and on CUDA a replay recorded and checked


class Row(NamedTuple):
    """The cost of one MD step at one size; shares of the time add up to 1."""

    n_atoms: int
    n_steps: int  # measured, after a warm-up
    us_per_atom: float  # wall clock, median of the rounds
    ms_per_step: float
    neighbors: float  # share: checks and neighbour lists
    model: float  # share: energies and gradients
    rest: float  # share: the calculator's and ASE's own
    memory_mb: float  # peak so far: of the process, or allocated on the GPU


class Bench(NamedTuple):
    potential: str
    device: str
    backend: str  # of the operators, see backend.use_backend
    evaluation: str  # what went through the models, see evaluation_of
    dtype: str
    threads: int
    cpu: str
    torch: str
    code_version: str
    rows: list[Row]


def bench(
    potential: Any,
    structure: Atoms | str | Path | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    seconds: float = 2.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Bench:
    """Times energy, forces and (fully periodic) stress through ASE while the atoms vibrate as at 300 K with 1 fs steps.

    Args:
        potential: folder, file, shipped name or Potential.
        structure: repeated in its periodic directions to each size; a molecule is measured as it is. None: a crystal of
            the potential's elements.
        sizes: numbers of atoms, reached or slightly exceeded.
        device, dtype, backend: see `EquiCalculator`.
        seconds: measured for each size, in five rounds of one step at least.
        progress: called with a name, how many sizes are done and how many there are.
    Raises:
        ValueError: a size below 1, seconds that are not positive; see also `EquiCalculator`.
    """
    sizes = list(sizes)
    if not sizes or not all(1 <= size <= _MOST_ATOMS for size in sizes):
        raise ValueError(f"sizes must be numbers of atoms from 1 to {_MOST_ATOMS}, got {sizes}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be a positive number, got {seconds!r}")
    calculator = EquiCalculator(potential, device=device, dtype=dtype, backend=backend)
    model = calculator.potentials[0]  # of a committee all are measured together
    unit = as_atoms(structure) if structure is not None else _crystal(model.species)
    counted = sorted({len(atoms): atoms for atoms in (supercell(unit, size) for size in sizes)}.items())
    rows = []
    for done, (n_atoms, atoms) in enumerate(counted):
        if progress:
            progress(f"{n_atoms} atoms", done, len(counted))
        rows.append(_measure(calculator, atoms, seconds, model.device))
    return Bench(
        potential=str(calculator.parameters["model"]),
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        backend=calculator.backend,
        evaluation=evaluation_of(calculator.evaluators[0]),
        dtype=dtype,
        threads=torch.get_num_threads(),
        cpu=cpu_name(),
        torch=torch.__version__,
        code_version=ase_equinn.__version__,
        rows=rows,
    )


def evaluation_of(evaluator: Evaluator) -> str:
    """How a calculator's evaluator has evaluated so far: by native programs, by replays on CUDA, or by torch."""
    if isinstance(evaluator, Programs):
        left = ", ".join(evaluator.in_torch)
        return f"native programs, but for {left} in torch" if left else "native programs"
    if isinstance(evaluator, Replay):
        return f"torch on CUDA ({evaluator.problem})" if evaluator.problem else "replays on CUDA"
    return "torch"


def supercell(unit: Atoms, size: int) -> Atoms:
    """The cell repeated along its shortest direction until it has `size` atoms; as it is where nothing is periodic."""
    repeats, lengths = np.ones(3, dtype=int), unit.cell.lengths()
    while len(unit) * repeats.prod() < size and unit.pbc.any():
        repeats[np.argmin(np.where(unit.pbc, lengths * repeats, np.inf))] += 1
    atoms = unit.repeat(repeats)
    atoms.set_constraint()
    return atoms


def _crystal(species: Sequence[int]) -> Atoms:
    if len(species) == 1:
        try:
            return bulk(chemical_symbols[species[0]], cubic=True)
        except (ValueError, RuntimeError, KeyError):
            pass  # no cubic crystal of this element is known
    return crystal_of(list(species), np.random.default_rng(0))


def _measure(calculator: EquiCalculator, atoms: Atoms, seconds: float, device: torch.device) -> Row:
    atoms.calc = calculator
    step = vibration(atoms, np.random.default_rng(0))
    _time(step, _WARM_UP)
    n_steps = max(1, min(500, int(seconds / 5 / _time(step, 1))))
    calculator.timings.update(neighbors=0.0, model=0.0, total=0.0, count=0)
    times = [_time(step, n_steps) for _ in range(5)]
    spent = sum(times) * n_steps
    neighbors, model = (calculator.timings[phase] / spent for phase in ("neighbors", "model"))
    return Row(
        n_atoms=len(atoms),
        n_steps=5 * n_steps,
        us_per_atom=1e6 * median(times) / len(atoms),
        ms_per_step=1e3 * median(times),
        neighbors=neighbors,
        model=model,
        rest=1 - neighbors - model,
        memory_mb=_peak_memory(device),
    )


def vibration(atoms: Atoms, rng: np.random.Generator) -> Callable[[], None]:
    """A function that moves the atoms by one step of 1 fs and asks for forces and, if fully periodic, stress."""
    start, steps = atoms.positions.copy(), [0]
    speed = np.sqrt(units.kB * 300 / atoms.get_masses())[:, None] * units.fs  # A/fs, along each axis
    amplitude = _PERIOD * speed * rng.normal(size=start.shape)

    def step() -> None:
        steps[0] += 1
        atoms.positions = start + amplitude * np.sin(steps[0] / _PERIOD)
        atoms.get_forces()
        if atoms.pbc.all():
            atoms.get_stress()

    return step


def _time(step: Callable[[], None], n_steps: int) -> float:
    """Seconds a step. Results reach the host, so work on a GPU is over when a step returns."""
    start = perf_counter()
    for _ in range(n_steps):
        step()
    return (perf_counter() - start) / n_steps


def _peak_memory(device: torch.device) -> float:
    """MB, 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def cpu_name() -> str:
    """The processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def as_dict(found: Bench) -> dict:
    """What `equinn bench --json` writes."""
    report = {**found._asdict(), "rows": [row._asdict() for row in found.rows]}
    json.dumps(report, allow_nan=False)
    return report


def bench_table(found: Bench):
    """The rows as a rich table."""
    from rich.table import Table

    title = f"{found.potential}: {found.device}, {found.evaluation} ({found.backend}), {found.dtype}, {found.threads} threads"
    table = Table(title=title.replace("[", r"\["), title_justify="left")
    for name in ("atoms", "us/atom/step", "ms/step", "neighbours %", "model %", "rest %", "memory MB"):
        table.add_column(name, justify="right")
    for row in found.rows:
        shares = (f"{100 * share:.0f}" for share in (row.neighbors, row.model, row.rest))
        table.add_row(
            str(row.n_atoms), f"{row.us_per_atom:.1f}", f"{row.ms_per_step:.2f}", *shares, f"{row.memory_mb:.0f}"
        )
    return table


def plot_bench(found: Bench):
    """Time for each atom and step, and its shares, over the number of atoms, as a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    cost, shares = figure.subplots(1, 2)
    sizes = [row.n_atoms for row in found.rows]
    cost.loglog(sizes, [row.us_per_atom for row in found.rows], "o-")
    cost.set(xlabel="atoms", ylabel="us per atom and step")
    cost.set_title(f"{found.potential}, {found.backend}, {found.dtype}, {found.device}", fontsize=9)
    below = np.zeros(len(sizes))
    for phase, label in (("model", "model"), ("neighbors", "neighbours"), ("rest", "rest")):
        values = np.array([100 * getattr(row, phase) for row in found.rows])
        shares.bar([str(size) for size in sizes], values, bottom=below, label=label)
        below += values
    shares.set(xlabel="atoms", ylabel="share of the time (%)", ylim=(0, 100))
    shares.legend(fontsize=8)
    return figure
