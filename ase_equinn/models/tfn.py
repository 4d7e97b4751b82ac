"""Tensor field network straight from e3nn: the readable reference that faster models are measured against."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from typing import Sequence

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..irreps import Irreps, clebsch_gordan
from ..nn import SpeciesIndex
from ..radial import SmoothFiniteBasis, check_count, check_cutoff

# e3nn 0.4 unpickles its table of constants, which torch >= 2.6 refuses unless `slice` is allowed; for this import only.
_safe_globals = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
with _safe_globals([slice]):
    from e3nn import o3
    from e3nn.nn import FullyConnectedNet, Gate


class Convolution(nn.Module):
    """x_i <- Gate( Linear(x_i) + sum_j x_j (x)_{w(|r_ij|)} Y(r_ij) / sqrt(z) ).

    (x)_w is the fully connected tensor product: every path that parity and the triangle rule allow, each with its own
    weights, which a network computes from the distance. The network has no biases and its basis vanishes at the cutoff
    with all derivatives, so the messages do as well.
    """

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int, n_basis: int, radial_width: int, z: float
    ):
        super().__init__()
        irreps_sh = o3.Irreps.spherical_harmonics(lmax)
        couples = [ir for _, a in irreps_in for _, b in irreps_sh for ir in a * b]
        reached = [(mul, ir) for mul, ir in irreps_out if ir in couples]
        scalars = o3.Irreps([(mul, ir) for mul, ir in reached if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in reached if ir.l > 0])
        gates = o3.Irreps([(gated.num_irreps, "0e")] if gated else [])
        silu, tanh = nn.functional.silu, torch.tanh
        self.gate = Gate(
            scalars, [silu if ir.p == 1 else tanh for _, ir in scalars], gates, [torch.sigmoid] * len(gates), gated
        )
        self.linear = o3.Linear(irreps_in, self.gate.irreps_in)
        self.product = o3.FullyConnectedTensorProduct(irreps_in, irreps_sh, self.gate.irreps_in, shared_weights=False)
        self.radial = FullyConnectedNet([n_basis, radial_width, self.product.weight_numel], silu)
        self.irreps_out, self.z = self.gate.irreps_out, z

    def forward(self, x: Tensor, edge_index: Tensor, harmonics: Tensor, basis: Tensor) -> Tensor:
        centre, neighbour = edge_index
        messages = self.product(x.index_select(0, neighbour), harmonics, self.radial(basis))
        update = messages.new_zeros(len(x), messages.shape[1]).index_add(0, centre, messages)
        return self.gate(self.linear(x) + update / self.z**0.5)


class TFN(nn.Module):
    """Features of degree l are convolved with filters w(r) Y_l(r_ij), every product taken by e3nn.

    Thomas, Smidt, Kearnes, Yang, Li, Kohlhoff, Riley, "Tensor field networks: rotation- and translation-equivariant
    neural networks for 3D point clouds", arXiv:1802.08219 (2018), sec. 4; with parity, gates and the normalisation of
    Geiger and Smidt, "e3nn: Euclidean neural networks", arXiv:2207.09453 (2022).

    Features here have e3nn's order (channel outermost). The last layer keeps even scalars only: nothing else can reach
    the energy.

    Args:
        species: atomic numbers.
        cutoff: A.
        avg_num_neighbors: z, the mean number of neighbours in the training set.
        irreps_hidden: features between layers; the multiplicity of 0e is also the width of the
            embedding and of the readout.
        lmax: highest degree of the spherical harmonics.
        n_layers: convolutions, >= 1.
        n_basis: size of the smooth finite radial basis.
        radial_width: hidden width of the radial networks.

    Raises:
        ValueError: no 0e in irreps_hidden, n_layers, n_basis or radial_width < 1, cutoff or avg_num_neighbors <= 0,
            lmax < 0, with the value.
    """

    def __init__(
        self,
        species: Sequence[int],
        cutoff: float,
        avg_num_neighbors: float = 1.0,
        irreps_hidden: str = "16x0e+8x1o+4x2e",
        lmax: int = 2,
        n_layers: int = 2,
        n_basis: int = 8,
        radial_width: int = 64,
    ):
        super().__init__()
        hidden = o3.Irreps(str(Irreps(irreps_hidden).simplify()))
        scalars = o3.Irreps([(hidden.count("0e"), "0e")])
        if not scalars.dim:
            raise ValueError(f"TFN: irreps_hidden must contain even scalars (0e), got {irreps_hidden!r}")
        if not 0 < avg_num_neighbors < math.inf:
            raise ValueError(f"TFN: avg_num_neighbors must be positive and finite, got {avg_num_neighbors!r}")
        check_count("TFN", "lmax", lmax, 0)
        check_count("TFN", "n_layers", n_layers)
        check_count("TFN", "radial_width", radial_width)
        self.index = SpeciesIndex(species)
        self.species, self.cutoff, self.n_layers = self.index.species, check_cutoff("TFN", cutoff), n_layers
        self.hyperparameters = dict(
            species=list(self.species), cutoff=self.cutoff, avg_num_neighbors=float(avg_num_neighbors),
            irreps_hidden=str(hidden), lmax=lmax, n_layers=n_layers, n_basis=n_basis, radial_width=radial_width,
        )  # fmt: skip
        self.embedding = nn.Parameter(torch.randn(len(self.species), scalars.dim))
        self.basis = SmoothFiniteBasis(n_basis, self.cutoff)
        self.irreps_sh = o3.Irreps.spherical_harmonics(lmax)
        layers, irreps = [], scalars
        for k in range(n_layers):
            target = hidden if k < n_layers - 1 else scalars
            layers.append(Convolution(irreps, target, lmax, n_basis, radial_width, float(avg_num_neighbors)))
            irreps = layers[-1].irreps_out
        self.layers = nn.ModuleList(layers)
        self.readout = nn.Linear(scalars.dim, 1)
        _restore_wigner_3j(self)
        self.register_load_state_dict_post_hook(_restore_wigner_3j)

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in the units of the scale that Potential applies; vectors (n_edges, 3) in A."""
        return self.readout(self.descriptors(graph, vectors)).squeeze(1)

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        """The invariant features (n_atoms, n_channels) before the readout."""
        basis = self.basis(torch.linalg.vector_norm(vectors, dim=1)) * self.basis.n**0.5
        harmonics = o3.spherical_harmonics(self.irreps_sh, vectors, normalize=True, normalization="component")
        x = self.embedding.index_select(0, self.index(graph.numbers))
        for layer in self.layers:
            x = layer(x, graph.edge_index, harmonics, basis)
        return x

    def _apply(self, fn, recurse: bool = True):
        """A change of dtype or device; a model that was float32 is equivariant to float64 round-off afterwards."""
        super()._apply(fn, recurse)
        _restore_wigner_3j(self)
        return self


def _restore_wigner_3j(model: nn.Module, _=None) -> None:
    """Replaces e3nn's constants by our own table, at construction, after a cast and after a file is read.

    The sign of some differs between e3nn 0.4 and 0.6, e.g. (1, 2, 2), so a trained model would depend on the version;
    and a cast or a float32 file would leave float32's digits in them.
    """
    for name, buffer in model.named_buffers():
        found = re.search(r"_w3j_(\d+)_(\d+)_(\d+)$", name)
        if found:
            buffer.copy_(torch.tensor(clebsch_gordan(*map(int, found.groups()))))
