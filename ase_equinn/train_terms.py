"""The repulsive core that a trained network gets: it acts below the distances of the training set only."""

from __future__ import annotations

from typing import Sequence

import torch

from .data_batches import Batch
from .graph import edge_vectors
from .potential import Potential
from .radial_transforms import covalent_radius
from .terms.zbl import ZBL
from .train_config import TrainConfig


def repulsion(config: TrainConfig, species: Sequence[int], samples: Sequence[Batch]) -> ZBL | None:
    """The ZBL term of a run, None if the config wants none.

    It ends at the covalent radii times one factor, at most 1, by which no pair of atoms in the training `samples` (with
    the network's cutoff) is within it: where there are data, they alone say what the energy is, and training need not
    know of it.
    """
    if not config.zbl:
        return None
    radii = {z: min(covalent_radius(z), 0.5 * config.model.cutoff) for z in species}
    ratios = [_shortest_ratio(sample, radii) for sample in samples]
    factor = min(1.0, *ratios)
    return ZBL(species, radii=[factor * radii[z] for z in species])


def _shortest_ratio(sample: Batch, radii: dict[int, float]) -> float:
    """The least distance in units of the sum of the two radii."""
    graph = sample.graphs[0]
    if not graph.edge_index.shape[1]:
        return 1.0
    radius = torch.tensor([radii[z] for z in graph.numbers.tolist()], dtype=torch.float64)
    lengths = edge_vectors(graph, sample.positions).norm(dim=1)
    return float((lengths / radius[graph.edge_index].sum(0)).min())


def complete(potential: Potential, term: ZBL | None) -> Potential:
    """The potential with the term added, sharing the network's weights."""
    if term is None:
        return potential
    return Potential(
        [*potential.models, term.to(potential.dtype).to(potential.device)],
        reference_energies=potential.reference_energies,
        scale=[*potential.scale, 1.0],
        shift=potential.shift,
        metadata=potential.metadata,
    ).train(potential.training)
