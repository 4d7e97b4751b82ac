"""Energies and edge gradients that a loss can be differentiated through: passes of `ops.tape` instead of autograd."""

from __future__ import annotations

import logging
import weakref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .graph import Graph
from .nn import SpeciesIndex
from .ops.symbols import Trace, Untraceable, Value
from .ops.tape import Edges, Tape
from .potential import Potential

_log = logging.getLogger(__name__)
_in_torch: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that were found to be untraceable


def taped(
    potential: Potential, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor]] | None:
    """(energy of each atom (n,) eV float64, dE/dr_ij of each graph in the network's dtype).

    Once differentiable in the weights. None where it takes autograd: on other devices than the CPU, without edges, for
    a model with an operator that no tape knows.
    """
    if (
        potential.device.type != "cpu"
        or not all(len(v) for v in vectors)
        or any(m in _in_torch for m in potential.models)
    ):
        return None
    energy = potential.node_offset(graphs[0].numbers)
    gradients: list[Tensor | None] = [None] * len(graphs)
    for model, k, scale in zip(potential.models, potential.graph_of, potential.scale, strict=True):
        try:
            tape = _tape(model, graphs[k], vectors[k])
        except Untraceable as reason:
            _log.info("%s is trained by autograd: %s", type(model).__name__, reason)
            _in_torch.add(model)
            return None
        found, gradient = _Evaluation.apply(tape, *tape.weights)
        energy = torch.add(energy, found, alpha=scale)
        gradient = gradient * scale
        gradients[k] = gradient if gradients[k] is None else gradients[k] + gradient
    return energy, gradients


def _tape(model: nn.Module, graph: Graph, vectors: Tensor) -> Tape:
    columns = vectors.detach().T.contiguous()
    shortest = float(columns.square().sum(0).min().sqrt())
    trace = Trace(torch.unique(graph.numbers).tolist(), shortest)
    try:
        energy = model(*trace.inputs())
    except Untraceable:
        raise
    except Exception as error:  # whatever code of one's own may say to symbols
        raise Untraceable(f"{type(error).__name__}: {error}") from error
    if not isinstance(energy, Value):
        raise Untraceable("the energy does not come from the operators")
    index = SpeciesIndex(trace.species or trace.present)
    tape = Tape(trace, energy, Edges(graph, index(graph.numbers), list(columns)))
    trace.ops.clear()  # they refer to the trace, and to the graphs of this step's tables: as in Operator, no cycle
    return tape


class _Evaluation(torch.autograd.Function):
    """Weights -> (E_i, dE/dr)"""

    @staticmethod
    def forward(ctx, tape: Tape, *weights: Tensor):
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return tape.first()

    @staticmethod
    @once_differentiable
    def backward(ctx, c: Tensor | None, v: Tensor | None):
        return None, *ctx.tape.second(c, v)
