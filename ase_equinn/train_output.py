"""What a training run leaves in its folder: the potential, its card, check structures, plots."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .data import Frame, write_frames
from .data_batches import prepare
from .distill import of_labelled
from .evaluate_files import predict
from .graph import edge_vectors
from .metrics import by_kind, errors
from .plot import plot_learning_curve, plot_parity, save_figure
from .potential import Potential
from .potential_file import write_atomic
from .train_card import card
from .train_config import TrainConfig
from .train_limits import within_limits
from .train_module import Run
from .train_progress import duration, number
from .train_sets import Sets
from .train_terms import complete

CHECKED = 5  # structures in check.xyz


class TrainResult(NamedTuple):
    """`folder` holds the potential; `errors` has those of "train", "valid" and (if given) "test" as the header of the
    potential keeps them: metrics.errors, with the kinds of structures that metrics.by_kind shows.

    `stopped` says why the run ended before its last epoch ("the time is up", ...), "" where it did not.
    """

    folder: Path
    potential: Potential
    errors: dict[str, dict]
    stopped: str


def finish(run: Run, sets: Sets, facts: dict, console: Console) -> TrainResult:
    """Evaluates the best weights on all sets and writes the folder; the checkpoint stays if the run can be resumed."""
    folder = Path(run.config.output)
    bounded = within_limits(run.config, run.best_potential(), of_labelled(run.batches.samples, sets.train), run.start)
    potential = complete(bounded, run.term)
    potential.metadata = metadata(run, sets, facts)
    write_folder(folder, potential, sets, run.n_shown, console)
    if run.rows:
        save_figure(plot_learning_curve(run.rows), folder / "learning_curve.png")
    if run.interrupted:
        console.print(
            f"interrupted: the best potential so far is in {folder}; resume goes on from the last complete epoch"
        )
    else:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        console.print(f"trained in {duration(run.clock.elapsed())}; use it with EquiCalculator({str(folder)!r})")
    stopped = "interrupted" if run.interrupted else run.stopped
    return TrainResult(folder, potential, potential.metadata["errors"], stopped)


def write_folder(folder: Path, potential: Potential, sets: Sets, n_shown: int, console: Console) -> None:
    """Evaluates the potential on all sets (`n_shown` frames of train), adds the errors to its metadata and writes it, its
    card, check.xyz and the parity plot."""
    groups = {"train": sets.train[:: -(-len(sets.train) // n_shown)], "valid": sets.valid, "test": sets.test}
    groups = {name: frames for name, frames in groups.items() if frames}
    predictions = {name: predict(potential, prepare(frames, potential.cutoffs)) for name, frames in groups.items()}
    found = {name: errors(frames, predictions[name]) for name, frames in groups.items()}
    shown = {name: {**result, "per_config_type": by_kind(result)} for name, result in found.items()}
    potential.metadata = {**potential.metadata, "errors": shown}
    potential.save(folder)
    write_check(folder / "check.xyz", potential, sets.test or sets.valid)
    write_atomic(folder / "README.md", card(potential, folder.name).encode())
    save_figure(
        plot_parity({name: (frames, predictions[name]) for name, frames in groups.items()}), folder / "parity.png"
    )
    console.print(error_table(found))


def error_table(found: dict[str, dict]) -> Table:
    """Errors of every set, and of its kinds of structures if there are several, for the terminal."""
    table = Table("set", "frames", "E bias", "E MAE / RMSE meV/atom", "F MAE / RMSE meV/A", "S MAE / RMSE meV/A^3")
    for name, result in found.items():
        kinds = by_kind(result)
        for title, one in {name: result, **{f"  {kind}": part for kind, part in kinds.items()}}.items():
            cells = [
                f"{number(one[f'{key}_mae'])} / {number(one[f'{key}_rmse'])}" for key in ("energy", "force", "stress")
            ]
            table.add_row(escape(title), str(one["n_frames"]), number(one.get("energy_bias")), *cells)
    return table


def metadata(run: Run, sets: Sets, facts: dict) -> dict:
    """What the potential file says about its origin, but for the errors."""
    config = run.config
    return {
        "level_of_theory": config.data.level_of_theory,
        "training_data": {"files": files(config), **ranges(sets.train, run.batches.samples)},
        "training": {
            "config": config.model_dump(exclude={"output"}, exclude_none=True),
            "epochs": run.epoch,
            "steps": run.step,
            "seconds": round(run.clock.elapsed(), 1),
            "best_epoch": run.best_epoch,
            "statistics": facts["statistics"],
            **({"stress_offset": run.stress_offset()} if config.loss.stress_offset else {}),
        },
    }


def files(config: TrainConfig) -> dict[str, list[dict]]:
    """The files of each set with hashes and origins."""
    return {
        part: [entry.model_dump(exclude_none=True) for entry in getattr(config.data, part)]
        for part in ("train", "valid", "test")
    }


def ranges(frames: Sequence[Frame], samples) -> dict:
    """What the training set covers: sizes, elements, shortest distance, energies and volumes per atom."""
    lengths = [edge_vectors(s.graphs[0], s.positions).norm(dim=1) for s in samples]
    shortest = [float(x.min()) for x in lengths if len(x)]
    energies = [f.energy / len(f.atoms) for f in frames if f.energy is not None]
    volumes = [f.atoms.cell.volume / len(f.atoms) for f in frames if f.atoms.pbc.all()]
    forces = [float(np.abs(f.forces).max()) for f in frames if f.forces is not None]
    symbols = np.concatenate([np.array(list(f.atoms.symbols)) for f in frames])
    names, numbers = np.unique(symbols, return_counts=True)
    return {
        "n_frames": len(frames),
        "n_atoms": int(numbers.sum()),
        "elements": {str(name): int(n) for name, n in zip(names, numbers)},
        "min_distance": min(shortest, default=None),
        "energy_per_atom": [min(energies), max(energies)] if energies else None,
        "volume_per_atom": [min(volumes), max(volumes)] if volumes else None,
        "max_force": max(forces, default=None),
    }


def write_check(path: Path, potential: Potential, frames: Sequence[Frame]) -> None:
    """A few structures with the energy, forces and stress that the potential gives in float64 to what the file says."""
    exact = Potential.load(path.parent, dtype=torch.float64)
    bare = []
    for frame in frames[:: -(-len(frames) // CHECKED)]:
        atoms = frame.atoms.copy()
        atoms.positions = atoms.positions.round(8)  # the digits that extxyz keeps
        bare.append(Frame(atoms, None, None, None, frame.config_type))
    write_frames(path, bare, predict(exact, prepare(bare, exact.cutoffs)))
