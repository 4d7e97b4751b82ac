"""Edge kernels against torch: components of vectors, and forces and virials against `derivatives._collect`."""

import pytest
import torch
from ase import Atoms
from kernel_calls import LAYOUTS, call, dtype_of

from ase_equinn.derivatives import _collect
from ase_equinn.graph import edge_vectors, from_atoms
from ase_equinn.ops.edge_kernels import Collect, Split

N = 6
layouts = pytest.mark.parametrize(("bits", "lanes"), LAYOUTS)


@pytest.fixture(scope="module")
def structure():
    """Graph, vectors and random gradients of a triclinic crystal whose cell is smaller than the cutoff."""
    generator = torch.Generator().manual_seed(3)
    scaled = torch.rand(N, 3, generator=generator, dtype=torch.float64).numpy()
    atoms = Atoms("Si6", scaled_positions=scaled, cell=[[3.0, 0.1, 0.0], [0.4, 3.3, -0.2], [-0.5, 0.3, 3.6]], pbc=True)
    graph = from_atoms(atoms, 4.0)
    vectors = edge_vectors(graph, torch.from_numpy(atoms.positions))
    gradient = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    assert (graph.edge_index[0] == graph.edge_index[1]).any()  # an atom is a neighbour of its own images
    return graph, vectors, gradient


def columns(tensor, bits):
    return [column.to(dtype_of(bits)).contiguous() for column in tensor.T]


def collect(structure, bits, lanes, forces, node_virial, first=0, last=N, accumulate=False):
    graph, vectors, gradient = structure
    pointers = [graph.row_ptr, graph.edge_index[1].contiguous(), vectors, *columns(gradient, bits), forces, node_virial]
    call(Collect(accumulate, bits=bits, lanes=lanes), pointers, first, last)


def expected(structure, bits):
    """Forces and virials of the package's own sums, for the gradient rounded to the network's numbers."""
    graph, vectors, gradient = structure
    result = _collect((graph,), (vectors,), torch.zeros(N, dtype=torch.float64), [gradient.to(dtype_of(bits))])
    return result.forces, result.node_virial.reshape(N, 9)


def assert_close(ours, target):
    """Sums are in float64 whatever the network's numbers are: some tens of roundings, of terms like the largest sum."""
    assert (ours - target).abs().max() < 1e-13 * target.abs().max()


@layouts
def test_split(structure, bits, lanes):
    graph, vectors, _ = structure
    out = [torch.full((len(vectors),), 7.0, dtype=dtype_of(bits)) for _ in range(3)]
    call(Split(bits=bits, lanes=lanes), [graph.row_ptr, vectors, *out], 2, 5)
    inside = slice(graph.row_ptr[2], graph.row_ptr[5])
    for received, column in zip(out, columns(vectors, bits), strict=True):
        assert torch.equal(received[inside], column[inside])
        received[inside] = 7.0
        assert (received == 7.0).all()


@layouts
def test_collect(structure, bits, lanes):
    """Forces are added to what is there, virials overwritten."""
    before = torch.randn(N, 3, dtype=torch.float64)
    forces, node_virial = before.clone(), torch.full((N, 9), float("nan"), dtype=torch.float64)
    collect(structure, bits, lanes, forces, node_virial)
    target_forces, target_virial = expected(structure, bits)
    assert_close(forces, before + target_forces)
    assert_close(node_virial, target_virial)
    matrices = node_virial.view(N, 3, 3)
    assert torch.equal(matrices, matrices.transpose(1, 2))


@pytest.mark.parametrize("bits", [32, 64])
def test_collect_of_a_range(structure, bits):
    """Only the virials of the range are written; the ranges' forces add up to all forces."""
    target_forces, target_virial = expected(structure, bits)
    forces, node_virial = torch.zeros(N, 3, dtype=torch.float64), torch.full((N, 9), 7.0, dtype=torch.float64)
    collect(structure, bits, 8, forces, node_virial, 2, 5)
    assert_close(node_virial[2:5], target_virial[2:5])
    assert (node_virial[:2] == 7.0).all() and (node_virial[5:] == 7.0).all()
    alone = structure[2].clone()
    edges = torch.arange(len(alone))
    alone[(edges < structure[0].row_ptr[2]) | (edges >= structure[0].row_ptr[5])] = 0.0
    assert_close(forces, expected((*structure[:2], alone), bits)[0])
    for first, last in ((0, 2), (5, N)):
        collect(structure, bits, 8, forces, node_virial, first, last)
    assert_close(forces, target_forces)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_second_graph_adds_its_virials(structure, bits):
    forces, node_virial = torch.zeros(N, 3, dtype=torch.float64), torch.zeros(N, 9, dtype=torch.float64)
    for accumulate in (False, True):
        collect(structure, bits, 8, forces, node_virial, accumulate=accumulate)
    target_forces, target_virial = expected(structure, bits)
    assert_close(forces, 2 * target_forces)
    assert_close(node_virial, 2 * target_virial)


def test_an_edge_from_an_atom_to_its_own_image_leaves_forces_alone():
    """One atom with two edges (S and -S): equal gradients with opposite signs of r give a virial and no force."""
    row_ptr, neighbour = torch.tensor([0, 2]), torch.tensor([0, 0])
    vectors = torch.tensor([[1.0, 2.0, 0.5], [-1.0, -2.0, -0.5]], dtype=torch.float64)
    gradient = [torch.tensor([a, -a], dtype=torch.float64) for a in (0.3, 0.6, 0.15)]
    forces, node_virial = torch.ones(1, 3, dtype=torch.float64), torch.empty(1, 9, dtype=torch.float64)
    call(Collect(bits=64, lanes=8), [row_ptr, neighbour, vectors, *gradient, forces, node_virial], 0, 1)
    torch.testing.assert_close(forces, torch.ones(1, 3, dtype=torch.float64), rtol=1e-15, atol=0)
    outer = 0.6 * torch.outer(vectors[0], vectors[0]).reshape(1, 9)
    torch.testing.assert_close(node_virial, outer, rtol=1e-15, atol=0)


def test_atoms_without_edges():
    row_ptr, empty = torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    numbers = [torch.zeros(0, dtype=torch.float64) for _ in range(4)]
    forces, node_virial = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 9, dtype=torch.float64)
    call(Collect(bits=64, lanes=8), [row_ptr, empty, *numbers, forces, node_virial], 0, 2)
    assert (forces == 1).all() and (node_virial == 0).all()
