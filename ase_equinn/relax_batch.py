"""Relaxation of many small structures side by side: each by its own optimizer, their forces as one batch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.optimize.optimize import Optimizer

from .evaluate_batches import evaluate_with, load_potential
from .evaluator import Evaluator
from .neighbors_batch import BatchNeighborList
from .potential_file import write_atomic
from .relax import Relaxed, RelaxSettings, optimizer_of, residual
from .runfiles import EXISTING, RunError, RunFileError, frame_text

COLUMNS = ("index", "formula", "converged", "steps", "energy", "max_force", "max_stress_GPa", "volume")
SKIN = 0.5  # A
DROPPED = 0.25  # of a batch: so many must be done before the others go on without them, with new neighbour lists


class _Answer(Calculator):
    """Results for one geometry, refused for any other; ASE's SinglePointCalculator takes longer over that than FIRE."""

    def __init__(self, atoms: Atoms, results: dict):
        super().__init__()
        self.implemented_properties, self.results = list(results), results
        self._geometry = atoms.positions.copy(), atoms.cell.array.copy()

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        positions, cell = self._geometry
        same = np.array_equal(positions, atoms.positions) and np.array_equal(cell, atoms.cell.array)
        return [] if same else ["positions"]

    def calculate(self, atoms=None, properties=(), system_changes=()) -> None:
        raise RunError("an optimizer asks for forces at a geometry that was not evaluated")


class _Runner(NamedTuple):
    """A structure on its way; `index` is its place in the list."""

    index: int
    atoms: Atoms
    optimizer: Optimizer


def relax_all(
    structures: Sequence[Atoms] | str | Path,
    potential,
    settings: RelaxSettings | None = None,
    steps: int = 500,
    *,
    device: str = "auto",
    dtype: str = "float32",
    output: str | Path | None = None,
    existing: str = "refuse",
    progress: Callable[[int, int], None] | None = None,
) -> list[Relaxed]:
    """Each structure ends where `relax` brings it alone, to the round-off of sums in another order.

    Args:
        structures: Atoms (left unchanged), or a file that ASE reads, all frames of it. Constraints are respected.
        potential, device, dtype: see `ase_equinn.evaluate`.
        settings, steps: see `relax`; restart_every is not used.
        output: folder for `relaxed.xyz` (all results, in order) and `relaxed.csv`, written in one stroke at the end.
        existing: results of an earlier run: `refuse` raises, `overwrite` replaces them; there is nothing to resume.
        progress: called after each step with how many structures are done and how many there are.
    Raises:
        RunError: a structure that cannot be evaluated any more, with its number.
    """
    settings = settings or RelaxSettings()
    found = _read(structures)
    if settings.cell != "fixed":
        for k, atoms in enumerate(found):
            if not atoms.pbc.all():
                pbc = atoms.pbc.tolist()
                raise ValueError(f"structure {k}: cell={settings.cell!r} needs three periodic directions, pbc is {pbc}")
    folder = None if output is None else _folder(Path(output), existing)
    ready = load_potential(potential, device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "logm result may be inaccurate")  # by 1e-12, of ASE's cell filter
        results = _run(found, ready, settings, steps, progress)
    if folder:
        _write(folder, results)
    return results


def _read(structures) -> list[Atoms]:
    if isinstance(structures, Atoms):
        raise TypeError("relax_all takes a list of structures, got one Atoms: use relax")
    if isinstance(structures, str | Path):
        if not Path(structures).is_file():
            raise FileNotFoundError(f"no structure file {str(structures)!r}")
        try:
            return read(structures, ":")
        except Exception as error:
            raise RunFileError(f"ASE cannot read structures from {str(structures)!r}: {error}") from error
    return [atoms.copy() for atoms in structures]


def _folder(folder: Path, existing: str) -> Path:
    if existing not in EXISTING:
        raise ValueError(f"existing must be one of {', '.join(EXISTING)}; received {existing!r}")
    if existing == "resume":
        raise ValueError("a relaxation of many structures has no restart file: it starts anew, or overwrites")
    folder.mkdir(parents=True, exist_ok=True)
    if existing == "refuse" and (folder / "relaxed.xyz").exists():
        raise RunFileError(f"{folder / 'relaxed.xyz'} exists; overwrite it, or choose another folder")
    return folder


def _run(structures: list[Atoms], ready: Evaluator, settings: RelaxSettings, steps: int, progress) -> list[Relaxed]:
    results: list[Relaxed | None] = [None] * len(structures)
    runners = [_Runner(k, atoms, optimizer_of(atoms, settings, {})) for k, atoms in enumerate(structures)]
    step, lists = 0, None
    while runners:
        lists = lists or {cutoff: BatchNeighborList(cutoff, SKIN) for cutoff in ready.potential.cutoffs}
        _evaluate(runners, ready, lists, step)
        for runner in runners:
            if results[runner.index] is not None:
                continue
            force, stress = residual(runner.atoms, settings)
            converged = force <= settings.fmax and (stress or 0.0) <= settings.smax
            if converged or step == steps:
                kept = runner.atoms.copy()
                kept.calc = SinglePointCalculator(kept, **runner.atoms.calc.results)
                results[runner.index] = Relaxed(kept, converged, step, force, stress)
            else:
                runner.optimizer.step()
        done = [results[runner.index] is not None for runner in runners]
        if sum(done) >= max(1, DROPPED * len(runners)):
            runners = [runner for runner, is_done in zip(runners, done, strict=True) if not is_done]
            lists = None
        step += 1
        if progress:
            progress(sum(result is not None for result in results), len(structures))
    return results


def _evaluate(runners: list[_Runner], ready: Evaluator, lists, step: int) -> None:
    """Gives each structure its energy, forces and stress as a calculator that answers for these positions only."""
    atoms = [runner.atoms for runner in runners]
    names = [f"structure {runner.index}" for runner in runners]
    try:
        found = evaluate_with(ready, atoms, names=names, lists=lists)
    except (ValueError, RuntimeError) as error:
        if step == 0:
            raise
        raise RunError(f"relaxation stopped after step {step}: {error}") from error
    for one, result in zip(atoms, found, strict=True):
        known = {name: result[name] for name in ("energy", "forces", "stress") if name in result}
        one.calc = _Answer(one, known)


def _write(folder: Path, results: list[Relaxed]) -> None:
    frames, rows = io.StringIO(), [",".join(COLUMNS)]
    for k, result in enumerate(results):
        atoms = result.atoms
        frames.write(frame_text(atoms, converged=result.converged))
        volume = repr(float(atoms.get_volume())) if atoms.cell.rank == 3 else ""
        stress = "" if result.max_stress is None else repr(result.max_stress)
        energy, force = repr(float(atoms.get_potential_energy())), repr(float(np.float64(result.max_force)))
        rows.append(f"{k},{atoms.symbols},{result.converged},{result.steps},{energy},{force},{stress},{volume}")
    write_atomic(folder / "relaxed.csv", ("\n".join(rows) + "\n").encode())
    write_atomic(folder / "relaxed.xyz", frames.getvalue().encode())
