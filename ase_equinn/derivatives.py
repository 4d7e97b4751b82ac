"""Forces, stress, virials and the Hessian of a Potential: the only gradients that the package takes.

All are taken with respect to the edge vectors r_ij = r_j - r_i + S @ cell. With g_ij = dE/dr_ij

    F_i    = sum_j g_ij - sum_k g_ki
    W      = dE/dstrain = sum_ij r_ij (x) g_ij      stress = W / |det cell|
    W_i    = sum_j r_ij (x) g_ij                    the virial of an edge goes to its centre

The network may run in float32: vectors, sums and results are float64. The sums run over sorted edges in a fixed order, so
the same input gives the same bits, on CUDA too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import Graph, edge_vectors
from .potential import Potential


class Derivatives(NamedTuple):
    """Energies and their derivatives, all float64, for n atoms in g structures."""

    energy: Tensor  # (g,) eV
    node_energy: Tensor  # (n,) eV
    forces: Tensor  # (n, 3) eV/A
    stress: Tensor  # (g, 3, 3) eV/A^3, ASE's sign; zero unless the structure is periodic in all three directions
    virial: Tensor  # (g, 3, 3) eV, dE/dstrain, symmetric
    node_virial: Tensor  # (n, 3, 3) eV, symmetric, sums to virial


def derivatives(
    potential: Potential, graphs: tuple[Graph, ...], positions: Tensor, *, training: bool = False
) -> Derivatives:
    """Energy, forces, stress and virials of every structure in a batch.

    Args:
        potential: evaluated in its own dtype and on its own device.
        graphs: one graph for each of `potential.cutoffs`.
        positions: (n, 3), A, float64.
        training: keep the autograd graph, so that a loss of the results can be differentiated with respect to the weights.
            Otherwise the results are detached.

    Returns:
        Derivatives; see the fields. No atoms, no edges and an energy that ignores the positions are ordinary input.
    """
    with torch.inference_mode(False), torch.enable_grad():
        exact, leaves = _vectors(potential, graphs, positions)
        node_energy = potential.node_energy(graphs, leaves)
        gradients = _gradients(node_energy, leaves, training)
    with torch.set_grad_enabled(training):
        return _collect(graphs, exact, node_energy if training else node_energy.detach(), gradients)


def energy_only(potential: Potential, graphs: tuple[Graph, ...], positions: Tensor) -> Tensor:
    """Energy of each atom, (n,) eV float64, without any gradient; arguments as in `derivatives`."""
    with torch.no_grad():
        vectors = tuple(edge_vectors(graph, positions).to(potential.dtype) for graph in graphs)
        return potential.node_energy(graphs, vectors)


def hessian(
    potential: Potential, graphs: tuple[Graph, ...], positions: Tensor, *, indices: Sequence[int] | None = None
) -> Tensor:
    """Second derivatives of the energy: row 3a+c holds -dF_ac/dr for the a-th atom of `indices`.

    One row at a time, by a second backward pass through the one graph of the gradient: memory does not grow with the rows.

    Args:
        indices: the atoms whose rows are wanted, k of them; None means all n.

    Returns:
        (3k, 3n) eV/A^2, float64, on the potential's device.

    Raises:
        ValueError: an index that is not an atom.
    """
    n = len(positions)
    atoms = list(range(n)) if indices is None else [int(a) for a in indices]
    for atom in atoms:
        if not 0 <= atom < n:
            raise ValueError(f"index {atom} is not an atom: there are {n}")
    rows = torch.zeros(3 * len(atoms), 3 * n, dtype=torch.float64, device=positions.device)
    with torch.inference_mode(False), torch.enable_grad():
        _, leaves = _vectors(potential, graphs, positions)
        gradients = _gradients(potential.node_energy(graphs, leaves), leaves, True)
        live = [k for k, gradient in enumerate(gradients) if gradient.requires_grad]
        outputs = [gradients[k] for k in live]
        for a, atom in enumerate(atoms if live else ()):
            # dr_e/dr_atom: +1 where the atom is the neighbour, -1 where it is the centre
            ends = [(graphs[k].edge_index == atom).to(potential.dtype) for k in live]
            for c in range(3):
                seeds = [torch.zeros_like(output) for output in outputs]
                for seed, (centre, neighbor) in zip(seeds, ends, strict=True):
                    seed[:, c] = neighbor - centre
                second = torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, materialize_grads=True)
                rows[3 * a + c] = -_forces(graphs, [s.double() for s in second]).reshape(-1)
    return rows


def _vectors(potential: Potential, graphs: tuple[Graph, ...], positions: Tensor):
    """Edge vectors of each graph in float64, and the leaves that the energy is differentiated by."""
    exact = tuple(edge_vectors(graph, positions.detach()) for graph in graphs)
    return exact, tuple(vectors.detach().to(potential.dtype, copy=True).requires_grad_() for vectors in exact)


def _gradients(node_energy: Tensor, leaves: tuple[Tensor, ...], create_graph: bool) -> list[Tensor]:
    """dE/dr_ij of each graph in the network's dtype; zero where the energy does not depend on it."""
    if not node_energy.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    seed = torch.ones_like(node_energy)
    found = torch.autograd.grad(node_energy, leaves, seed, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves, strict=True)]


def _collect(graphs, exact, node_energy: Tensor, gradients: list[Tensor]) -> Derivatives:
    graph = graphs[0]
    gradients = [gradient.double() for gradient in gradients]
    forces = _forces(graphs, gradients)
    node_virial = sum(
        _row_sum((vectors[:, :, None] * gradient[:, None, :]).reshape(-1, 9), g.row_ptr)
        for g, vectors, gradient in zip(graphs, exact, gradients, strict=True)
    ).reshape(-1, 3, 3)
    node_virial = 0.5 * (node_virial + node_virial.transpose(1, 2))
    energy = _structure_sum(node_energy, graph)
    virial = _structure_sum(node_virial, graph)
    a, b, c = graph.cell.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1).abs()
    bulk = graph.pbc.all(1) & (volume > 0)
    stress = torch.where(bulk[:, None, None], virial / torch.where(bulk, volume, 1.0)[:, None, None], 0.0)
    return Derivatives(energy, node_energy, forces, stress, virial, node_virial)


def _forces(graphs, gradients: list[Tensor]) -> Tensor:
    """F_i = sum_j g_ij - sum_k g_ki, (n, 3) float64."""
    forces = 0.0
    for graph, gradient in zip(graphs, gradients, strict=True):
        forces = forces + _row_sum(gradient, graph.row_ptr) - _neighbor_sum(gradient, graph)
    return forces


def _row_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum of the edges of each centre, (n, k)."""
    return torch.segment_reduce(values, "sum", offsets=row_ptr, unsafe=True)


def _neighbor_sum(values: Tensor, graph: Graph) -> Tensor:
    """Sum over the edges that end at each atom, (n, 3), in a fixed order."""
    n, neighbors = len(graph.numbers), graph.edge_index[1]
    if values.device.type == "cpu":
        return values.new_zeros(n, values.shape[1]).index_add_(0, neighbors, values)
    # index_add_ on CUDA adds in an order that changes from run to run
    ordered, order = torch.sort(neighbors, stable=True)
    ends = torch.searchsorted(ordered, torch.arange(n + 1, device=values.device))
    return _row_sum(values[order], ends)


def _structure_sum(values: Tensor, graph: Graph) -> Tensor:
    """Sum of the atoms of each structure, (g, ...)."""
    if graph.n_graphs == 1:
        return values.sum(0, keepdim=True)
    ends = torch.searchsorted(graph.batch, torch.arange(graph.n_graphs + 1, device=values.device))
    return torch.segment_reduce(values.reshape(len(values), -1), "sum", offsets=ends, unsafe=True).reshape(
        graph.n_graphs, *values.shape[1:]
    )
