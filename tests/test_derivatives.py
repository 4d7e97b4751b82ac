"""Derivatives of toy potentials against central differences, exact identities and their own special cases.

Everything is float64 unless a test says otherwise. Differences with h = 1e-3 A and four points have an error of order
h^4 = 1e-12 times a fifth derivative (some 1e2 to 1e4 eV/A^5 here) plus round-off 1e-16 / h times the energy: 1e-8 of
the largest value leaves room for both and none for a wrong term.
"""

import copy

import numpy as np
import pytest
import torch
import toy
from torch import nn

from ase_equinn.derivatives import _neighbor_sum, _sorted_sum, derivatives, energy_only, hessian
from ase_equinn.graph import collate, edge_vectors
from ase_equinn.potential import Potential

STEP = 1e-3
FOUR_POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))  # sum_k c_k f(x + k h) / h = f'(x)


@pytest.fixture(scope="module")
def potential():
    """Two cutoffs, two scales, many-body and pair."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [toy.Pair([6, 14], 3.5), toy.Embedded([6, 14], 4.2)]
    return Potential(
        models, reference_energies={6: -37.5, 14: -101.0}, scale=[0.4, 1.7], shift={6: 0.2, 14: -0.1}
    ).double()


def energy_of(potential, numbers, positions, cell, pbc) -> torch.Tensor:
    graphs = tuple(toy.brute_graph(numbers, positions, cell, pbc, cutoff) for cutoff in potential.cutoffs)
    return energy_only(potential, graphs, positions).sum()


def relative(received, expected) -> float:
    return float((received - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", toy.CELLS)
def test_forces_are_minus_the_gradient_of_the_energy(potential, kind):
    numbers, positions, cell, pbc, graphs = toy.structure(kind, potential.cutoffs)
    expected = torch.zeros_like(positions)
    for atom, axis in np.ndindex(*positions.shape):
        for k, weight in FOUR_POINTS:
            moved = positions.clone()
            moved[atom, axis] += k * STEP
            expected[atom, axis] -= weight / STEP * energy_of(potential, numbers, moved, cell, pbc)
    forces = derivatives(potential, graphs, positions).forces
    assert relative(forces, expected) < 1e-8
    assert forces.sum(0).abs().max() < 1e-11 * forces.abs().max()


@pytest.mark.parametrize("kind", toy.CELLS)
def test_virial_is_the_derivative_of_the_energy_by_strain(potential, kind):
    numbers, positions, cell, pbc, graphs = toy.structure(kind, potential.cutoffs)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for row, column in np.ndindex(3, 3):
        for k, weight in FOUR_POINTS:
            strain = torch.eye(3, dtype=torch.float64)
            strain[row, column] += 0.5 * k * STEP
            strain[column, row] += 0.5 * k * STEP
            expected[row, column] += (
                weight / STEP * energy_of(potential, numbers, positions @ strain, cell @ strain, pbc)
            )
    result = derivatives(potential, graphs, positions)
    assert relative(result.virial[0], expected) < 1e-8
    assert torch.equal(result.node_virial, result.node_virial.transpose(1, 2))
    assert relative(result.node_virial.sum(0), expected) < 1e-8
    if kind == "molecule":
        assert torch.equal(result.stress, torch.zeros(1, 3, 3, dtype=torch.float64))
    else:
        assert relative(result.stress[0] * abs(np.linalg.det(cell.numpy())), expected) < 1e-8


def test_a_left_handed_cell_has_the_stress_of_the_right_handed_one(potential):
    """The same lattice: two cell vectors exchanged."""
    numbers, positions, cell, pbc, graphs = toy.structure("triclinic", potential.cutoffs)
    assert torch.linalg.det(cell) > 0
    swapped = tuple(toy.brute_graph(numbers, positions, cell[[1, 0, 2]], pbc, cutoff) for cutoff in potential.cutoffs)
    stress = derivatives(potential, graphs, positions).stress
    assert relative(derivatives(potential, swapped, positions).stress, stress) < 1e-12


def test_a_slab_has_no_stress_and_its_forces_do_not_know_the_vacuum(potential):
    numbers, positions, cell, _, _ = toy.structure("triclinic", potential.cutoffs)
    pbc, results = torch.tensor([True, True, False]), []
    for factor in (1.0, 50.0):
        other = cell * torch.tensor([[1.0], [1.0], [factor]], dtype=torch.float64)
        graphs = tuple(toy.brute_graph(numbers, positions, other, pbc, cutoff) for cutoff in potential.cutoffs)
        results.append(derivatives(potential, graphs, positions))
    assert results[0].forces.abs().max() > 0.1
    assert relative(results[1].forces, results[0].forces) < 1e-12
    assert relative(results[1].virial, results[0].virial) < 1e-12
    assert not results[0].stress.any() and not results[1].stress.any()


def test_virial_of_an_edge_goes_to_its_centre(potential):
    """Per atom against an autograd oracle that differentiates each atom's share by the vectors of its own row."""
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    vectors = [edge_vectors(graph, positions).requires_grad_() for graph in graphs]
    gradients = torch.autograd.grad(potential.node_energy(graphs, vectors).sum(), vectors)
    expected = torch.zeros(len(positions), 3, 3, dtype=torch.float64)
    for graph, r, g in zip(graphs, vectors, gradients, strict=True):
        for edge, centre in enumerate(graph.edge_index[0].tolist()):
            outer = torch.outer(r[edge].detach(), g[edge])
            expected[centre] += 0.5 * (outer + outer.T)
    assert relative(derivatives(potential, graphs, positions).node_virial, expected) < 1e-13


def test_a_batch_equals_its_structures(potential):
    structures = [toy.structure(kind, potential.cutoffs, seed) for seed, kind in enumerate(toy.CELLS)]
    structures.append(toy.structure("molecule", potential.cutoffs, n=1))
    graphs = tuple(collate([s[4][k] for s in structures]) for k in range(len(potential.cutoffs)))
    batch = derivatives(potential, graphs, torch.cat([s[1] for s in structures]))
    singles = [derivatives(potential, s[4], s[1]) for s in structures]
    for field in batch._fields:
        expected = torch.cat([getattr(single, field) for single in singles])
        assert getattr(batch, field).shape == expected.shape
        assert relative(getattr(batch, field), expected) < 1e-13, field


def test_same_input_gives_the_same_bits(potential):
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    first, second = (derivatives(potential, graphs, positions) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("n", [0, 1])
def test_no_edges_and_no_atoms_are_ordinary(potential, n):
    *_, positions, _, _, graphs = toy.structure("molecule", potential.cutoffs, n=n) if n else empty(potential)
    result = derivatives(potential, graphs, positions)
    assert result.energy.tolist() == ([potential.isolated_energy(int(graphs[0].numbers))] if n else [0.0])
    assert result.forces.shape == (n, 3) and result.node_virial.shape == (n, 3, 3)
    assert not any(x.any() for x in (result.forces, result.virial, result.stress, result.node_virial))
    assert energy_only(potential, graphs, positions).shape == (n,)
    assert torch.equal(hessian(potential, graphs, positions), torch.zeros(3 * n, 3 * n, dtype=torch.float64))


def empty(potential):
    graph = toy.structure("molecule", [1.0], n=1)[4][0]
    graph = graph._replace(numbers=graph.numbers[:0], batch=graph.batch[:0], row_ptr=graph.row_ptr[:1])
    positions = torch.zeros(0, 3, dtype=torch.float64)
    return None, positions, None, None, (graph,) * len(potential.cutoffs)


class Constant(nn.Module):
    """Ignores the vectors, or, with slope, is linear in them: its gradient is a constant."""

    species, hyperparameters = (6, 14), {}

    def __init__(self, cutoff, slope=0.0):
        super().__init__()
        self.cutoff, self.slope = cutoff, slope
        self.level = nn.Parameter(torch.tensor(2.0))

    def forward(self, graph, vectors):
        energy = self.level * torch.ones(len(graph.numbers), dtype=vectors.dtype)
        return energy.index_add(0, graph.edge_index[0], self.slope * vectors[:, 0]) if self.slope else energy


def test_an_energy_that_ignores_the_positions_has_no_forces():
    constant = Potential(Constant(3.0))
    *_, positions, _, _, graphs = toy.structure("triclinic", constant.cutoffs)
    for training in (False, True):
        result = derivatives(constant, graphs, positions, training=training)
        assert result.energy.item() == 2.0 * len(positions)
        assert not result.forces.any() and not result.stress.any()
    assert not hessian(constant, graphs, positions).any()


def test_one_model_of_two_may_ignore_the_positions_and_a_gradient_may_be_constant(potential):
    """The other graph's share must arrive unchanged."""
    pair = potential.models[0]
    both = Potential([Constant(6.0).double(), pair, Constant(2.0, slope=0.5).double()])
    *_, positions, _, _, graphs = toy.structure("triclinic", both.cutoffs)
    alone = Potential([pair])
    assert relative(hessian(both, graphs, positions), hessian(alone, graphs[1:2], positions)) < 1e-14
    vectors = edge_vectors(graphs[2], positions)
    slope = torch.zeros(3, 3, dtype=torch.float64)
    slope[:, 0] = 0.25 * vectors.sum(0)
    expected = derivatives(alone, graphs[1:2], positions).virial[0] + slope + slope.T
    assert relative(derivatives(both, graphs, positions).virial[0], expected) < 1e-13


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(potential, context):
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    expected = derivatives(potential, graphs, positions).forces
    with context():
        *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
        assert torch.equal(derivatives(potential, graphs, positions).forces, expected)
        assert hessian(potential, graphs, positions, indices=[0]).any()
        trained = derivatives(potential, graphs, positions, training=True)
    assert torch.equal(trained.forces, expected) and trained.forces.requires_grad


def test_results_are_detached_and_energy_only_takes_no_gradient(potential, monkeypatch):
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    result = derivatives(potential, graphs, positions)
    assert not any(field.requires_grad for field in result)
    monkeypatch.setattr(torch.autograd, "grad", None)
    energy = energy_only(potential, graphs, positions)
    assert torch.equal(energy, result.node_energy) and not energy.requires_grad
    with pytest.raises(TypeError):
        derivatives(potential, graphs, positions)


def loss_of(potential, graphs, positions):
    result = derivatives(potential, graphs, positions, training=True)
    return result.energy.sum() ** 2 * 1e-3 + (result.forces**2).sum() + 30 * (result.stress**2).sum()


def test_a_loss_of_energy_forces_and_stress_reaches_every_weight(potential):
    """Gradient of the loss by the weights against central differences."""
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    potential.zero_grad()
    loss_of(potential, graphs, positions).backward()
    for name, weight in potential.named_parameters():
        expected = torch.zeros_like(weight)
        for index in np.ndindex(*weight.shape):
            for k, factor in FOUR_POINTS:
                with torch.no_grad():
                    weight[index] += k * STEP
                expected[index] += factor / STEP * loss_of(potential, graphs, positions).detach()
                with torch.no_grad():
                    weight[index] -= k * STEP
        assert relative(weight.grad, expected) < 1e-7, name
    potential.zero_grad()


@pytest.mark.parametrize("kind", ["triclinic", "molecule"])
def test_hessian_is_the_derivative_of_the_forces(potential, kind):
    numbers, positions, cell, pbc, graphs = toy.structure(kind, potential.cutoffs)
    expected = torch.zeros(positions.numel(), positions.numel(), dtype=torch.float64)
    for column, (atom, axis) in enumerate(np.ndindex(*positions.shape)):
        for k, weight in FOUR_POINTS:
            moved = positions.clone()
            moved[atom, axis] += k * STEP
            moved_graphs = tuple(toy.brute_graph(numbers, moved, cell, pbc, cutoff) for cutoff in potential.cutoffs)
            expected[:, column] -= weight / STEP * derivatives(potential, moved_graphs, moved).forces.reshape(-1)
    result = hessian(potential, graphs, positions)
    assert relative(result, expected) < 1e-7  # one more derivative: 1e3 times larger fifth differences
    assert (result - result.T).abs().max() < 1e-13 * result.abs().max()
    rows = hessian(potential, graphs, positions, indices=[2, 0])
    assert torch.equal(rows, torch.cat([result[6:9], result[0:3]]))
    assert hessian(potential, graphs, positions, indices=[]).shape == (0, positions.numel())


def test_hessian_refuses_an_index_that_is_no_atom(potential):
    *_, positions, _, _, graphs = toy.structure("molecule", potential.cutoffs)
    for index in (-1, 4):
        with pytest.raises(ValueError, match=f"index {index} .* 4"):
            hessian(potential, graphs, positions, indices=[0, index])


def test_a_float32_network_gives_float64_results_near_the_exact_ones(potential):
    """Single precision keeps 7 digits: 1e-5 of the largest value leaves two orders for the sums of the toy."""
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    exact = derivatives(potential, graphs, positions)
    single = copy.deepcopy(potential).float()
    result = derivatives(single, graphs, positions)
    for field in result._fields:
        assert getattr(result, field).dtype == torch.float64
        assert 0 < relative(getattr(result, field), getattr(exact, field)) < 1e-5, field
    matrix = hessian(single, graphs, positions)
    assert matrix.dtype == torch.float64
    assert 0 < relative(matrix, hessian(potential, graphs, positions)) < 1e-5


def test_the_input_is_left_alone(potential):
    *_, positions, _, _, graphs = toy.structure("triclinic", potential.cutoffs)
    before = [x.clone() for graph in graphs for x in graph[:-1]]
    kept = positions.clone()
    derivatives(potential, graphs, positions, training=True)
    hessian(potential, graphs, positions, indices=[1])
    assert torch.equal(positions, kept) and not positions.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, [x for graph in graphs for x in graph[:-1]], strict=True))
    assert all(weight.grad is None for weight in potential.parameters())


@pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 0), (1, 5), (7, 40)])
def test_the_sums_that_cuda_takes(n, m):
    """Here on the CPU beside index_add: empty segments, no columns, the derivative."""
    generator = torch.Generator().manual_seed(m)
    values = torch.randn(4, m, dtype=torch.float64, generator=generator, requires_grad=True)
    index = torch.randint(0, max(n - 1, 1), (m,), generator=generator)  # nothing for the last atom
    received, expected = _sorted_sum(values, index, n), _neighbor_sum(values, index, n)
    assert received.shape == expected.shape == (4, n)
    assert torch.allclose(received, expected, rtol=0, atol=1e-14)
    weights = torch.randn(4, n, dtype=torch.float64, generator=generator)
    for total in (received, expected):
        (gradient,) = torch.autograd.grad((total * weights).sum(), values)
        assert torch.equal(gradient, weights[:, index])


@pytest.mark.gpu
def test_cuda_agrees_and_repeats_its_bits(potential):
    """Sums over edges on CUDA come in a fixed order too."""
    structures = [toy.structure(kind, potential.cutoffs, seed, n=6) for seed, kind in enumerate(toy.CELLS)]
    graphs = tuple(collate([s[4][k] for s in structures]) for k in range(len(potential.cutoffs)))
    positions = torch.cat([s[1] for s in structures])
    expected = derivatives(potential, graphs, positions)
    there = copy.deepcopy(potential).to("cuda")
    cuda_graphs, cuda_positions = tuple(graph.to("cuda") for graph in graphs), positions.to("cuda")
    for training in (False, True):
        result = derivatives(there, cuda_graphs, cuda_positions, training=training)
        for field in result._fields:
            assert relative(getattr(result, field).detach().cpu(), getattr(expected, field)) < 1e-11, field
    loss_of(there, cuda_graphs, cuda_positions).backward()
    assert relative(hessian(there, cuda_graphs, cuda_positions).cpu(), hessian(potential, graphs, positions)) < 1e-11
    *_, nowhere, _, _, nothing = empty(there)
    assert derivatives(there, tuple(graph.to("cuda") for graph in nothing), nowhere.cuda()).energy.tolist() == [0.0]


@pytest.mark.gpu
def test_sums_over_edges_on_cuda_do_not_depend_on_the_order_of_threads():
    """index_add_ with as many summands differs from run to run."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 200_000, dtype=torch.float64, generator=generator)
    index = torch.randint(0, 50, (200_000,), generator=generator)
    expected = torch.zeros(3, 50, dtype=torch.float64).index_add_(1, index, values)
    runs = [_neighbor_sum(values.cuda(), index.cuda(), 50) for _ in range(20)]
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert relative(runs[0].cpu(), expected) < 1e-12
