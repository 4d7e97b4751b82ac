"""Energies of some atoms of a large structure, exact, from the atoms that they depend on: n_layers * cutoff far.

A network of L layers lets an atom see its neighbours, their neighbours, ..., L steps away. So the energies of a core
and their derivatives are exact if all atoms up to L steps away are there, and layer t is needed only for atoms up to
L - t steps away. A piece of the structure is such a core with its halo, in the order of these steps; cores of many pieces
share no atom, so memory is bounded by the size of a piece, not of the structure.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from ..evaluator import Evaluator
from ..graph import COINCIDENT, Graph
from ..neighbors import NeighborList
from ..neighbors_search import vesin_pairs
from ..potential import Potential


class Range(NamedTuple):
    """How far the models with this cutoff (A) see: `n_layers` steps."""

    cutoff: float
    n_layers: int


class Sums(NamedTuple):
    """What the energies of the core, and their derivatives, add up to; float64, on the CPU."""

    node_energy: Tensor  # (n_core,) eV
    forces: Tensor  # (n, 3) eV/A: minus the derivative of the core's energy by the position of any atom
    node_virial: Tensor  # (n, 3, 3) eV, dE/dstrain, symmetric; that of an edge is its centre's


def ranges(potential: Potential) -> tuple[Range, ...]:
    """One Range for each of `potential.cutoffs`.

    Raises:
        ValueError: a model that does not say how many layers it has.
    """
    layers = dict.fromkeys(potential.cutoffs, 1)
    for model in potential.models:
        if not isinstance(getattr(model, "n_layers", None), int):
            raise ValueError(f"{type(model).__name__} has no attribute n_layers: how far its atoms see is not known")
        layers[float(model.cutoff)] = max(layers[float(model.cutoff)], model.n_layers)
    return tuple(Range(cutoff, n_layers) for cutoff, n_layers in layers.items())


def reach(potential: Potential) -> float:
    """How far the energy of an atom depends on other atoms, A: the largest n_layers * cutoff of the models."""
    return max(seen.cutoff * seen.n_layers for seen in ranges(potential))


class Pieces:
    """Evaluates the first atoms of a structure without periodicity, whose images are atoms of their own, in pieces.

    Args:
        evaluator: see evaluator.Evaluator; it says on which device things are computed.
        skin: A; pieces and neighbour lists are kept until an atom has moved by half of it.
        size: atoms in the core of a piece, at most; the results do not depend on it, memory does.

    Attributes:
        n_chosen: how often the pieces were chosen anew.
    """

    def __init__(self, evaluator: Evaluator, skin: float = 0.5, size: int = 50_000):
        if size < 1:
            raise ValueError(f"a piece needs at least one atom, got size = {size}")
        self.evaluator, self.skin, self.size = evaluator, float(skin), size
        self.ranges, self.n_chosen = ranges(evaluator.potential), 0
        self._pieces: list[_Piece] = []
        self._reference: Tensor | None = None

    def evaluate(self, positions: Tensor, numbers: Tensor, n_core: int, names: Tensor, fresh: bool = False) -> Sums:
        """The energies of the first `n_core` atoms and their derivatives by all positions.

        Args:
            positions: (n, 3) A, float64; all atoms and images within `reach` of the core.
            numbers: (n,) int64, atomic numbers that the potential knows.
            names: (n,) int64, what error messages call the atoms.
            fresh: the atoms are others than in the last call, or in another order.
        Raises:
            ValueError: a position that is not finite, or two atoms at the same place, by name.
        """
        bad = (~torch.isfinite(positions).all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"the position of atom {int(names[bad[0]])} is not finite: {positions[bad[0]].tolist()}")
        if fresh or self._moved(positions):
            cores = _blocks(positions[:n_core], self.size) if n_core else []
            self._pieces = [_Piece(positions, core, self.ranges, self.skin) for core in cores]
            self._reference, self.n_chosen = positions.clone(), self.n_chosen + 1
        n = len(positions)
        energy, forces, virial = (torch.zeros(shape, dtype=torch.float64) for shape in ((n_core,), (n, 3), (n, 3, 3)))
        for piece in self._pieces:
            atoms, device = piece.atoms, self.evaluator.potential.device
            places = positions[atoms].to(device)
            graphs, vectors = piece.graphs(places, numbers[atoms].to(device))
            for graph, edges in zip(graphs, vectors, strict=True):
                _check_apart(graph, edges, names[atoms])
            found = self.evaluator(graphs, places, vectors, n_counted=piece.n_core)
            energy[atoms[: piece.n_core]] = found.node_energy.cpu()
            forces.index_add_(0, atoms, found.forces.cpu())
            virial.index_add_(0, atoms, found.node_virial.cpu())
        return Sums(energy, forces, virial)

    def _moved(self, positions: Tensor) -> bool:
        """Whether the pieces may lack an atom by now."""
        if self._reference is None or len(self._reference) != len(positions):
            return True
        return (
            bool(len(positions)) and (positions - self._reference).square().sum(1).max().item() > (self.skin / 2) ** 2
        )


class _Piece:
    """A core with its halo: `atoms`, the core's first, then all others by the step in which they are met."""

    def __init__(self, positions: Tensor, core: Tensor, seen: Sequence[Range], skin: float):
        margin = max(r.n_layers * (r.cutoff + skin) for r in seen)
        low, high = positions[core].amin(0) - margin, positions[core].amax(0) + margin
        inside = ((positions >= low) & (positions <= high)).all(1)
        inside[core] = False
        candidates = torch.cat([core, inside.nonzero()[:, 0]])
        self.n_core = len(core)
        met, edges_until = _steps(positions[candidates], self.n_core, seen, skin)
        order = torch.argsort(met, stable=True)[: int((met < _NEVER).sum())]
        self.atoms = candidates[order]
        self._n_centres = [int((met <= step).sum()) for step in edges_until]
        self._lists = [NeighborList(r.cutoff, skin=skin) for r in seen]

    def graphs(self, positions: Tensor, numbers: Tensor) -> tuple[tuple[Graph, ...], tuple[Tensor, ...]]:
        """One graph per range with the edges that the core depends on, and their vectors."""
        free, pbc = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
        graphs, vectors = [], []
        for pairs, n_centres in zip((kept.update(positions, free, False) for kept in self._lists), self._n_centres):
            n = int(pairs.row_ptr[n_centres])
            rows, batch = pairs.row_ptr.clamp(max=n), torch.zeros_like(numbers)
            atoms = numbers, free[None].to(numbers.device), pbc.to(numbers.device)
            graphs.append(Graph(*atoms, pairs.edge_index[:, :n].contiguous(), pairs.shift[:n], rows, batch, 1))
            vectors.append(pairs.vectors[:n])
        return tuple(graphs), tuple(vectors)


_NEVER = 1_000_000


def _steps(positions: Tensor, n_core: int, seen: Sequence[Range], skin: float) -> tuple[Tensor, list[int]]:
    """In which step each atom is met, 0 for the core; and per range the step up to which atoms need their edges.

    Steps of all ranges are counted together, by the distance that they reach. Pairs within cutoff + skin are followed:
    all that can come closer than the cutoff before an atom has moved by skin / 2.
    """
    met = torch.full((len(positions),), _NEVER)
    met[:n_core] = 0
    events = sorted((k * r.cutoff, which, k) for which, r in enumerate(seen) for k in range(1, r.n_layers + 1))
    step_of = {(which, k): step for step, (_, which, k) in enumerate(events, 1)}
    for which, r in enumerate(seen):
        i, j = vesin_pairs(positions, np.eye(3), np.zeros(3, dtype=bool), r.cutoff + skin)[0]  # in any order
        reached = torch.arange(len(positions)) < n_core
        for k in range(1, r.n_layers + 1):
            reached[j[reached[i]]] = True
            met = torch.where(reached, met.clamp(max=step_of[which, k]), met)
    return met, [step_of.get((which, r.n_layers - 1), 0) for which, r in enumerate(seen)]


def _blocks(positions: Tensor, size: int) -> list[Tensor]:
    """The atoms in compact groups of at most `size`, halved along the longest side until they fit."""
    waiting, found = [torch.arange(len(positions))], []
    while waiting:
        atoms = waiting.pop()
        if len(atoms) <= size:
            found.append(atoms)
            continue
        places = positions[atoms]
        axis = int((places.amax(0) - places.amin(0)).argmax())
        order = torch.argsort(places[:, axis], stable=True)
        waiting += [atoms[order[: len(order) // 2]].sort().values, atoms[order[len(order) // 2 :]].sort().values]
    return found


def _check_apart(graph: Graph, vectors: Tensor, names: Tensor) -> None:
    """See graph.check_coincident; the atoms have names here."""
    if not len(vectors):
        return
    square, edge = vectors.square().sum(1).min(0)
    if square.item() < COINCIDENT**2:
        i, j = (int(names[atom]) for atom in graph.edge_index[:, edge].cpu())
        raise ValueError(f"atoms {i} and {j} are {square.sqrt().item():.3g} A apart, less than {COINCIDENT:g} A")
