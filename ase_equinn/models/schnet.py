"""SchNet: continuous-filter convolutions on invariant features."""

from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..nn import SpeciesIndex
from ..radial import GaussianBasis, check_count, check_cutoff, cosine_envelope


def shifted_softplus(x: Tensor) -> Tensor:
    """ln((1 + e^x) / 2): smooth, zero at x = 0. Above 40 it is linear, exact to float64 round-off."""
    return nn.functional.softplus(x, threshold=40.0) - math.log(2.0)


def atomwise(n_in: int, n_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer that acts on each atom alone: Glorot-uniform weights, zero bias."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ShiftedSoftplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return shifted_softplus(x)


class Interaction(nn.Module):
    """The update of x_i: two atom-wise layers after the convolution sum_j (A x_j) o W(r_ij) f_c(r_ij).

    A is an atom-wise layer, W the filter-generating network on the radial basis, f_c the cosine cutoff, o the product
    channel by channel.
    """

    def __init__(self, n_channels: int, n_basis: int, avg_num_neighbors: float):
        super().__init__()
        self.filter = nn.Sequential(atomwise(n_basis, n_channels), ShiftedSoftplus(), atomwise(n_channels, n_channels))
        self.atomwise_in = atomwise(n_channels, n_channels, bias=False)
        self.atomwise_out = nn.Sequential(
            atomwise(n_channels, n_channels), ShiftedSoftplus(), atomwise(n_channels, n_channels)
        )
        self.avg_num_neighbors = avg_num_neighbors

    def forward(self, x: Tensor, edge_index: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        centre, neighbour = edge_index
        filters = self.filter(basis) * envelope[:, None]
        messages = self.atomwise_in(x).index_select(0, neighbour) * filters
        convolved = torch.zeros_like(x).index_add(0, centre, messages)
        return self.atomwise_out(convolved / self.avg_num_neighbors**0.5)


class SchNet(nn.Module):
    """Features x_i start from the element and are updated by filters that depend on distances only.

        x_i <- x_i + Interaction(x)_i      (n_layers times),      e_i = atomwise(ssp(atomwise(x_i)))

    Schuett, Sauceda, Kindermans, Tkatchenko, Mueller, "SchNet - a deep learning architecture for molecules and
    materials", J. Chem. Phys. 148, 241722 (2018), figs. 1 and 2. As in the authors' code the filter network ends
    linearly, and a cosine cutoff makes the filters vanish with a continuous first derivative (energy and forces are
    continuous, second derivatives jump at the cutoff). The sum over neighbours is divided by sqrt(avg_num_neighbors);
    1 gives the published formula.

    Args:
        species: atomic numbers.
        cutoff: A.
        avg_num_neighbors: mean number of neighbours in the training set.
        n_channels: features per atom.
        n_layers: interaction blocks, >= 0.
        n_basis: Gaussians between 0 and the cutoff.

    Raises:
        ValueError: cutoff or avg_num_neighbors <= 0, n_channels < 2, n_layers < 0, n_basis < 1, with the value.
    """

    def __init__(
        self,
        species: Sequence[int],
        cutoff: float,
        avg_num_neighbors: float = 1.0,
        n_channels: int = 128,
        n_layers: int = 3,
        n_basis: int = 32,
    ):
        super().__init__()
        if not 0 < avg_num_neighbors < math.inf:
            raise ValueError(f"SchNet: avg_num_neighbors must be positive and finite, got {avg_num_neighbors!r}")
        check_count("SchNet", "n_channels", n_channels, 2)
        check_count("SchNet", "n_layers", n_layers, 0)
        self.index = SpeciesIndex(species)
        self.species, self.cutoff = self.index.species, check_cutoff("SchNet", cutoff)
        self.hyperparameters = dict(
            species=list(self.species), cutoff=self.cutoff, avg_num_neighbors=float(avg_num_neighbors),
            n_channels=n_channels, n_layers=n_layers, n_basis=n_basis,
        )  # fmt: skip
        self.embedding = nn.Embedding(len(self.species), n_channels)
        self.basis = GaussianBasis(n_basis, self.cutoff)
        self.layers = nn.ModuleList(Interaction(n_channels, n_basis, float(avg_num_neighbors)) for _ in range(n_layers))
        self.readout = nn.Sequential(
            atomwise(n_channels, n_channels // 2), ShiftedSoftplus(), atomwise(n_channels // 2, 1)
        )

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in the units of the scale that Potential applies; vectors (n_edges, 3) in A."""
        return self.readout(self.descriptors(graph, vectors)).squeeze(1)

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        """The invariant features (n_atoms, n_channels) before the readout."""
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        basis, envelope = self.basis(lengths), cosine_envelope(lengths, self.cutoff)
        x = self.embedding(self.index(graph.numbers))
        for layer in self.layers:
            x = x + layer(x, graph.edge_index, basis, envelope)
        return x
