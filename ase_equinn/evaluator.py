"""What evaluates a potential: something that is called with graphs and gives energies, forces and virials."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .derivatives import derivatives, energy_only
from .graph import Graph
from .potential import Potential


class Energies(NamedTuple):
    """node_energy (n_counted,) eV; with gradients forces (n, 3) eV/A and node_virial (n, 3, 3) eV; float64."""

    node_energy: Tensor
    forces: Tensor | None
    node_virial: Tensor | None


class Evaluator(Protocol):
    """Native programs on the CPU (`programs.Programs`), replays on CUDA (`cuda_graph.Replay`), or `InTorch`."""

    potential: Potential

    def __call__(
        self,
        graphs: tuple[Graph, ...],
        positions: Tensor,
        vectors: tuple[Tensor, ...],
        gradient: bool = True,
        n_counted: int | None = None,
    ) -> Energies:
        """Energies, and with `gradient` forces and virials.

        Args:
            graphs: one for each of the potential's cutoffs, of one structure or of several.
            positions: (n, 3) float64, A.
            vectors: the graphs' edge vectors, (E, 3) float64, A.
            n_counted: the energies of the first n_counted atoms are what is summed, returned and differentiated; the
                others are there to be seen by them. None: all atoms count.
        """


class InTorch:
    """Evaluates a potential by torch and autograd, on any device."""

    def __init__(self, potential: Potential):
        self.potential = potential

    def __call__(self, graphs, positions, vectors, gradient=True, n_counted=None) -> Energies:
        """See `Evaluator`."""
        if not gradient:
            energy = energy_only(self.potential, graphs, positions, vectors=vectors)
            return Energies(energy[:n_counted], None, None)
        found = derivatives(self.potential, graphs, positions, vectors=vectors, n_counted=n_counted)
        return Energies(found.node_energy, found.forces, found.node_virial)
