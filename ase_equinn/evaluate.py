"""A potential evaluated on labelled frames, in batches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Sequence

from .data import Frame, Keys, read_frames
from .data_batches import Batch, chunks, join, prepare
from .derivatives import derivatives
from .metrics import Prediction, errors
from .potential import Potential


class Evaluation(NamedTuple):
    """Frames, what the potential says about each, and the errors (see metrics.errors)."""

    frames: list[Frame]
    predictions: list[Prediction]
    errors: dict


def evaluate(
    potential: Potential, files: str | Path | Sequence[str | Path], *, keys: Keys = Keys(), max_edges: int = 50_000
) -> Evaluation:
    """Predictions and errors on every frame of some files, isolated atoms included.

    Args:
        potential: runs where it lives and in its own dtype.
        files, keys: see data.read_frames.
        max_edges: bounds the memory of one batch.

    Raises:
        ValueError: an element that the potential does not know, with file and frame; and what read_frames raises.
    """
    frames = read_frames(files, keys).frames
    predictions = predict(potential, prepare(frames, potential.cutoffs, potential.species), max_edges=max_edges)
    return Evaluation(frames, predictions, errors(frames, predictions))


def predict(potential: Potential, samples: Sequence[Batch], *, max_edges: int = 50_000) -> list[Prediction]:
    """One prediction per prepared frame (see data_batches.prepare), in order."""
    predictions = []
    for group in chunks(samples, max_edges):
        batch = join([samples[i] for i in group]).to(potential.device)
        result = derivatives(potential, batch.graphs, batch.positions)
        forces = result.forces.cpu().split([len(samples[i].positions) for i in group])
        periodic = batch.graphs[0].pbc.all(1).tolist()
        for k in range(len(group)):
            stress = result.stress[k].cpu().numpy() if periodic[k] else None
            predictions.append(Prediction(float(result.energy[k]), forces[k].numpy(), stress))
    return predictions
