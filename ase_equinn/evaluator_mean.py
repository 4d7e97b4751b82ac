"""A committee as one evaluator: the mean of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .evaluator import Energies, Evaluator


class Common(NamedTuple):
    """What members have in common, under the names that a Potential has for it; `cutoffs` are those of all."""

    species: tuple[int, ...]
    cutoffs: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype


class Mean:
    """An `Evaluator` that gives the mean over its members.

    Args:
        members: evaluators on one device and in one dtype.

    Raises:
        ValueError: no element that all members know.
    """

    def __init__(self, members: Sequence[Evaluator]):
        potentials = [member.potential for member in members]
        species = set.intersection(*(set(p.species) for p in potentials))
        if not species:
            raise ValueError(f"the committee has no species in common: {[p.species for p in potentials]}")
        cutoffs = sorted({cutoff for p in potentials for cutoff in p.cutoffs}, reverse=True)
        self.members = tuple(members)
        self.potential = Common(tuple(sorted(species)), tuple(cutoffs), potentials[0].device, potentials[0].dtype)

    def __call__(self, graphs, positions, vectors, gradient=True, n_counted=None) -> Energies:
        """See `Evaluator`; graphs and vectors for each of all cutoffs."""
        given = dict(zip(self.potential.cutoffs, zip(graphs, vectors, strict=True), strict=True))
        found = []
        for member in self.members:
            own = [given[cutoff] for cutoff in member.potential.cutoffs]
            found.append(member(tuple(g for g, _ in own), positions, tuple(v for _, v in own), gradient, n_counted))
        return Energies(*(None if part[0] is None else torch.stack(part).mean(0) for part in zip(*found, strict=True)))
