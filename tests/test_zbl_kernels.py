"""The native form of ZBL against the term in torch, as a kernel, as a program, and inside another model's program."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from kernel_calls import LAYOUTS, TOLERANCE, call, dtype_of
from torch import nn

from ase_equinn import MACE, Potential
from ase_equinn.backend import use_backend
from ase_equinn.derivatives import derivatives, energy_only
from ase_equinn.graph import graph_and_vectors
from ase_equinn.ops.zbl_kernels import Repulsion, ZBLKernel
from ase_equinn.programs import Programs
from ase_equinn.terms.zbl import COULOMB, ZBL

SPECIES = [1, 14]


def crowd(n=60, seed=0, side=9.0):
    """Atoms anywhere in a periodic box, two of them 0.3 A apart; few are alone."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(SPECIES, n)
    numbers[:2] = 14, 1
    atoms = Atoms(numbers, rng.uniform(0, side, (n, 3)), cell=[side, side + 0.5, side + 1], pbc=True)
    atoms.positions[1] = atoms.positions[0] + [0.1, -0.2, 0.2]
    return atoms


def arguments_of(potential, atoms):
    graphs, vectors = zip(*(graph_and_vectors(atoms, cutoff) for cutoff in potential.cutoffs))
    return graphs, torch.from_numpy(atoms.positions.copy()), vectors


def zbl_potential(dtype=torch.float64, **options) -> Potential:
    return Potential(ZBL(SPECIES, **options)).to(dtype=dtype).requires_grad_(False)


def assert_equal(found, expected, tolerance):
    """Energies are sums of positive terms; forces and virials cancel, and are judged by the largest."""
    torch.testing.assert_close(found.node_energy, expected.node_energy, rtol=tolerance, atol=tolerance)
    for name in ("forces", "node_virial"):
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize(
    "options", [{}, dict(radii=(0.9, 2.2), envelope_power=3, exponent=0.3, length=0.5), dict(envelope_power=1)]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_program_equals_the_term_in_torch(dtype, tolerance, options):
    """float32: some ten roundings each, and vectors are the same float32 numbers."""
    potential = zbl_potential(dtype, **options)
    arguments = arguments_of(potential, crowd())
    expected = derivatives(potential, *arguments[:2], vectors=arguments[2])
    programs = Programs(potential)
    found = programs(*arguments)
    assert not programs.in_torch and expected.node_energy.max() > 10
    assert_equal(found, expected, tolerance)
    energies = programs(*arguments, gradient=False)
    assert torch.equal(energies.node_energy, found.node_energy) and energies.forces is None
    torch.testing.assert_close(
        energies.node_energy, energy_only(potential, *arguments[:2]), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("r", [0.01, 0.3, 1.0, 1.4199])
def test_gradient_of_a_pair(r):
    """dV/dr by Richardson's differences of the kernel's own energies."""
    potential = zbl_potential()
    programs = Programs(potential)

    def pair(distance):
        return programs(*arguments_of(potential, Atoms("HSi", [[0, 0, 0], [0, 0, distance]])))

    def slope(h):
        return (pair(r + h).node_energy.sum() - pair(r - h).node_energy.sum()) / (2 * h)

    found, h = pair(r), 1e-3 * min(r, 1.42 - r)
    expected = (4 * slope(h / 2) - slope(h)) / 3
    assert found.forces[0, 2].item() == pytest.approx(expected.item(), rel=1e-8)
    assert found.forces[1, 2] == -found.forces[0, 2] and not found.forces[:, :2].any()
    assert found.node_energy[0] == pytest.approx(found.node_energy[1].item(), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exactly_zero_beyond_the_envelope(dtype):
    """Of H-H, H-Si and Si-Si in a graph that reaches further; all edges of an atom, and some of them."""
    potential = zbl_potential(dtype)
    potential.models[0].cutoff = 4.0
    potential = Potential(potential.models[0]).requires_grad_(False)
    programs = Programs(potential)
    for symbols, end in (("H2", 0.62), ("HSi", 1.42), ("Si2", 2.22)):
        for r in (end + 1e-6, end + 0.1, 3.9):
            found = programs(*arguments_of(potential, Atoms(symbols, [[0, 0, 0], [0, r, 0]])))
            assert not any(values.any() for values in found)
    found = programs(*arguments_of(potential, Atoms("H2Si", [[0, 0, 0], [0, 0.7, 0], [0, -0.5, 1.0]])))
    assert found.node_energy[1] == 0 and not found.forces[1].any() and found.node_energy[0] > 0.01
    assert found.forces[0, 2] == -found.forces[2, 2] < 0


def test_energies_that_do_not_count_threads_and_sizes():
    """More edges than lanes and blocks, smaller structures through the same memory; as `derivatives` has it."""
    potential = zbl_potential()
    programs, before = Programs(potential), torch.get_num_threads()
    try:
        for n_threads, n, n_counted in ((1, 300, None), (2, 300, 120), (3, 300, 0), (2, 40, 7), (2, 300, 120)):
            torch.set_num_threads(n_threads)
            arguments = arguments_of(potential, crowd(n, seed=n_threads, side=11.0 if n == 300 else 6.0))
            assert n < 300 or len(arguments[2][0]) > 1500  # enough for three threads
            expected = derivatives(potential, *arguments[:2], n_counted=n_counted)
            found = programs(*arguments, n_counted=n_counted)
            assert len(found.node_energy) == (n if n_counted is None else n_counted)
            assert_equal(found, expected, 1e-12)
            assert torch.equal(programs(*arguments, n_counted=n_counted).forces, found.forces)
    finally:
        torch.set_num_threads(before)


class _Both(nn.Module):
    """A network and a repulsion of the same edges in one model: their gradients add up in one program."""

    def __init__(self, first, second):
        super().__init__()
        self.parts, self.species, self.cutoff = nn.ModuleList([first, second]), first.species, first.cutoff

    def forward(self, graph, vectors):
        return self.parts[0](graph, vectors) * 0.5 + self.parts[1](graph, vectors)


@pytest.mark.parametrize("network_first", [True, False])
def test_in_one_program_with_a_network(network_first):
    torch.manual_seed(0)
    parts = [MACE(SPECIES, 3.0, 5.0, irreps_hidden="4x0e+4x1o", lmax=2, correlation=2), ZBL(SPECIES)]
    parts[1].cutoff = 3.0
    potential = Potential(_Both(*(parts if network_first else parts[::-1]))).double().requires_grad_(False)
    use_backend(potential, "reference")
    arguments = arguments_of(potential, crowd(30))
    programs = Programs(potential)
    assert_equal(programs(*arguments), derivatives(potential, *arguments[:2]), 1e-12)
    assert not programs.in_torch


def test_mace_with_a_repulsion_runs_wholly_as_programs():
    """As imported MACE-MP models are: two cutoffs, two programs, nothing in torch."""
    torch.manual_seed(0)
    network = MACE(SPECIES, 3.0, 5.0, irreps_hidden="4x0e+4x1o", lmax=2, correlation=2)
    potential = Potential([network, ZBL(SPECIES)], scale=[0.8, 1.0], shift=-2.0).double().requires_grad_(False)
    use_backend(potential, "reference")
    arguments = arguments_of(potential, crowd(30))
    programs = Programs(potential)
    assert_equal(programs(*arguments), derivatives(potential, *arguments[:2]), 1e-12)
    assert not programs.in_torch and len(potential.cutoffs) == 2


@pytest.fixture(scope="module")
def edges():
    """Graph, float64 vectors, seeds, and the term's node energies and gradient in torch."""
    potential = zbl_potential()
    (graph,), _, (vectors,) = arguments_of(potential, crowd(40, side=6.0))
    leaf = vectors.clone().requires_grad_()
    seed = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    energy = potential.models[0](graph, leaf)
    (gradient,) = torch.autograd.grad((energy * seed).sum(), leaf)
    return graph, vectors, seed, energy.detach(), gradient


def pointers(edges, bits):
    term, (graph, vectors) = ZBL(SPECIES), edges[:2]
    numbers = [table.to(dtype_of(bits)) for table in term._per_species(torch.float64, torch.device("cpu"))]
    columns = [column.to(dtype_of(bits)).contiguous() for column in vectors.T]
    return [graph.row_ptr, graph.edge_index[1].contiguous(), term.index(graph.numbers), *numbers, *columns]


REPULSION = Repulsion(COULOMB, 0.4685, *(tuple(ZBL([1]).hyperparameters[k]) for k in ("amplitudes", "decays")), 6)


@pytest.mark.parametrize(("bits", "lanes"), LAYOUTS)
def test_kernels_of_a_range_of_atoms(edges, bits, lanes):
    """Every width; energies and gradients of atoms first to last, nothing else is touched; overwritten or added to."""
    graph, vectors, seed, energy, gradient = edges
    first, last, dtype = 5, 23, dtype_of(bits)
    inside = slice(graph.row_ptr[first].item(), graph.row_ptr[last].item())
    out = torch.full((40,), math.nan, dtype=dtype)
    call(ZBLKernel(REPULSION, False, bits=bits, lanes=lanes), [*pointers(edges, bits), out], first, last)
    assert (out[first:last] - energy[first:last]).abs().max() < TOLERANCE[bits] * energy.max()
    assert out[:first].isnan().all() and out[last:].isnan().all()
    for accumulate in (False, True):
        found = [torch.full((len(vectors),), 3.0, dtype=dtype) for _ in range(3)]
        kernel = ZBLKernel(REPULSION, True, accumulate, bits=bits, lanes=lanes)
        call(kernel, [*pointers(edges, bits), seed.to(dtype), *found], first, last)
        found = torch.stack(found, dim=1)
        expected = gradient + 3.0 * accumulate
        assert (found[inside] - expected[inside]).abs().max() < TOLERANCE[bits] * gradient.abs().max()
        assert (found[: inside.start] == 3.0).all() and (found[inside.stop :] == 3.0).all()
