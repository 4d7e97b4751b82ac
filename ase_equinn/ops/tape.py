"""The operators of a traced model, run in four passes: what training on energies and forces takes.

With E = sum_i E_i, weights W and edge vectors r, a loss of the energies E_i and the edge gradients g = dE/dr has

    c_i = dL/dE_i,   v = dL/dg:      dL/dW = d/dW ( sum_i c_i E_i + E' ),    E' = dE/dr v.

`values` finds E_i and `gradient` dE/dx of every value x down to g. Then `tangents` finds x' = dx/dr v of every value,
and `learn` the gradient of S = sum c_i E_i + E' with respect to values and weights. That with respect to x' is dE/dx,
which is known: so the last pass only carries dS/dx, the derivative of dE/dx along v plus what comes from the c_i. In
each operator (tape_operators, tape_kernels) the four passes are the four methods of these names.

Source: B. A. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 147 (1994).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..graph import Graph
from .plan import alive, merged
from .symbols import Trace, Untraceable, Value, View
from .tape_kernels import KERNELS
from .tape_operators import OPERATORS


_KINDS = OPERATORS | KERNELS


class Columns:
    """Numbers per atom by buffer: (n_atoms, dim, n) tensors, parts of them by view."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}
        self._own: set[int] = set()  # tensors that nobody else holds

    def __contains__(self, view: View) -> bool:
        return view.buffer in self._of

    def get(self, view: View) -> Tensor | None:
        """The numbers of a view; None where nothing was ever put."""
        tensor = self._of.get(view.buffer)
        whole = tensor is None or view.n == tensor.shape[2]
        return tensor if whole else tensor[:, :, view.offset : view.offset + view.n]

    def put(self, view: View, tensor: Tensor) -> None:
        self._of[view.buffer] = tensor

    def add(self, view: View, tensor: Tensor, n: int) -> None:
        """Adds to what is there; n: of the whole buffer, per atom."""
        before = self._of.get(view.buffer)
        if view.size == n:
            self._of[view.buffer] = tensor if before is None else before + tensor
            self._own -= {view.buffer} if before is None else set()
            return
        if before is None:
            before = tensor.new_zeros(len(tensor), 1, n)
        elif view.buffer not in self._own:
            before = before.clone()
        before[:, :, view.offset : view.offset + view.n] += tensor
        self._of[view.buffer] = before
        self._own.add(view.buffer)


class Edges(NamedTuple):
    """What the operators know about the atoms and edges of a batch."""

    graph: Graph
    species: Tensor  # (n,) indices
    columns: list[Tensor]  # the edge vectors' components, (E,) each


class Groups:
    """Atoms sorted by species."""

    def __init__(self, species: Tensor):
        self._order = torch.argsort(species, stable=True)
        self._place = torch.argsort(self._order)
        self._counts = torch.bincount(species).tolist()

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """(species, its rows of x) for those that occur."""
        parts = x.index_select(0, self._order).split(self._counts)
        return [(s, part) for s, part in enumerate(parts) if len(part)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The rows of all species in the order of the atoms."""
        return torch.cat(parts).index_select(0, self._place)


class Tape:
    """One evaluation of one model.

    Args:
        trace, energy: of the model, with weights that may require gradients.
        edges: what to evaluate it for.

    Attributes:
        weights: the distinct tensors that require a gradient, in the order of their first use.

    Raises:
        Untraceable: an operator that has no passes.
    """

    def __init__(self, trace: Trace, energy: Value, edges: Edges):
        self.edges, self.energy, self.rows = edges, energy.view, trace.rows
        self.n_atoms, self._groups = len(edges.species), None
        self.value, self.slope, self.rate, self.rise = Columns(), Columns(), Columns(), Columns()
        self.moves: set[int] = set()  # buffers that depend on the vectors
        self.learns: set[int] = set()  # and on weights that require a gradient
        self.learned: dict[int, Tensor] = {}
        self.operators, known = [], {}
        for op in merged(alive(trace.ops, energy.view), set()):
            if op.kind not in _KINDS:
                raise Untraceable(f"training of the operator {op.kind}")
            operator = _KINDS[op.kind](self, op)
            self.operators.append(operator)
            own = [weight for weight in operator.weights if weight.requires_grad]
            known |= {id(weight): weight for weight in own}
            read, written = ([view.buffer for view in views] for views in (op.inputs, op.outputs))
            if op.kind == "conv" or not self.moves.isdisjoint(read):
                self.moves.update(written)
            if own or not self.learns.isdisjoint(read):
                self.learns.update(written)
        self.weights = list(known.values())

    def first(self) -> tuple[Tensor, Tensor]:
        """(E_i (n,), dE/dr (E, 3))"""
        for operator in self.operators:
            operator.values()
        energy = self.value.get(self.energy)
        self.edge_slope = [torch.zeros_like(column) for column in self.edges.columns]
        self.slope.put(self.energy, torch.ones_like(energy))
        for operator in reversed(self.operators):
            if operator.moving:
                operator.gradient()
        return energy.flatten(), torch.stack(self.edge_slope, dim=1)

    def second(self, c: Tensor | None, v: Tensor | None) -> list[Tensor]:
        """dL/dW for each of `weights`, from c = dL/dE_i (n,) and v = dL/dg (E, 3); None stands for zero."""
        self.rate, self.rise, self.learned = Columns(), Columns(), {}
        self.directed = v is not None
        if v is not None:
            self.edge_rate = list(v.T.contiguous())
            for operator in self.operators:
                if operator.moving:
                    operator.tangents()
        if c is not None:
            self.rise.put(self.energy, c.reshape(-1, 1, 1))
        for operator in reversed(self.operators):
            if operator.learning:
                operator.learn()
        return [self.learned.get(id(weight)) for weight in self.weights]

    def by_species(self) -> Groups:
        """The atoms of each species, found once."""
        if self._groups is None:
            self._groups = Groups(self.edges.species)
        return self._groups

    def rows_of_pairs(self, number: Tensor) -> Tensor:
        """number[species of the centre, species of the neighbour] of every edge, (E,)."""
        if bool((number == number[0, 0]).all()):
            return number.new_full((len(self.edges.columns[0]),), int(number[0, 0]))
        centre, neighbour = (self.edges.species.index_select(0, atoms) for atoms in self.edges.graph.edge_index)
        return number.flatten().index_select(0, centre * len(number) + neighbour)

    def taught(self, weight: Tensor, gradient: Tensor) -> None:
        """Adds to a weight's gradient."""
        before = self.learned.get(id(weight))
        self.learned[id(weight)] = gradient if before is None else before + gradient
