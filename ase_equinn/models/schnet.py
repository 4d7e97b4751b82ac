"""SchNet: continuous-filter convolutions on invariant features."""

from __future__ import annotations

import math
from functools import partial
from typing import Sequence

import torch
from torch import Tensor, nn

from ..angular import spherical_harmonics
from ..graph import Graph
from ..irreps import Irreps
from ..nn import SpeciesIndex
from ..ops.conv import conv
from ..ops.paths import ConvPaths
from ..ops.radial_table import RadialTable
from ..ops.symbols import is_symbolic
from ..ops.tabulate import Tabulator, Taylor, softplus_series, taylor_function, taylor_linear, taylor_product
from ..radial import GaussianBasis, check_count, check_cutoff, cosine_envelope

KNOTS_PER_GAUSSIAN = 8  # forces of the table and of the network agree to 1e-7; in float32 more knots cost accuracy


def shifted_softplus(x: Tensor) -> Tensor:
    """ln((1 + e^x) / 2): smooth, zero at x = 0. Above 40 it is linear, exact to float64 round-off."""
    if is_symbolic(x):
        return x.unary("softplus")
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
    channel by channel: the coupling 0 x 0 -> 0 of `ops.conv`.
    """

    def __init__(self, n_channels: int, basis: GaussianBasis, avg_num_neighbors: float):
        super().__init__()
        self.filter = nn.Sequential(atomwise(basis.n, n_channels), ShiftedSoftplus(), atomwise(n_channels, n_channels))
        self.atomwise_in = atomwise(n_channels, n_channels, bias=False)
        self.atomwise_out = nn.Sequential(
            atomwise(n_channels, n_channels), ShiftedSoftplus(), atomwise(n_channels, n_channels)
        )
        scalars = Irreps([(n_channels, 0, 1)])
        self.paths = ConvPaths(scalars, 0, scalars)
        self.tabulate = Tabulator(
            partial(_basis_and_envelope, basis), basis.cutoff, max(64, KNOTS_PER_GAUSSIAN * basis.n)
        )
        self.avg_num_neighbors, self.backend = avg_num_neighbors, "auto"

    def radial(self, lengths: Tensor) -> Tensor:
        """The exact W f_c: lengths (E,) in A -> (E, n_channels)."""
        x = self.tabulate.inputs(lengths)
        return self.filter(x[:, :-1]) * x[:, -1:]

    def table(self) -> RadialTable:
        """W f_c as `conv` wants it, see `Tabulator`."""
        first, _, last = self.filter
        return self.tabulate(self._taylor, [first.weight, first.bias, last.weight, last.bias])

    @staticmethod
    def _taylor(x: Taylor, weights: list[Tensor]) -> Taylor:
        first, first_bias, last, last_bias = weights
        hidden = taylor_function(taylor_linear(x[..., :-1], first.T, first_bias), softplus_series)
        return taylor_product(taylor_linear(hidden, last.T, last_bias), x[..., -1:])

    def forward(self, x: Tensor, lengths: Tensor, ones: Tensor, graph: Graph) -> Tensor:
        """x (n_atoms, n_channels), lengths (E,), ones (E, 1): the harmonic of degree zero."""
        sent = [self.atomwise_in(x)[:, None]]
        (convolved,) = conv(self.paths, sent, lengths, ones, self.table(), graph, self.backend)
        return self.atomwise_out(convolved[:, 0] / self.avg_num_neighbors**0.5)


def _basis_and_envelope(basis: GaussianBasis, lengths: Tensor) -> Tensor:
    """(E,) -> (E, n + 1): the Gaussians, then the cosine cutoff."""
    return torch.cat([basis(lengths), cosine_envelope(lengths, basis.cutoff)[:, None]], dim=1)


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
        self.species, self.cutoff, self.n_layers = self.index.species, check_cutoff("SchNet", cutoff), n_layers
        self.hyperparameters = dict(
            species=list(self.species), cutoff=self.cutoff, avg_num_neighbors=float(avg_num_neighbors),
            n_channels=n_channels, n_layers=n_layers, n_basis=n_basis,
        )  # fmt: skip
        self.embedding = nn.Embedding(len(self.species), n_channels)
        basis = GaussianBasis(n_basis, self.cutoff)
        self.layers = nn.ModuleList(Interaction(n_channels, basis, float(avg_num_neighbors)) for _ in range(n_layers))
        self.readout = nn.Sequential(
            atomwise(n_channels, n_channels // 2), ShiftedSoftplus(), atomwise(n_channels // 2, 1)
        )

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in the units of the scale that Potential applies; vectors (n_edges, 3) in A."""
        return self.readout(self.descriptors(graph, vectors)).squeeze(1)

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        """The invariant features (n_atoms, n_channels) before the readout."""
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        ones = spherical_harmonics(0, vectors)
        x = self.embedding(self.index(graph.numbers))
        for layer in self.layers:
            x = x + layer(x, lengths, ones, graph)
        return x
