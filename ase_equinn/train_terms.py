"""The repulsive core under a network in training: labels are freed of it once, the finished potential has it added."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from torch import nn

from .data import Frame
from .data_batches import Batch, prepare
from .evaluate_files import predict
from .graph import edge_vectors
from .potential import Potential
from .radial_transforms import covalent_radius
from .terms.zbl import ZBL
from .train_config import TrainConfig


def repulsion(config: TrainConfig, species: Sequence[int], samples: Sequence[Batch]) -> ZBL | None:
    """The ZBL term of a run, None if the config wants none.

    It ends at the covalent radii times one factor, at most 1, that makes no pair of atoms in the labelled `samples` (with
    the network's cutoff) closer than that: it takes over where data end. Inside the data it would give the network more to
    undo than the labels hold, which costs molecules a third of their accuracy (benchmarks/ablation.md).
    """
    if not config.zbl:
        return None
    radii = {z: min(covalent_radius(z), 0.5 * config.model.cutoff) for z in species}
    factor = min([1.0, *(_shortest_ratio(sample, radii) for sample in samples)])
    return ZBL(species, radii=[factor * radii[z] for z in species])


def _shortest_ratio(sample: Batch, radii: dict[int, float]) -> float:
    """The least distance in units of the sum of the two radii."""
    graph = sample.graphs[0]
    if not graph.edge_index.shape[1]:
        return 1.0
    radius = torch.tensor([radii[z] for z in graph.numbers.tolist()], dtype=torch.float64)
    lengths = edge_vectors(graph, sample.positions).norm(dim=1)
    return float((lengths / radius[graph.edge_index].sum(0)).min())


def without(frames: Sequence[Frame], term: ZBL | None) -> list[Frame]:
    """The frames with what the term gives taken off their labels: it has no parameters, so that is all there is to do."""
    if term is None or not frames:
        return list(frames)
    found = predict(Potential([term.double()]), prepare(frames, [term.cutoff]))
    return [
        frame._replace(
            energy=None if frame.energy is None else frame.energy - part.energy,
            forces=None if frame.forces is None else frame.forces - np.asarray(part.forces),
            stress=None if frame.stress is None else frame.stress - np.asarray(part.stress),
        )
        for frame, part in zip(frames, found, strict=True)
    ]


def complete(potential: Potential, term: ZBL | None) -> Potential:
    """The potential with the term added, sharing the network's weights."""
    if term is None:
        return potential
    term = term.to(potential.dtype).to(potential.device)
    return with_models(potential, [*potential.models, term], [*potential.scale, 1.0])


def with_models(potential: Potential, models: Sequence[nn.Module], scale: Sequence[float]) -> Potential:
    """The potential with other models, and all else as it is."""
    return Potential(
        models,
        reference_energies=potential.reference_energies,
        scale=scale,
        shift=potential.shift,
        metadata=potential.metadata,
    ).train(potential.training)
