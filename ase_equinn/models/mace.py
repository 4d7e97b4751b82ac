"""MACE: message passing with many-body messages."""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from ..angular import check_lmax, spherical_harmonics
from ..graph import Graph
from ..irreps import Irreps
from ..nn import Linear, SpeciesIndex, silu, tanh
from ..nn_limits import EnergyLimits, Surroundings
from ..nn_pairs import find_pairs
from ..nn_radial import PairRadialNetwork, check_radial
from ..ops.conv import conv
from ..ops.paths import ConvPaths
from ..ops.product import ProductTable, product
from ..radial import check_count, check_cutoff

INTERACTIONS = ("agnostic", "residual", "agnostic density", "residual density")
ACTIVATIONS = {"silu": silu, "tanh": tanh, "abs": torch.abs, "none": lambda x: x}
_SCALAR = Irreps("1x0e")


class ReadoutOptions(NamedTuple):
    """From features to energies: a linear map of every layer's scalars but the last, whose readout has a hidden layer.

    width, activation: of the hidden layer ("silu", "tanh", "abs" or "none"); a single layer is read linearly.
    last_only: the last layer's features alone are read.
    """

    width: int = 16
    activation: str = "silu"
    last_only: bool = False


class Interaction(nn.Module):
    """A_i = Linear(sum_j w(r_ij) CG(Linear(x_j) (x) Y(r_ij))) / n, and what bypasses it.

    n is the average number of neighbours or, in a "density" interaction, 1 + sum_j tanh(u(r_ij)^2) with a learned u.
    "residual": a linear map of x_i by species bypasses; "agnostic": nothing does, A_i passes such a map.
    """

    def __init__(self, kind: str, irreps: Sequence[Irreps], lmax: int, radial: Callable, n_species: int, n: float):
        super().__init__()
        irreps_in, irreps_edge, irreps_layer = irreps
        self.residual, self.avg_num_neighbors, self.backend = kind.startswith("residual"), n, "auto"
        self.irreps_out = Irreps([(irreps_layer[0].mul, l, (-1) ** l) for l in range(lmax + 1)])
        self.linear_in = Linear(irreps_in, irreps_edge)
        self.paths = ConvPaths(irreps_edge, lmax, self.irreps_out)
        self.radial = radial(self.paths.n_weights)
        self.linear_out = Linear(self.paths.irreps_out, self.irreps_out)
        kept = Irreps([term for term in irreps_layer if irreps_in.count(term.l, term.p)])
        bypass = (irreps_in, kept) if self.residual else (self.irreps_out, self.irreps_out)
        self.linear_species = Linear(*bypass, n_species)
        self.density = radial(1, density=True) if kind.endswith("density") else None
        self.density_paths = ConvPaths(_SCALAR, 0, _SCALAR)
        self.register_buffer("one", torch.ones(n_species, 1, 1), persistent=False)

    def forward(self, x: list[Tensor], edges: tuple, graph: Graph, species: Tensor) -> tuple[list[Tensor], dict]:
        """A_i per term of irreps_out, and what bypasses by (l, p).

        x has a row per atom or, in the first layer, per species: there linear maps of it cost nothing.
        """
        lengths, sh, pairs, of_species = edges
        own = torch.arange(x[0].shape[0], device=species.device) if of_species else species
        bypass = self.linear_species(x, own) if self.residual else []
        sent = self.linear_in(x)
        if of_species:
            sent, bypass = ([block.index_select(0, species) for block in blocks] for blocks in (sent, bypass))
        messages = conv(self.paths, sent, lengths, sh, self.radial.table(pairs, lengths), graph, self.backend)
        if self.density is None:
            out = self.linear_out(messages, scale=1 / self.avg_num_neighbors)
        else:
            ones, table = [self.one.index_select(0, species)], self.density.table(pairs, lengths)
            norm = 1 + conv(self.density_paths, ones, lengths, sh[:, :1], table, graph, self.backend)[0]
            out = [block / norm for block in self.linear_out(messages)]
        if not self.residual:
            out = self.linear_species(out, species)
        return out, {term[1:]: block for term, block in zip(self.linear_species.irreps_out, bypass)}


class Product(nn.Module):
    """x_i = Linear(B_i), B_i the symmetric product of A_i with weights of the atom's species."""

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, correlation: int, n_species: int):
        super().__init__()
        self.table, self.backend = ProductTable(irreps_in, irreps_out, correlation), "auto"
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_species, len(rows), self.table.n_channels) / len(rows) ** 0.5)
            for rows in self.table.outputs
        )
        self.linear = Linear(irreps_out, irreps_out)

    def forward(self, x: list[Tensor], species: Tensor) -> list[Tensor]:
        return self.linear(product(self.table, x, [*self.weights], species, self.backend))


class Readout(nn.Module):
    """The energy from the invariant features: a linear map, with a hidden layer before it if `width` is not 0."""

    def __init__(self, n_channels: int, width: int, activation: str):
        super().__init__()
        sizes = [n_channels, width, 1] if width else [n_channels, 1]
        self.activation = ACTIVATIONS[activation]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(a, b) / a**0.5) for a, b in zip(sizes, sizes[1:]))

    def forward(self, scalars: Tensor) -> Tensor:
        *hidden, last = self.weights
        for weight in hidden:
            scalars = self.activation(scalars @ weight)
        return (scalars @ last).flatten()


class MACE(nn.Module):
    """Higher-order equivariant message passing: messages are many-body polynomials of a one-particle basis.

    Batatia, Kovacs, Simm, Ortner, Csanyi, "MACE: higher order equivariant message passing neural networks for fast and
    accurate force fields", NeurIPS 2022, arXiv:2206.07697.

    Args:
        species: atomic numbers.
        cutoff: A.
        avg_num_neighbors: mean number of neighbours in the training set; messages are divided by it.
        n_layers: >= 1.
        irreps_hidden: features between layers, all of one multiplicity, e.g. "32x0e+32x1o+32x2e"; the last layer keeps the
            scalars only. A list names those of every layer instead.
        lmax: highest degree of the spherical harmonics and of A_i.
        correlation: how many neighbours a message couples, at most; a number or one per layer.
        interactions: names of INTERACTIONS, the last one holds for all further layers.
        irreps_edge: None (those of the features), or per layer the irreps that are sent.
        radial: fields of nn_radial.RadialOptions.
        readout: fields of ReadoutOptions.
        limits: None, or the fields of nn_limits.Limits: node energies stay between them.

    Raises:
        ValueError: an argument that has no meaning, with the value.
    """

    def __init__(
        self,
        species: Sequence[int],
        cutoff: float,
        avg_num_neighbors: float = 1.0,
        n_layers: int = 2,
        irreps_hidden: str | Sequence[str] = "32x0e+32x1o+32x2e",
        lmax: int = 3,
        correlation: int | Sequence[int] = 3,
        interactions: Sequence[str] = ("agnostic", "residual"),
        irreps_edge: Sequence[str] | None = None,
        radial: dict | None = None,
        readout: dict | None = None,
        limits: dict | None = None,
    ):
        super().__init__()
        n_layers, lmax = check_count("MACE", "n_layers", n_layers), check_lmax("MACE", lmax)
        self.index, self.cutoff, self.lmax = SpeciesIndex(species), check_cutoff("MACE", cutoff), lmax
        self.n_layers = n_layers
        if not avg_num_neighbors > 0:
            raise ValueError(f"MACE: avg_num_neighbors must be positive, got {avg_num_neighbors}")
        self.species, n_species = self.index.species, len(self.index.species)
        hidden, edge = _irreps_of_layers(irreps_hidden, irreps_edge, n_layers)
        kinds = _kinds(interactions, n_layers)
        correlations = _correlations(correlation, n_layers)
        self.radial = check_radial(radial or {}, n_species)
        options, self.limits = _readout(readout or {}), EnergyLimits("MACE", limits, self.species, self.cutoff)
        self.hyperparameters = dict(
            species=list(self.species), cutoff=self.cutoff, avg_num_neighbors=float(avg_num_neighbors),
            n_layers=n_layers, irreps_hidden=[str(irreps) for irreps in hidden], lmax=lmax, correlation=correlations,
            interactions=kinds, irreps_edge=None if irreps_edge is None else [str(irreps) for irreps in edge],
            radial=_as_json(self.radial), readout=_as_json(options),
            limits=self.limits.hyperparameters,
        )  # fmt: skip

        def network(n_out: int, density: bool = False) -> PairRadialNetwork:
            return PairRadialNetwork(self.radial, self.cutoff, self.species, n_out, density)

        n_channels = hidden[0][0].mul
        self.embedding = nn.Parameter(torch.randn(n_species, n_channels))
        before = [Irreps([(n_channels, 0, 1)]), *hidden]
        self.interactions = nn.ModuleList(
            Interaction(kind, irreps, lmax, network, n_species, float(avg_num_neighbors))
            for kind, *irreps in zip(kinds, before, edge, hidden)
        )
        self.products = nn.ModuleList(
            Product(interaction.irreps_out, irreps, order, n_species)
            for interaction, irreps, order in zip(self.interactions, hidden, correlations)
        )
        widths = [0] * (n_layers - 1) + [options.width if n_layers > 1 else 0]
        self.first_read = n_layers - 1 if options.last_only else 0
        self.readouts = nn.ModuleList(Readout(n_channels, w, options.activation) for w in widths[self.first_read :])

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Node energies (n_atoms,) in the units of the scale that Potential applies; vectors (n_edges, 3) in A."""
        species = self.index(graph.numbers)
        around = self.limits.surroundings(graph, vectors, species)
        scalars = self._scalars(graph, vectors, species, around)[self.first_read :]
        energy = sum(readout(block) for readout, block in zip(self.readouts, scalars))
        return self.limits(energy, around, species)

    def descriptors(self, graph: Graph, vectors: Tensor) -> Tensor:
        """The invariant features of every layer side by side (n_atoms, n_layers * n_channels)."""
        species = self.index(graph.numbers)
        around = self.limits.surroundings(graph, vectors, species)
        return torch.cat(self._scalars(graph, vectors, species, around), dim=1)

    def _scalars(self, graph: Graph, vectors: Tensor, species: Tensor, around: Surroundings | None) -> list[Tensor]:
        """Of each layer the invariant features (n_atoms, n_channels)."""
        lengths, sh = vectors.norm(dim=1), spherical_harmonics(self.lmax, vectors)
        pairs = find_pairs(self.radial.transform is not None, graph, species, self.species)
        x, out = [self.embedding[:, None]], []
        for k, (interaction, layer) in enumerate(zip(self.interactions, self.products)):
            x = self.limits.sent(x, self.products[k - 1].linear.irreps_out, around) if k else x
            messages, bypass = interaction(x, (lengths, sh, pairs, k == 0), graph, species)
            x = layer(messages, species)
            x = [
                block + bypass[term[1:]] if term[1:] in bypass else block
                for term, block in zip(layer.linear.irreps_out, x)
            ]
            out.append(x[0][:, 0])
        return out


def _irreps_of_layers(hidden, edge, n_layers: int) -> tuple[list[Irreps], list[Irreps]]:
    """What each layer puts out, and what it sends."""
    if isinstance(hidden, str):
        full = Irreps(hidden).simplify()
        layers = [full] * (n_layers - 1) + [Irreps([(full.count(0, 1), 0, 1)])]
    else:
        layers = [Irreps(irreps).simplify() for irreps in hidden]
    muls = {mul for irreps in layers for mul, _, _ in irreps}
    if len(layers) != n_layers or len(muls) != 1 or not all(irreps.count(0, 1) for irreps in layers):
        raise ValueError(
            f"MACE: irreps_hidden needs 0e and one multiplicity for all, for {n_layers} layers, got {hidden!r}"
        )
    if edge is None:
        return layers, [Irreps([layers[0][0]]), *layers[:-1]]
    if len(edge) != n_layers or not all(Irreps(irreps).count(0, 1) for irreps in edge):
        raise ValueError(f"MACE: irreps_edge needs 0e in each of {n_layers} layers, got {edge!r}")
    return layers, [Irreps(irreps).simplify() for irreps in edge]


def _kinds(interactions: Sequence[str], n_layers: int) -> list[str]:
    kinds = [*interactions]
    if not kinds or any(kind not in INTERACTIONS for kind in kinds):
        raise ValueError(f"MACE: interactions are of {INTERACTIONS}, got {interactions!r}")
    return (kinds + kinds[-1:] * n_layers)[:n_layers]


def _correlations(correlation: int | Sequence[int], n_layers: int) -> list[int]:
    values = [correlation] * n_layers if isinstance(correlation, int) else [*correlation]
    if len(values) != n_layers:
        raise ValueError(f"MACE: correlation needs one number for each of {n_layers} layers, got {correlation!r}")
    return [check_count("MACE", "correlation", value) for value in values]


def _readout(fields: dict) -> ReadoutOptions:
    unknown = sorted(set(fields) - set(ReadoutOptions._fields))
    options = ReadoutOptions(**{k: v for k, v in fields.items() if k not in unknown})
    if unknown or options.activation not in ACTIVATIONS:
        raise ValueError(f"MACE: readout has {ReadoutOptions._fields}, activation of {[*ACTIVATIONS]}, got {fields!r}")
    check_count("MACE", "width", options.width)
    return options


def _as_json(options: NamedTuple) -> dict:
    return {k: [*v] if isinstance(v, (list, tuple)) else v for k, v in options._asdict().items()}
