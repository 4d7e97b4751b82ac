"""A potential's models as native programs: what the calculator evaluates on the CPU."""

from __future__ import annotations

import logging
import torch
from torch import Tensor, nn

from .evaluator import Energies, InTorch
from .graph import Graph
from .nn import SpeciesIndex
from .ops.plan import make_plan
from .ops.program import Program
from .ops.symbols import Trace, Untraceable, Value
from .potential import Potential

_log = logging.getLogger(__name__)


class Programs:
    """An `Evaluator` on the CPU: native where a model allows it.

    A program is made for every model and set of elements when they first occur; it holds the weights as they are then.
    A model that does something for which there is no kernel runs in torch, and the reason is logged.

    Args:
        potential: frozen, on the CPU.

    Attributes:
        in_torch: for every model without a program its name and the reason.
    """

    def __init__(self, potential: Potential):
        self.potential, self.in_torch = potential, {}
        self._programs: dict[tuple[int, ...], list[tuple[Program, SpeciesIndex]]] = {}
        self._native = list(range(len(potential.models)))
        self._rest: InTorch | None = None
        self._kept: tuple[Tensor, tuple] | None = None

    def __call__(
        self,
        graphs: tuple[Graph, ...],
        positions: Tensor,
        vectors: tuple[Tensor, ...],
        gradient: bool = True,
        n_counted: int | None = None,
    ) -> Energies:
        """See `evaluator.Evaluator`."""
        potential, numbers = self.potential, graphs[0].numbers
        if not len(numbers):
            none = positions.new_zeros(0)
            return Energies(none, none.view(0, 3), none.view(0, 3, 3)) if gradient else Energies(none, None, None)
        offset, indices, programs = self._of_atoms(numbers)
        energy, forces, virial = offset[:n_counted], 0.0, 0.0
        for k, index, program in zip(self._native, indices, programs):
            graph, scale = graphs[potential.graph_of[k]], potential.scale[k]
            edges = graph.row_ptr, graph.edge_index[1], vectors[potential.graph_of[k]]
            found = program(index, *edges, gradient, n_counted)
            energy = torch.add(energy, found.node_energy, alpha=scale)
            if gradient:
                forces, virial = forces + scale * found.forces, virial + scale * found.node_virial
        if self._rest is not None:
            seen = [potential.cutoffs.index(cutoff) for cutoff in self._rest.potential.cutoffs]
            known, exact = tuple(graphs[k] for k in seen), tuple(vectors[k] for k in seen)
            found = self._rest(known, positions, exact, gradient, n_counted)
            energy = energy + found.node_energy
            if gradient:
                forces, virial = forces + found.forces, virial + found.node_virial
        return Energies(energy, forces, virial) if gradient else Energies(energy, None, None)

    def _of_atoms(self, numbers: Tensor) -> tuple[Tensor, list[Tensor], list[Program]]:
        """What follows from the atomic numbers, kept while they stay: offsets, rows of the species, programs."""
        if self._kept is None or not torch.equal(self._kept[0], numbers):
            made = self._of(tuple(torch.unique(numbers).tolist()))
            indices = [index(numbers) for _, index in made]
            programs = [program for program, _ in made]
            self._kept = numbers.clone(), (self.potential.node_offset(numbers), indices, programs)
        return self._kept[1]

    def _of(self, numbers: tuple[int, ...]) -> list[tuple[Program, SpeciesIndex]]:
        """The programs of the native models for these elements."""
        if numbers not in self._programs:
            made = []
            for k in list(self._native):
                try:
                    made.append(make_program(self.potential.models[k], numbers, self.potential.dtype))
                except Untraceable as reason:
                    self._leave(k, reason)
            self._programs[numbers] = made
        return self._programs[numbers]

    def _leave(self, k: int, reason: Untraceable) -> None:
        """From now on model k runs in torch."""
        potential = self.potential
        name = type(potential.models[k]).__name__
        self.in_torch[name] = str(reason)
        _log.info("%s runs in torch, not as a native program: %s", name, reason)
        self._native.remove(k)
        rest = [i for i in range(len(potential.models)) if i not in self._native]
        models, scale = [potential.models[i] for i in rest], [potential.scale[i] for i in rest]
        self._rest = InTorch(Potential(models, scale=scale))
        self._programs.clear()


def make_program(model: nn.Module, numbers: tuple[int, ...], dtype: torch.dtype) -> tuple[Program, SpeciesIndex]:
    """A model's program for atoms of these elements, with its weights as they are, and how it numbers the elements.

    Raises:
        Untraceable: the model does something that has no native form; the message says what.
    """
    trace = Trace(numbers)
    try:
        with torch.no_grad():
            energy = model(*trace.inputs())
    except Untraceable:
        raise
    except Exception as error:  # whatever code of one's own may say to symbols
        raise Untraceable(f"{type(error).__name__}: {error}") from error
    if not isinstance(energy, Value):
        raise Untraceable("the energy does not come from the operators")
    return Program(make_plan(trace, energy), dtype), SpeciesIndex(trace.species or numbers)
