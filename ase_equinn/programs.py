"""A potential's models as native programs: what the calculator evaluates on the CPU."""

from __future__ import annotations

import logging
from typing import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .evaluator import Energies, InTorch
from .graph import Graph
from .nn import SpeciesIndex
from .ops.plan import make_plan
from .ops.program import Program
from .ops.symbols import Symbol, Trace, Untraceable, Value, View
from .ops.twin import twins
from .potential import Potential

_log = logging.getLogger(__name__)


class Programs:
    """An `Evaluator` on the CPU: native where a model allows it.

    A program is made for every model and set of elements when they first occur; it holds the weights as they are then.
    A model that does something for which there is no kernel runs in torch, and the reason is logged.

    Args:
        potential: frozen, on the CPU.
        descriptors: whether programs shall keep the descriptors for `last_descriptors`.

    Attributes:
        in_torch: for every model without a program its name and the reason.
    """

    def __init__(self, potential: Potential, descriptors: bool = False):
        self.potential, self.in_torch = potential, {}
        self._described = potential.describing() if descriptors else None
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
        # numpy: for so little several times faster than torch
        energy, forces, virial = offset[:n_counted].numpy(), 0.0, 0.0
        for k, index, program in zip(self._native, indices, programs):
            graph, scale = graphs[potential.graph_of[k]], potential.scale[k]
            edges = graph.row_ptr, graph.edge_index[1], vectors[potential.graph_of[k]]
            found = program(index, *edges, gradient, n_counted)
            energy = energy + scale * found.node_energy.numpy().astype(np.float64)
            if gradient:
                forces = forces + scale * found.forces.numpy()
                virial = virial + scale * found.node_virial.numpy()
        if self._rest is not None:
            seen = [potential.cutoffs.index(cutoff) for cutoff in self._rest.potential.cutoffs]
            known, exact = tuple(graphs[k] for k in seen), tuple(vectors[k] for k in seen)
            found = self._rest(known, positions, exact, gradient, n_counted)
            energy = energy + found.node_energy.numpy()
            if gradient:
                forces, virial = forces + found.forces.numpy(), virial + found.node_virial.numpy()
        results = (energy, forces, virial) if gradient else (energy,)
        return Energies(*map(torch.from_numpy, results), *[None] * (3 - len(results)))

    def last_descriptors(self, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]) -> Tensor:
        """`potential.descriptors` of the structure that was evaluated last, in its dtype.

        A model whose program does not keep them is run in torch. The next evaluation may change them.

        Args:
            graphs, vectors: of that structure, all of whose atoms counted.
        """
        potential, numbers, k = self.potential, graphs[0].numbers, self.potential.describing()
        if len(numbers) and k in self._native:
            program = self._of_atoms(numbers)[2][self._native.index(k)]
            if program.plan.descriptors:
                return program.descriptors(len(numbers))
        own = potential.graph_of[k]
        with torch.no_grad():
            return potential.models[k].descriptors(graphs[own], vectors[own].to(potential.dtype))

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
                    model = self.potential.models[k]
                    made.append(make_program(model, numbers, self.potential.dtype, k == self._described))
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


def make_program(
    model: nn.Module, numbers: tuple[int, ...], dtype: torch.dtype, descriptors: bool = False
) -> tuple[Program, SpeciesIndex]:
    """A model's program for atoms of these elements, with its weights as they are, and how it numbers the elements.

    Args:
        descriptors: keep them, if the model computes them on the way to the energy.

    Raises:
        Untraceable: the model does something that has no native form; the message says what.
    """
    trace, energy = _traced(model, numbers)
    if not isinstance(energy, Value):
        raise Untraceable("the energy does not come from the operators")
    index = SpeciesIndex(trace.species or numbers)
    if descriptors and hasattr(model, "descriptors"):
        try:
            return Program(make_plan(trace, energy, _descriptors(trace, model, numbers)), dtype), index
        except Untraceable as reason:
            _log.info("descriptors of %s are computed in torch: %s", type(model).__name__, reason)
    return Program(make_plan(trace, energy), dtype), index


def _traced(function: Callable, numbers: tuple[int, ...]) -> tuple[Trace, Symbol]:
    """The operators of model.forward or model.descriptors, and its result."""
    trace = Trace(numbers)
    try:
        with torch.no_grad():
            return trace, function(*trace.inputs())
    except Untraceable:
        raise
    except Exception as error:  # whatever code of one's own may say to symbols
        raise Untraceable(f"{type(error).__name__}: {error}") from error


def _descriptors(trace: Trace, model: nn.Module, numbers: tuple[int, ...]) -> tuple[View, ...]:
    """Where the trace of the energy has the model's descriptors."""
    other, found = _traced(model.descriptors, numbers)
    values = found.fixed if isinstance(found, Symbol) and found.kind == "joined" else (found,)
    if not all(isinstance(value, Value) and value.view.dim == 1 for value in values):
        raise Untraceable("descriptors that are not scalar features")
    return twins(trace, other, [value.view for value in values])
