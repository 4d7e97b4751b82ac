"""A potential evaluated on labelled frames, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ase.stress import voigt_6_to_full_3x3_stress

from .data import Frame, Keys, read_frames
from .data_batches import Batch, join
from .derivatives import derivatives
from .evaluate_batches import MAX_EDGES, evaluate_with
from .evaluate_memory import Budget, in_groups
from .evaluator import Evaluator, InTorch
from .metrics import Prediction, errors
from .potential import Potential


class Evaluation(NamedTuple):
    """Frames, what the potential says about each, and the errors (see metrics.errors)."""

    frames: list[Frame]
    predictions: list[Prediction]
    errors: dict


def evaluate_files(
    potential: Potential | Evaluator,
    files: str | Path | Sequence[str | Path],
    *,
    keys: Keys = Keys(),
    max_edges: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predictions and errors on every frame of some files, isolated atoms included.

    Args:
        potential: runs where it lives and in its own dtype.
        files, keys: see data.read_frames.
        max_edges: bounds the memory of one batch, see evaluate_batches.evaluate.
        report: called with the number of frames that are done and of all.

    Raises:
        ValueError: an element that the potential does not know, with file and frame; and what read_frames raises.
    """
    frames = read_frames(files, keys).frames
    ready = InTorch(potential) if isinstance(potential, Potential) else potential
    structures, names = [frame.atoms for frame in frames], [frame.origin for frame in frames]
    predictions = [
        Prediction(found["energy"], found["forces"], _full(found.get("stress")))
        for found in evaluate_with(ready, structures, names=names, max_edges=max_edges, report=report)
    ]
    return Evaluation(frames, predictions, errors(frames, predictions))


def predict(potential: Potential, samples: Sequence[Batch], *, max_edges: int | None = None) -> list[Prediction]:
    """One prediction per prepared frame (see data_batches.prepare), in order."""
    edges = [sample.graphs[0].edge_index.shape[1] for sample in samples]
    budget = Budget(MAX_EDGES[potential.device.type] if max_edges is None else max_edges)

    def compute(first: int, last: int) -> list[Prediction]:
        batch = join(samples[first:last]).to(potential.device)
        result = derivatives(potential, batch.graphs, batch.positions)
        forces = result.forces.cpu().split([len(sample.positions) for sample in samples[first:last]])
        stress, periodic = result.stress.cpu().numpy(), batch.graphs[0].pbc.all(1).tolist()
        return [
            Prediction(energy, forces[k].numpy(), stress[k] if periodic[k] else None)
            for k, energy in enumerate(result.energy.tolist())
        ]

    return [prediction for _, _, found in in_groups(edges, budget, compute) for prediction in found]


def _full(stress):
    return None if stress is None else voigt_6_to_full_3x3_stress(stress)
