"""Frames as tensors: neighbour lists once per frame, then batches by concatenation."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from .data import Frame
from .graph import Graph, check_atoms, check_coincident, collate, edge_vectors, from_atoms


class Batch(NamedTuple):
    """g structures with n atoms and their labels, all float64; a missing label is zero with weight zero.

    The virial is dE/dstrain = V * stress (ASE's sign), as in Derivatives.
    """

    graphs: tuple[Graph, ...]  # one per cutoff
    positions: Tensor  # (n, 3) A
    n_atoms: Tensor  # (g,)
    energy: Tensor  # (g,) eV
    forces: Tensor  # (n, 3) eV/A
    virial: Tensor  # (g, 3, 3) eV
    energy_weight: Tensor  # (g,)
    force_weight: Tensor  # (n, 1)
    virial_weight: Tensor  # (g,)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(tuple(graph.to(device) for graph in self.graphs), *(x.to(device) for x in self[1:]))


def prepare(frames: Sequence[Frame], cutoffs: Sequence[float], species: Sequence[int] | None = None) -> list[Batch]:
    """One single-structure batch per frame, with its neighbour lists.

    Raises:
        ValueError: a structure that cannot be evaluated (element outside `species`, coincident atoms, ...), with the
            frame's origin.
    """
    return [_single(frame, cutoffs, species) for frame in frames]


def relabelled(samples: Sequence[Batch], frames: Sequence[Frame]) -> list[Batch]:
    """The same structures, with the labels that `frames` have now."""
    return [s._replace(**_labels(frame)) for s, frame in zip(samples, frames, strict=True)]


def _single(frame: Frame, cutoffs: Sequence[float], species: Sequence[int] | None) -> Batch:
    try:
        check_atoms(frame.atoms, species)
        graphs = tuple(from_atoms(frame.atoms, cutoff) for cutoff in cutoffs)
        positions = torch.from_numpy(np.array(frame.atoms.positions, dtype=np.float64))
        check_coincident(graphs[0], edge_vectors(graphs[0], positions))
    except ValueError as error:
        raise ValueError(f"{frame.origin}: {error}") from error
    n_atoms = torch.tensor([len(frame.atoms)], dtype=torch.float64)
    return Batch(graphs, positions, n_atoms, **_labels(frame))


def _labels(frame: Frame) -> dict[str, Tensor]:
    """The fields of a batch from energy on."""
    n, weight, f64 = len(frame.atoms), frame.weight, torch.float64
    virial = None if frame.stress is None else frame.stress * frame.atoms.cell.volume
    return {
        "energy": torch.tensor([frame.energy or 0.0], dtype=f64),
        "forces": torch.zeros(n, 3, dtype=f64) if frame.forces is None else torch.from_numpy(frame.forces),
        "virial": torch.zeros(1, 3, 3, dtype=f64) if virial is None else torch.from_numpy(virial)[None],
        "energy_weight": torch.tensor([0.0 if frame.energy is None else weight], dtype=f64),
        "force_weight": torch.full((n, 1), 0.0 if frame.forces is None else weight, dtype=f64),
        "virial_weight": torch.tensor([0.0 if virial is None else weight], dtype=f64),
    }


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in the order given."""
    graphs = tuple(collate(parts) for parts in zip(*(batch.graphs for batch in batches), strict=True))
    return Batch(graphs, *(torch.cat(parts) for parts in list(zip(*batches, strict=True))[1:]))


class EpochBatches:
    """The training batches of epoch after epoch: an iterable whose order depends on (seed, epoch) alone.

    The last batch of an epoch is smaller where `batch_size` does not divide the number of frames.
    """

    def __init__(self, samples: Sequence[Batch], batch_size: int, seed: int):
        self.samples, self.batch_size, self.seed, self.epoch = samples, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.samples))
        for start in range(0, len(order), self.batch_size):
            yield join([self.samples[i] for i in order[start : start + self.batch_size]])
