"""Graph: the atoms and directed edges that a model sees; r_ij = r_j - r_i + S @ cell, i = centre, j = neighbour.

A graph holds one edge set for one cutoff; several structures are one graph with `batch` naming each atom's structure.
Positions are not part of it: vectors are formed by `edge_vectors`, always in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ase_equinn.neighbors import NeighborList, complete_cell
from ase_equinn.neighbors_filter import pair_components

if TYPE_CHECKING:
    from ase import Atoms

_ELEMENTS = tuple(range(1, 119))
COINCIDENT = 1e-4  # A; atoms closer than this are an error of the input, not a structure


class Graph(NamedTuple):
    """Atoms and edges of `n_graphs` structures. Edges are sorted by (i, j, S): atom i has row_ptr[i]:row_ptr[i + 1]."""

    numbers: torch.Tensor  # (n,) int64: atomic numbers
    cell: torch.Tensor  # (g, 3, 3) float64, A: rows are cell vectors
    pbc: torch.Tensor  # (g, 3) bool
    edge_index: torch.Tensor  # (2, E) int64: centre i, neighbour j
    shift: torch.Tensor  # (E, 3) int32: S
    row_ptr: torch.Tensor  # (n + 1,) int64
    batch: torch.Tensor  # (n,) int64: the structure of each atom
    n_graphs: int

    def to(self, device: str | torch.device) -> Graph:
        """The same graph on another device."""
        return Graph(*(x.to(device) for x in self[:-1]), self.n_graphs)


def from_atoms(
    atoms: Atoms, cutoff: float, *, neighbors: str | NeighborList = "vesin", device: str | torch.device = "cpu"
) -> Graph:
    """The graph of one structure, whose pairs are found on the device that it lives on.

    Args:
        atoms: ase.Atoms, left unchanged; wrapped or not, any pbc.
        cutoff: A.
        neighbors: name of a back end, or a NeighborList of this cutoff, whose skin then saves rebuilds.
        device: where the graph is built and stays.
    Raises:
        TypeError: for anything but ase.Atoms.
        ValueError: see `NeighborList`; and for a NeighborList of another cutoff.
    """
    return graph_and_vectors(atoms, cutoff, neighbors=neighbors, device=device)[0]


def graph_and_vectors(
    atoms: Atoms, cutoff: float, *, neighbors: str | NeighborList = "vesin", device: str | torch.device = "cpu"
) -> tuple[Graph, torch.Tensor]:
    """`from_atoms` with the vectors (E, 3) that `edge_vectors` gives, to the bit: the search has them already."""
    _check_type(atoms)
    if isinstance(neighbors, str):
        neighbors = NeighborList(cutoff, backend=neighbors)
    elif neighbors.cutoff != cutoff:
        raise ValueError(f"the graph's cutoff is {cutoff} A, but the given neighbour list has {neighbors.cutoff} A")
    positions, numbers = np.array(atoms.positions, dtype=np.float64), np.array(atoms.numbers, dtype=np.int64)
    cell, pbc = np.array(atoms.cell.array, dtype=np.float64), np.array(atoms.pbc, dtype=bool)
    pairs = neighbors.update(torch.from_numpy(positions).to(device), cell, pbc)
    graph = Graph(
        numbers=torch.from_numpy(numbers).to(device),
        cell=torch.from_numpy(cell[None]).to(device),
        pbc=torch.from_numpy(pbc[None]).to(device),
        edge_index=pairs.edge_index,
        shift=pairs.shift,
        row_ptr=pairs.row_ptr,
        batch=torch.from_numpy(np.zeros_like(numbers)).to(device),
        n_graphs=1,
    )
    return graph, pairs.vectors


def collate(graphs: Sequence[Graph]) -> Graph:
    """One graph of many, atoms and edges in the order given; every edge keeps its vector to the last bit.

    Raises:
        ValueError: for an empty sequence.
    """
    graphs = list(graphs)
    if not graphs:
        raise ValueError("collate needs at least one graph, got none")
    if len(graphs) == 1:
        return graphs[0]
    edge_index, row_ptr, batch = [], [graphs[0].row_ptr[:1]], []
    n_atoms = n_edges = n_graphs = 0
    for graph in graphs:
        edge_index.append(graph.edge_index + n_atoms)
        row_ptr.append(graph.row_ptr[1:] + n_edges)
        batch.append(graph.batch + n_graphs)
        n_atoms += len(graph.numbers)
        n_edges += graph.edge_index.shape[1]
        n_graphs += graph.n_graphs
    return Graph(
        numbers=torch.cat([graph.numbers for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        pbc=torch.cat([graph.pbc for graph in graphs]),
        edge_index=torch.cat(edge_index, dim=1),
        shift=torch.cat([graph.shift for graph in graphs]),
        row_ptr=torch.cat(row_ptr),
        batch=torch.cat(batch),
        n_graphs=n_graphs,
    )


def edge_vectors(graph: Graph, positions: torch.Tensor) -> torch.Tensor:
    """r_ij = r_j - r_i + S @ cell for every edge, the numbers by which the neighbour list judged |r_ij| < cutoff.

    Args:
        positions: (n, 3) float64, A, on the graph's device; may carry gradients, as may `graph.cell`.
    Returns:
        (E, 3) float64, A.
    Raises:
        ValueError: for positions of another shape or precision.
    """
    if positions.shape != (len(graph.numbers), 3) or positions.dtype != torch.float64:
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise ValueError(f"positions must be torch.float64 of shape ({len(graph.numbers)}, 3), got {got}")
    counts = graph.shift.T.to(torch.float64, memory_format=torch.contiguous_format)
    cell = graph.cell[0] if graph.n_graphs == 1 else graph.cell[graph.batch[graph.edge_index[0]]].permute(1, 2, 0)
    return torch.stack(pair_components(positions, graph.edge_index, counts, cell), dim=1)


def check_atoms(atoms: Atoms, species: Sequence[int] | None = None) -> None:
    """Answers a structure that cannot be evaluated with an error that names the atom and the value.

    Args:
        species: the atomic numbers that are supported; None: all elements.
    Raises:
        TypeError: for anything but ase.Atoms.
        ValueError: for a position or cell that is not finite, periodic directions that span no volume, an element
            that is not supported.
    """
    _check_type(atoms)
    positions, numbers = atoms.positions, atoms.numbers
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(1))[0])
        raise ValueError(f"the position of atom {atom} is not finite: {positions[atom].tolist()}")
    complete_cell(atoms.cell.array, atoms.pbc)
    supported = _ELEMENTS if species is None else tuple(species)
    known = _mask(supported).take(numbers, mode="clip")
    if not known.all():
        from ase.data import chemical_symbols

        atom = int(np.flatnonzero(~known)[0])
        number = int(numbers[atom])
        symbol = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
        names = "all elements" if species is None else ", ".join(chemical_symbols[z] for z in supported)
        raise ValueError(f"atom {atom} has atomic number {number} ({symbol}); supported: {names}")


@lru_cache(maxsize=64)
def _mask(species: tuple[int, ...]) -> np.ndarray:
    """Whether an atomic number is among them; the first and last entry, for no element, stand for all beyond."""
    mask = np.zeros(_ELEMENTS[-1] + 2, dtype=bool)
    mask[list(species)] = True
    return mask


def check_coincident(graph: Graph, vectors: torch.Tensor) -> None:
    """Atoms closer than 1e-4 A are an error of the input; anything farther apart passes.

    Args:
        vectors: (E, 3), A: the graph's edge vectors.
    Raises:
        ValueError: naming both atoms and their distance.
    """
    if not len(vectors):
        return
    square, edge = vectors.detach().square().sum(1).min(0)
    distance = square.sqrt().item()
    if distance < COINCIDENT:
        i, j = graph.edge_index[:, edge]
        structure = int(graph.batch[i])
        first = int((graph.batch < structure).sum())
        where = f" of structure {structure}" if graph.n_graphs > 1 else ""
        pair = f"atoms {int(i) - first} and {int(j) - first}{where}"
        raise ValueError(f"{pair} are {distance:.3g} A apart, less than {COINCIDENT:g} A")


def _check_type(atoms) -> None:
    from ase import Atoms

    if not isinstance(atoms, Atoms):
        raise TypeError(f"expected ase.Atoms, got {type(atoms).__name__}")
