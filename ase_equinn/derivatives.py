"""Forces, stress, virials and the Hessian of a Potential: the only gradients that the package takes.

All are taken with respect to the edge vectors r_ij = r_j - r_i + S @ cell. With g_ij = dE/dr_ij

    F_i    = sum_j g_ij - sum_k g_ki
    W      = dE/dstrain = sum_ij r_ij (x) g_ij      stress = W / |det cell|
    W_i    = sum_j r_ij (x) g_ij                    the virial of an edge goes to its centre

The network may run in float32: vectors, sums and results are float64. The sums run in a fixed order, so the same input
gives the same bits, on CUDA too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .derivatives_training import taped
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
    potential: Potential,
    graphs: tuple[Graph, ...],
    positions: Tensor,
    *,
    training: bool = False,
    vectors: tuple[Tensor, ...] | None = None,
    n_counted: int | None = None,
) -> Derivatives:
    """Energy, forces, stress and virials of every structure in a batch.

    Args:
        potential: evaluated in its own dtype and on its own device.
        graphs: one graph for each of `potential.cutoffs`.
        positions: (n, 3), A, float64.
        training: keep the autograd graph, so that a loss of the results can be differentiated by the weights. Otherwise
            the results are detached.
        vectors: the graphs' edge vectors, (E, 3) float64, where they are known already; None: from the positions.
        n_counted: the energies of the first n_counted atoms are what is summed, returned and differentiated; the others
            are there to be seen by them. For one structure; None: all atoms count.

    Returns:
        Derivatives; see the fields. No atoms, no edges and an energy that ignores the positions are ordinary input.
    """
    with torch.inference_mode(False), torch.enable_grad():
        graphs, positions = _ordinary(graphs, positions)
        exact, leaves = _vectors(potential, graphs, positions, vectors)
        found = taped(potential, graphs, leaves) if training and n_counted is None else None
        if found is None:
            node_energy = potential.node_energy(graphs, leaves)[:n_counted]
            found = node_energy, _gradients(node_energy, leaves, training)
        node_energy, gradients = found
        with torch.set_grad_enabled(training):
            return _collect(graphs, exact, node_energy if training else node_energy.detach(), gradients)


def energy_only(
    potential: Potential, graphs: tuple[Graph, ...], positions: Tensor, *, vectors: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Energy of each atom, (n,) eV float64, without any gradient; arguments as in `derivatives`."""
    with torch.no_grad():
        if vectors is None:
            vectors = tuple(edge_vectors(graph, positions) for graph in graphs)
        return potential.node_energy(graphs, tuple(v.to(potential.dtype) for v in vectors))


def hessian(
    potential: Potential, graphs: tuple[Graph, ...], positions: Tensor, *, indices: Sequence[int] | None = None
) -> Tensor:
    """Second derivatives of the energy: row 3a+c holds -dF_ac/dr for the a-th atom of `indices`.

    One row at a time, by a second backward pass through the one graph of the gradient: beyond the result, memory does
    not grow with the rows.

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
    with torch.inference_mode(False), torch.enable_grad():
        graphs, positions = _ordinary(graphs, positions)
        rows = torch.zeros(3 * len(atoms), 3 * n, dtype=torch.float64, device=positions.device)
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
                rows[3 * a + c] = -_forces(graphs, [_columns(s) for s in second]).reshape(-1)
    return rows


def _ordinary(graphs: tuple[Graph, ...], positions: Tensor):
    """Copies of tensors that were made in inference mode, which no gradient may pass; all others as they are."""
    if positions.is_inference() or any(graph.edge_index.is_inference() for graph in graphs):
        graphs = tuple(Graph(*(x.clone() for x in graph[:-1]), graph.n_graphs) for graph in graphs)
        positions = positions.clone()
    return graphs, positions


def _vectors(potential: Potential, graphs: tuple[Graph, ...], positions: Tensor, exact=None):
    """Edge vectors of each graph in float64, and the leaves that the energy is differentiated by."""
    if exact is None or any(vectors.is_inference() for vectors in exact):
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
    forces, node_virial = _Sums.apply(graphs, [_columns(vectors) for vectors in exact], *gradients)
    virial = structure_sum(node_virial, graph)
    a, b, c = graph.cell.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1).abs()
    density = torch.where(graph.pbc.all(1) & (volume > 0), 1 / volume, 0.0)
    return Derivatives(
        energy=structure_sum(node_energy, graph),
        node_energy=node_energy,
        forces=forces,
        stress=virial * density[:, None, None],
        virial=virial,
        node_virial=node_virial,
    )


class _Sums(torch.autograd.Function):
    """g_ij of each graph -> (F_i, W_i); v_ij = dL/dg_ij = dL/dF_i - dL/dF_j + sym(dL/dW_i) r_ij."""

    @staticmethod
    def forward(ctx, graphs: tuple[Graph, ...], vectors: list[Tensor], *gradients: Tensor):
        ctx.graphs, ctx.vectors, ctx.dtypes = graphs, vectors, [gradient.dtype for gradient in gradients]
        ctx.set_materialize_grads(False)
        gradients = [_columns(gradient) for gradient in gradients]
        virial = 0.0
        for graph, r, gradient in zip(graphs, vectors, gradients, strict=True):
            virial = virial + _segment_sum((r[:, None] * gradient[None]).reshape(9, -1), graph.row_ptr)
        virial = virial.view(3, 3, -1)
        virial = (0.5 * (virial + virial.transpose(0, 1))).permute(2, 0, 1).contiguous()
        return _forces(graphs, gradients), virial

    @staticmethod
    def backward(ctx, forces: Tensor | None, virial: Tensor | None):
        out = []
        for graph, r, dtype in zip(ctx.graphs, ctx.vectors, ctx.dtypes, strict=True):
            centre, neighbour = graph.edge_index
            v = torch.zeros_like(r)
            if forces is not None:
                columns = forces.T.contiguous()
                v = columns.index_select(1, centre) - columns.index_select(1, neighbour)
            if virial is not None:
                symmetric = (0.5 * (virial + virial.transpose(1, 2))).reshape(-1, 9).T.contiguous()
                v = v + (symmetric.index_select(1, centre).view(3, 3, -1) * r).sum(1)
            out.append(v.T.to(dtype))
        return None, None, *out


def _columns(vectors: Tensor) -> Tensor:
    """(E, 3) of any dtype as a contiguous (3, E) of float64: sums over edges are several times faster this way."""
    return vectors.T.double().contiguous()


def _forces(graphs, gradients: list[Tensor]) -> Tensor:
    """F_i = sum_j g_ij - sum_k g_ki, (n, 3), from the columns (3, E) of each graph's gradient."""
    forces = 0.0
    for graph, gradient in zip(graphs, gradients, strict=True):
        received = _neighbor_sum(gradient, graph.edge_index[1], len(graph.numbers))
        forces = forces + _segment_sum(gradient, graph.row_ptr) - received
    return forces.T.contiguous()


def structure_sum(values: Tensor, graph: Graph) -> Tensor:
    """Sum over the atoms of each structure, (g, ...)."""
    if graph.n_graphs == 1:
        return values.sum(0, keepdim=True)
    columns = values.reshape(len(values), -1).T.contiguous()
    return _segment_sum(columns, _row_ptr(graph.batch, graph.n_graphs)).T.reshape(-1, *values.shape[1:])


def _neighbor_sum(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Sum of the columns (k, E) of `values` with the same index, (k, n), in the order of the columns."""
    if values.device.type == "cpu":
        return values.new_zeros(len(values), n).index_add_(1, index, values)
    return _sorted_sum(values, index, n)


def _sorted_sum(values: Tensor, index: Tensor, n: int) -> Tensor:
    """`_neighbor_sum` where index_add_ adds in the order in which threads arrive."""
    index, order = torch.sort(index, stable=True)
    return _segment_sum(values[:, order], _row_ptr(index, n))


def _segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum of the columns row_ptr[i]:row_ptr[i+1] of `values`, (k, n), one after the other."""
    if values.shape[1] == 1:  # then any stride passes for contiguous, and segment_reduce follows it out of the tensor
        values = values.clone(memory_format=torch.contiguous_format)
    offsets = row_ptr.expand(len(values), -1).contiguous()
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=1, unsafe=True)


def _row_ptr(index: Tensor, n: int) -> Tensor:
    """Where each value of an ascending index begins, (n + 1,)."""
    return torch.searchsorted(index, torch.arange(n + 1, device=index.device))
