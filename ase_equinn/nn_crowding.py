"""How crowded the surroundings of an atom are: sums over its neighbours that grow steeply as they come near."""

from __future__ import annotations

from functools import partial
from typing import Sequence

import torch
from torch import Tensor, nn

from .angular import spherical_harmonics
from .graph import Graph
from .irreps import Irreps
from .nn_pairs import find_pairs, joined
from .ops.conv import conv
from .ops.paths import ConvPaths
from .ops.tabulate import Tabulator, Taylor
from .radial import polynomial_envelope
from .radial_transforms import covalent_radius

STEEPNESS = (6.0, 12.0)  # in the first sum many neighbours at usual distances count, in the second one that is too near
_SUMS = Irreps("2x0e")


class Crowding(nn.Module):
    """rho_i = sum_j exp(-k (r_ij / (R_i + R_j) - 1)) envelope(r_ij), k = 6 and 12, R the covalent radii.

    Both are about the number of atoms that touch this one.

    Args:
        species: atomic numbers, ascending.
        cutoff: A, at which the envelope ends.
    """

    def __init__(self, species: Sequence[int], cutoff: float):
        super().__init__()
        self.species, self.cutoff, self.backend = tuple(species), float(cutoff), "auto"
        self.paths = ConvPaths(_SUMS, 0, _SUMS)
        self.register_buffer("one", torch.ones(len(self.species), 1, 2), persistent=False)
        self._tabulators: dict[tuple[int, int], Tabulator] = {}

    def forward(self, graph: Graph, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Both sums, (n_atoms,); vectors (n_edges, 3) in A, species (n_atoms,) indices."""
        lengths, sh = vectors.norm(dim=1), spherical_harmonics(0, vectors)
        pairs = find_pairs(len(self.species) > 1, graph, species, self.species)
        tables = [self._tabulator(pair)(_as_it_is, [self.one], lengths) for pair in pairs.species]
        ones = [self.one.index_select(0, species)]
        (found,) = conv(self.paths, ones, lengths, sh, joined(pairs, tables), graph, self.backend)
        return found[:, :, 0:1].flatten(), found[:, :, 1:2].flatten()

    def exact(self, pair: tuple[int, int], lengths: Tensor) -> Tensor:
        """The functions of one pair of species, (E,) A -> (E, 2)."""
        touching, envelope = (
            sum(covalent_radius(self.species[z]) for z in pair),
            polynomial_envelope(lengths, self.cutoff, 5),
        )
        return torch.stack([torch.exp(-k * (lengths / touching - 1.0)) * envelope for k in STEEPNESS], dim=1)

    def _tabulator(self, pair: tuple[int, int]) -> Tabulator:
        if pair not in self._tabulators:
            self._tabulators[pair] = Tabulator(partial(self.exact, pair), self.cutoff)
        return self._tabulators[pair]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tabulators": {}}


def _as_it_is(x: Taylor, weights: Sequence[Tensor]) -> Taylor:
    return x
