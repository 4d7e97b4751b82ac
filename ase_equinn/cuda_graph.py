"""The whole evaluation of a potential on CUDA as one recorded graph, replayed on buffers of constant size.

A step of a small system is hundreds of kernels that take less time to run than to launch; a replay launches them at
once. The buffers are padded with ghosts, atoms of a structure of their own: edges that are missing run from a ghost to
itself, at the cutoff. So no atom sees them, and what belongs to ghosts is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .derivatives import derivatives
from .evaluator import Energies, InTorch
from .graph import Graph
from .potential import Potential

_log = logging.getLogger(__name__)
_PER_GHOST = 32  # edges that a ghost should have at most on average: a program goes through all edges of an atom
_AFTER = 2  # evaluations of structures that fit into the same buffers before a graph is recorded
_CHECKED = 2  # replays of each recording that are compared with an ordinary evaluation
_MOST_EDGES = 500_000  # beyond, launches take no time in comparison, and the recording holds memory
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of the largest force


class Capacity(NamedTuple):
    """How many atoms, ghosts included, and edges (of each graph) the buffers hold."""

    atoms: int
    edges: tuple[int, ...]

    def fits(self, other: Capacity) -> bool:
        """Whether a structure with these numbers of atoms and edges can use the buffers without much waste."""
        numbers = [(self.atoms, other.atoms), *zip(self.edges, other.edges, strict=True)]
        return all(used < capacity <= used + used // 8 + 256 for capacity, used in numbers)


def size_of(graphs: tuple[Graph, ...]) -> Capacity:
    """What a structure takes without padding."""
    return Capacity(len(graphs[0].numbers), tuple(graph.edge_index.shape[1] for graph in graphs))


def capacity_for(size: Capacity) -> Capacity:
    """Room for somewhat more: edges come and go as atoms move."""
    edges = tuple(n + n // 32 + 64 for n in size.edges)
    spare = max((capacity - n for capacity, n in zip(edges, size.edges)), default=0)
    return Capacity(size.atoms + 1 + spare // _PER_GHOST, edges)


class Buffers:
    """Edges of structures with the same atoms, and the graphs of constant size that these give.

    Args:
        like: the graphs of a structure: all that are written must have its atomic numbers, as models may record what
            follows from them. Ghosts are of the element of the first atom.
        cutoffs: A, one per graph.
        capacity: more atoms and edges than there are.
    """

    def __init__(self, like: tuple[Graph, ...], cutoffs: tuple[float, ...], capacity: Capacity):
        self.capacity, self.cutoffs, device = capacity, cutoffs, like[0].numbers.device
        self.n_atoms, n = len(like[0].numbers), capacity.atoms
        self.n_ghosts = n - self.n_atoms
        numbers = torch.cat([like[0].numbers, like[0].numbers[:1].expand(self.n_ghosts)])
        batch = (torch.arange(n, device=device) >= self.n_atoms).long()
        cell = torch.zeros(2, 3, 3, dtype=torch.float64, device=device)
        pbc = torch.zeros(2, 3, dtype=torch.bool, device=device)
        self.graphs = [
            Graph(
                numbers=numbers, cell=cell, pbc=pbc, batch=batch, n_graphs=2,
                edge_index=torch.zeros(2, edges, dtype=torch.int64, device=device),
                shift=torch.zeros(edges, 3, dtype=torch.int32, device=device),
                row_ptr=torch.zeros(self.n_atoms + 1, dtype=torch.int64, device=device),
            )
            for edges in capacity.edges
        ]  # fmt: skip
        self.vectors = [torch.zeros(edges, 3, dtype=torch.float64, device=device) for edges in capacity.edges]
        self.positions = torch.zeros(n, 3, dtype=torch.float64, device=device)

    def fit(self, graphs: tuple[Graph, ...]) -> bool:
        """Whether a structure has the same atoms, and a number of edges for which there is room without much waste."""
        numbers, own = graphs[0].numbers, self.graphs[0].numbers
        return self.capacity.fits(size_of(graphs)) and torch.equal(numbers, own[: self.n_atoms])

    def fill(self, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]) -> None:
        """Writes a structure that fits. What else is in the buffers may stay: `padded` does not look at it."""
        own = self.graphs[0]
        own.cell[0], own.pbc[0] = graphs[0].cell[0], graphs[0].pbc[0]
        for graph, room, exact, place in zip(graphs, self.graphs, vectors, self.vectors):
            room.edge_index[:, : len(exact)] = graph.edge_index
            room.row_ptr[:] = graph.row_ptr
            place[: len(exact)] = exact

    def padded(self) -> tuple[tuple[Graph, ...], tuple[Tensor, ...]]:
        """The graphs and their vectors, with ghosts: new tensors, from what is in the buffers when they are computed.

        Nothing waits for the device, to be recorded. All shifts are zero: the vectors hold them.
        """
        found = [self._padded(*parts) for parts in zip(self.graphs, self.vectors, self.cutoffs)]
        return tuple(graph for graph, _ in found), tuple(vectors for _, vectors in found)

    def _padded(self, graph: Graph, vectors: Tensor, cutoff: float) -> tuple[Graph, Tensor]:
        n_edges, device = graph.row_ptr[self.n_atoms :], vectors.device
        missing = len(vectors) - n_edges
        # edge k of those missing belongs to ghost k * n_ghosts // missing: about equally many to each
        k = torch.arange(len(vectors), device=device) - n_edges
        edge_index = torch.where(k >= 0, self.n_atoms + k * self.n_ghosts // missing, graph.edge_index)
        ends = (torch.arange(1, self.n_ghosts + 1, device=device) * missing + self.n_ghosts - 1) // self.n_ghosts
        row_ptr = torch.cat([graph.row_ptr, n_edges + ends])
        axis = (torch.arange(3, device=device) == 0).to(vectors.dtype)
        vectors = torch.where(k[:, None] >= 0, cutoff * axis, vectors)
        return graph._replace(edge_index=edge_index, row_ptr=row_ptr), vectors


class Replay:
    """An `Evaluator` on CUDA that replays a recorded graph where that is possible.

    What cannot be recorded, or what a replay gives differently, is evaluated in the ordinary way from then on; the
    reason is logged. Several structures at once are evaluated in the ordinary way as well.

    A recording reads where tensors lay when it was made: what models keep between evaluations (tables, constants) must
    stay where it is as long as the weights do.

    Args:
        potential: frozen, on a CUDA device; its weights are not to be changed while this is in use.
    """

    def __init__(self, potential: Potential):
        self.potential, self.problem, self._ordinary = potential, "", InTorch(potential)
        self._buffers: Buffers | None = None
        self._replay: Callable[[], Energies] | None = None
        self._waited = self._checked = 0

    def __call__(
        self,
        graphs: tuple[Graph, ...],
        positions: Tensor,
        vectors: tuple[Tensor, ...],
        gradient: bool = True,
        n_counted: int | None = None,
    ) -> Energies:
        """See `evaluator.Evaluator`.

        The next call may overwrite the result.
        """
        if n_counted is not None:
            return self._ordinary(graphs, positions, vectors, gradient, n_counted)
        with torch.inference_mode(False):  # buffers made in a caller's inference mode could not be written outside it
            return self._evaluated(graphs, positions, vectors, gradient)

    def _evaluated(self, graphs, positions: Tensor, vectors, gradient: bool) -> Energies:
        if not self._may_replay(graphs):
            return self._ordinary(graphs, positions, vectors, gradient)
        self._buffers.fill(graphs, vectors)
        if self._replay is None:
            try:
                self._replay, self._checked = self._record(), 0
            except Exception as error:  # whatever cannot be recorded: a wait for the device, too little memory
                self._give_up(f"{type(error).__name__}: {error}")
                return self._ordinary(graphs, positions, vectors, gradient)
        found = Energies(*(x[: len(positions)] for x in self._replay()))
        if self._checked < _CHECKED:
            self._checked += 1
            return self._checked_against(self._ordinary(graphs, positions, vectors), found)
        return found

    def _may_replay(self, graphs: tuple[Graph, ...]) -> bool:
        """Whether such a structure came often enough; makes buffers for it."""
        size = size_of(graphs)
        if self.problem or not size.atoms or sum(size.edges) > _MOST_EDGES or graphs[0].n_graphs != 1:
            return False
        if self._buffers is None or not self._buffers.fit(graphs):
            self._buffers = Buffers(graphs, self.potential.cutoffs, capacity_for(size))
            self._replay, self._waited = None, 0
        self._waited += 1
        return self._waited > _AFTER

    def _evaluate(self) -> Energies:
        """What is recorded, from the structure in the buffers.

        Edges are new tensors: what an operator keeps for older ones would not be valid in every replay.
        """
        graphs, vectors = self._buffers.padded()
        found = derivatives(self.potential, graphs, self._buffers.positions, vectors=vectors)
        return Energies(found.node_energy, found.forces, found.node_virial)

    def _record(self) -> Callable[[], Energies]:
        with torch.cuda.device(self.potential.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and libraries set up before the recording
                for _ in range(2):
                    self._evaluate()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = self._evaluate()

        def replay() -> Energies:
            graph.replay()
            return results

        return replay

    def _checked_against(self, expected: Energies, found: Energies) -> Energies:
        for name, ours, right in zip(Energies._fields, found, expected):
            error, scale = (ours - right).abs().max().item(), right.abs().max().item()
            if not error <= _TOLERANCE[self.potential.dtype] * scale + 1e-30:
                self._give_up(f"{name} differs by {error:.3g} at a size of {scale:.3g}")
                break
        return expected

    def _give_up(self, problem: str) -> None:
        self.problem, self._buffers, self._replay = problem, None, None
        _log.warning("evaluations are not replayed as CUDA graphs: %s", problem)
