"""NequIP: an equivariant message-passing network."""

from __future__ import annotations

from functools import partial
from typing import Sequence

import torch
from torch import Tensor, nn

from ..angular import spherical_harmonics
from ..graph import Graph
from ..irreps import Irreps
from ..nn import Gate, Linear, RadialNetwork, SpeciesIndex
from ..nn_limits import EnergyLimits, Surroundings
from ..ops.conv import conv
from ..ops.paths import ConvPaths
from ..radial import BASES, polynomial_envelope


class Interaction(nn.Module):
    """One layer: x_i' = Gate( Linear(conv(Linear(x)))/sqrt(n) + SelfConnection_species(x_i) ).

    The two maps of x alone are `linear_in` and `self_connection`; `forward` does the rest.
    """

    def __init__(
        self, irreps_in: Irreps, irreps_out: Irreps, lmax: int, radial, n_species: int, avg_num_neighbors: float
    ):
        super().__init__()
        self.linear_in = Linear(irreps_in, irreps_in)
        reachable = ConvPaths(irreps_in, lmax, irreps_out).irreps_out
        self.gate = Gate([term for term in irreps_out if reachable.count(term.l, term.p)])
        self.paths = ConvPaths(irreps_in, lmax, self.gate.irreps_in)
        self.radial = radial(self.paths.n_weights)
        self.linear_out = Linear(self.paths.irreps_out, self.gate.irreps_in)
        shared = [term for term in self.gate.irreps_in if irreps_in.count(term.l, term.p)]
        self.self_connection = Linear(irreps_in, shared, n_species)
        self.irreps_out, self.avg_num_neighbors = self.gate.irreps_out, avg_num_neighbors
        self.backend = "auto"

    def forward(self, sent: list[Tensor], own: list[Tensor], lengths: Tensor, sh: Tensor, graph: Graph) -> list[Tensor]:
        """sent = linear_in(x), own = self_connection(x, species)."""
        messages = conv(self.paths, sent, lengths, sh, self.radial.table(lengths), graph, self.backend)
        update = self.linear_out(messages, scale=self.avg_num_neighbors**-0.5)
        own = {term[1:]: block for term, block in zip(self.self_connection.irreps_out, own)}
        return self.gate([b + own[term[1:]] if term[1:] in own else b for term, b in zip(self.gate.irreps_in, update)])


class NequIP(nn.Module):
    """Neural equivariant interatomic potential: features of degree l interact through tensor products with Y(r_ij).

    Batzner, Musaelian, Sun, Geiger, Mailoa, Kornbluth, Molinari, Smidt, Kozinsky, "E(3)-equivariant graph neural
    networks for data-efficient and accurate interatomic potentials", Nat. Commun. 13, 2453 (2022).

    A layer keeps only the irreps that can still reach the energy: scalars in the last one, natural parity before it.

    Args:
        species: atomic numbers.
        cutoff: A.
        avg_num_neighbors: mean number of neighbours in the training set; messages are divided by its square root.
        n_layers: interaction layers, >= 1.
        irreps_hidden: features between layers, e.g. "64x0e+32x1o+16x2e"; odd scalars and even vectors ("32x0o+32x1e")
            make the network see more couplings. The multiplicity of 0e is the width of the embedding and the readout.
        lmax: highest degree of the spherical harmonics; None: that of irreps_hidden.
        n_basis, basis: size and name (see radial.BASES) of the radial basis.
        radial_mlp: hidden widths of the radial network.
        envelope_power: p of the polynomial envelope.
        limits: None, or the fields of nn_limits.Limits: node energies stay between them.

    Raises:
        ValueError: no 0e in irreps_hidden, n_layers < 1, cutoff <= 0, ..., with the value.
    """

    def __init__(
        self,
        species: Sequence[int],
        cutoff: float,
        avg_num_neighbors: float = 1.0,
        n_layers: int = 2,
        irreps_hidden: str = "64x0e+32x1o+16x2e",
        lmax: int | None = None,
        n_basis: int = 8,
        basis: str = "bessel",
        radial_mlp: Sequence[int] = (64,),
        envelope_power: int = 6,
        limits: dict | None = None,
    ):
        super().__init__()
        hidden = Irreps(irreps_hidden).simplify()
        lmax = hidden.lmax if lmax is None else lmax
        _check(hidden, cutoff, avg_num_neighbors, n_layers, lmax, basis)
        self.index = SpeciesIndex(species)
        self.limits = EnergyLimits("NequIP", limits, self.index.species, float(cutoff))
        self.species, self.cutoff, self.lmax, self.n_layers = self.index.species, float(cutoff), lmax, n_layers
        self.hyperparameters = dict(
            species=list(self.species), cutoff=float(cutoff), avg_num_neighbors=float(avg_num_neighbors),
            n_layers=n_layers, irreps_hidden=str(hidden), lmax=lmax, n_basis=n_basis, basis=basis,
            radial_mlp=list(radial_mlp), envelope_power=envelope_power,
            limits=self.limits.hyperparameters,
        )  # fmt: skip

        def radial(n_out: int) -> RadialNetwork:
            envelope = partial(polynomial_envelope, cutoff=self.cutoff, p=envelope_power)
            return RadialNetwork(BASES[basis](n_basis, self.cutoff), envelope, radial_mlp, n_out)

        scalars = Irreps([(hidden.count(0, 1), 0, 1)])
        self.embedding = nn.Parameter(torch.randn(len(self.species), scalars.dim))
        layers, irreps = [], scalars
        for target in _layer_irreps(hidden, lmax, n_layers):
            layers.append(Interaction(irreps, target, lmax, radial, len(self.species), float(avg_num_neighbors)))
            irreps = layers[-1].irreps_out
        self.layers = nn.ModuleList(layers)
        self.readout = Linear(scalars, Irreps("1x0e"))

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in the units of the scale that Potential applies; vectors (n_edges, 3) in A."""
        species = self.index(graph.numbers)
        around = self.limits.surroundings(graph, vectors, species)
        energy = self.readout([self._scalars(graph, vectors, species, around)[:, None]])[0].flatten()
        return self.limits(energy, around, species)

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        """The invariant features (n_atoms, n_channels) before the readout."""
        species = self.index(graph.numbers)
        return self._scalars(graph, vectors, species, self.limits.surroundings(graph, vectors, species))

    def _scalars(self, graph: Graph, vectors: Tensor, species: Tensor, around: Surroundings | None) -> Tensor:
        lengths, sh = vectors.norm(dim=1), spherical_harmonics(self.lmax, vectors)
        x, elements = [self.embedding[:, None]], torch.arange(len(self.species), device=species.device)
        for k, layer in enumerate(self.layers):
            x = self.limits.sent(x, self.layers[k - 1].irreps_out, around) if k else x
            sent, own = layer.linear_in(x), layer.self_connection(x, species if k else elements)
            if k == 0:  # atoms of an element still are alike: one row each, until here
                sent, own = ([block.index_select(0, species) for block in blocks] for blocks in (sent, own))
            x = layer(sent, own, lengths, sh, graph)
        return x[0][:, 0]


def _layer_irreps(hidden: Irreps, lmax: int, n_layers: int) -> list[Irreps]:
    """What each layer puts out: of the hidden irreps those that a later layer can turn into the energy."""
    wanted = Irreps([(hidden.count(0, 1), 0, 1)])
    targets = [wanted]
    for _ in range(n_layers - 1):
        used = ConvPaths(hidden, lmax, wanted).paths
        kept = {hidden[path.i_in] for path in used} | set(wanted)
        wanted = Irreps([term for term in hidden if term in kept])
        targets.insert(0, wanted)
    return targets


def _check(hidden: Irreps, cutoff: float, avg_num_neighbors: float, n_layers: int, lmax: int, basis: str) -> None:
    if not hidden.count(0, 1):
        raise ValueError(f"NequIP: irreps_hidden must contain even scalars (0e), got {str(hidden)!r}")
    if not cutoff > 0:
        raise ValueError(f"NequIP: cutoff must be positive, got {cutoff}")
    if not avg_num_neighbors > 0:
        raise ValueError(f"NequIP: avg_num_neighbors must be positive, got {avg_num_neighbors}")
    if n_layers < 1:
        raise ValueError(f"NequIP: n_layers must be at least 1, got {n_layers}")
    if lmax < 0:
        raise ValueError(f"NequIP: lmax must not be negative, got {lmax}")
    if basis not in BASES:
        raise ValueError(f"NequIP: basis must be one of {sorted(BASES)}, got {basis!r}")
