"""The repulsive core under a network in training: labels are freed of it once, the finished potential has it added."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .data import Frame
from .data_batches import Batch, prepare
from .derivatives import derivatives
from .evaluate_files import predict
from .graph import Graph, collate, edge_vectors
from .potential import Potential
from .radial_transforms import covalent_radius
from .terms.zbl import ZBL
from .train_config import TrainConfig

COST = 0.01  # of the core's forces in units of the labels'


def repulsion(config: TrainConfig, species: Sequence[int], samples: Sequence[Batch]) -> ZBL | None:
    """The ZBL term of a run, None if the config wants none.

    Its radii are the covalent ones times one factor, at most 1: the largest that keeps its forces on the atoms of the
    labelled `samples` (with the network's cutoff) within COST of the labels', both as root mean squares. A wider core
    closes holes among crowded atoms; inside the data it gives the network more to undo: at a tenth of the labels it cost
    acetylacetone a tenth of its accuracy, at 2.4 times a third (benchmarks/ablation.md). Without labelled forces it ends
    where distances do.
    """
    if not config.zbl:
        return None
    radii = {z: min(covalent_radius(z), 0.5 * config.model.cutoff) for z in species}
    contacts = _contacts(samples, radii)

    def scaled(factor: float) -> ZBL:
        return ZBL(species, radii=[factor * radii[z] for z in species])

    low, high = min([1.0, *contacts.ratio.tolist()]), 1.0
    if not contacts.allowed:
        return scaled(low)
    if _force(scaled(high), contacts) <= contacts.allowed:
        return scaled(high)
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _force(scaled(middle), contacts) <= contacts.allowed else (low, middle)
    return scaled(low)


class _Contacts(NamedTuple):
    """The pairs of atoms in the samples that are closer than the sum of their radii."""

    graph: Graph  # all atoms of all samples, edges of these pairs alone
    vectors: Tensor  # (n_edges, 3) A
    ratio: Tensor  # (n_edges,) length over the sum of the radii
    labelled: Tensor  # (n,) bool: atoms with a force label
    allowed: float  # eV/A: COST times the root mean square of these labels


def _contacts(samples: Sequence[Batch], radii: dict[int, float]) -> _Contacts:
    graphs, vectors, ratios = [], [], []
    for sample in samples:
        graph = sample.graphs[0]
        radius = torch.tensor([radii[z] for z in graph.numbers.tolist()], dtype=torch.float64)
        between = edge_vectors(graph, sample.positions)
        ratio = between.norm(dim=1) / radius[graph.edge_index].sum(0)
        near = ratio < 1.0
        edges = graph.edge_index[:, near]
        row_ptr = torch.searchsorted(edges[0].contiguous(), torch.arange(len(graph.numbers) + 1))
        graphs.append(graph._replace(edge_index=edges, shift=graph.shift[near], row_ptr=row_ptr))
        vectors.append(between[near])
        ratios.append(ratio[near])
    labelled = torch.cat([sample.force_weight[:, 0] > 0 for sample in samples])
    labels = torch.cat([sample.forces for sample in samples])[labelled]
    allowed = COST * float(labels.square().mean().sqrt()) if len(labels) else 0.0
    return _Contacts(collate(graphs), torch.cat(vectors), torch.cat(ratios), labelled, allowed)


def _force(term: ZBL, contacts: _Contacts) -> float:
    """The root mean square of the term's forces on the labelled atoms, eV/A."""
    potential, positions = Potential([term.double()]), torch.zeros(len(contacts.labelled), 3, dtype=torch.float64)
    forces = derivatives(potential, (contacts.graph,), positions, vectors=(contacts.vectors,)).forces
    return float(forces[contacts.labelled].square().mean().sqrt())


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
