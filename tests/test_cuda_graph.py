"""Replays on padded buffers: ghosts change nothing, all sizes may come, what fails is evaluated in the ordinary way."""

import copy
import logging

import pytest
import torch
from ase.build import bulk, molecule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ase_equinn.cuda_graph import Buffers, Capacity, Replay, capacity_for, size_of
from ase_equinn.derivatives import derivatives
from ase_equinn.graph import collate, graph_and_vectors
from ase_equinn.irreps import Irreps
from ase_equinn.models.mace import MACE
from ase_equinn.models.nequip import NequIP
from ase_equinn.models.schnet import SchNet
from ase_equinn.nn import Linear, SpeciesIndex
from ase_equinn.nn_pairs import find_pairs
from ase_equinn.ops import conv_triton, product_triton
from ase_equinn.potential import Potential
from ase_equinn.terms.zbl import ZBL


@pytest.fixture(scope="module")
def potential():
    """Models of all kinds, two cutoffs."""
    torch.manual_seed(0)
    options = {"radial": {"transform": "agnesi"}, "interactions": ["residual density"]}
    models = [
        NequIP((8, 14), 4.0, 10.0, irreps_hidden="4x0e+3x1o", radial_mlp=[8]),
        MACE((8, 14), 4.0, 10.0, irreps_hidden="2x0e+2x1o", lmax=2, correlation=2, **options),
        SchNet((8, 14), 3.5, 10.0, n_channels=8, n_layers=2, n_basis=8),
        ZBL((8, 14)),
    ]  # fmt: skip
    return Potential(models).to(torch.float64).requires_grad_(False).eval()


def structure(seed=0, repeat=1):
    atoms = bulk("Si", cubic=True) * (repeat, 1, 1)
    atoms.numbers[::3] = 8
    atoms.rattle(0.1, seed=seed)
    return atoms


def arguments(potential, atoms):
    """graphs, positions and vectors of a structure."""
    graphs, vectors = zip(*(graph_and_vectors(atoms, cutoff) for cutoff in potential.cutoffs))
    return graphs, torch.from_numpy(atoms.positions.copy()), vectors


def ordinary(potential, atoms):
    graphs, positions, vectors = arguments(potential, atoms)
    return derivatives(potential, graphs, positions, vectors=vectors)


def filled(potential, atoms):
    graphs, _, vectors = arguments(potential, atoms)
    buffers = Buffers(graphs, potential.cutoffs, capacity_for(size_of(graphs)))
    buffers.fill(graphs, vectors)
    return buffers


def padded(potential, buffers):
    graphs, vectors = buffers.padded()
    return derivatives(potential, graphs, buffers.positions, vectors=vectors)


def assert_same(found, expected, n):
    for name in ("node_energy", "forces", "node_virial"):
        torch.testing.assert_close(getattr(found, name)[:n], getattr(expected, name), rtol=1e-12, atol=1e-12)


SYSTEMS = [structure(), structure(repeat=2), molecule("SiH4")[:1], molecule("CO2")[1:]]


@pytest.mark.parametrize("atoms", SYSTEMS, ids=len)
def test_ghosts_change_nothing(potential, atoms):
    """A crystal, a lone atom without edges, two atoms: energies, forces and virials of the padded graph."""
    buffers, expected = filled(potential, atoms), ordinary(potential, atoms)
    found = padded(potential, buffers)
    assert_same(found, expected, len(atoms))
    torch.testing.assert_close(found.energy[:1], expected.energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.stress[:1], expected.stress, rtol=1e-12, atol=1e-14)
    assert not found.forces[len(atoms) :].any()


def test_padded_graphs_are_graphs(potential):
    """Edges sorted by centre, row pointers that agree, ghosts with as many edges each, to themselves, at the cutoff."""
    atoms = structure()
    n, buffers = len(atoms), filled(potential, atoms)
    for graph, vectors, cutoff in zip(*buffers.padded(), potential.cutoffs):
        centre, neighbour = graph.edge_index
        counts = torch.bincount(centre, minlength=len(graph.numbers))
        assert torch.equal(graph.row_ptr, torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))
        assert (centre.diff() >= 0).all()
        ghosts = centre >= n
        assert torch.equal(centre[ghosts], neighbour[ghosts]) and (neighbour[~ghosts] < n).all()
        assert counts[n:].max() - counts[n:].min() <= 1 and counts[n:].sum() == ghosts.sum() > 0
        assert (vectors[ghosts].norm(dim=1) == cutoff).all()
    assert buffers.graphs[0].batch.tolist() == [0] * n + [1] * (buffers.capacity.atoms - n)


def test_buffers_are_used_again_by_other_structures(potential):
    buffers = filled(potential, structure())
    other = structure()
    other.numbers[0] = 14
    assert not any(buffers.fit(arguments(potential, atoms)[0]) for atoms in (other, structure(repeat=2)))
    for seed in (1, 2):  # with more and with fewer edges: what is left of others is not seen
        atoms = structure(seed)
        atoms.set_cell(atoms.cell * (0.98, 1.01)[seed - 1], scale_atoms=True)
        graphs, _, vectors = arguments(potential, atoms)
        assert buffers.fit(graphs)
        buffers.fill(graphs, vectors)
        assert_same(padded(potential, buffers), ordinary(potential, atoms), len(atoms))


def test_capacity():
    size = Capacity(64, (1800, 300))
    room = capacity_for(size)
    assert room.fits(size) and not room.fits(Capacity(64, (1800, 600))) and not room.fits(Capacity(64, (1000, 300)))
    assert not room.fits(Capacity(room.atoms, size.edges)), "one ghost at least"
    for n_edges in (0, 10, 10**4, 10**6):
        room = capacity_for(Capacity(n_edges // 20 + 1, (n_edges,)))
        spare, ghosts = room.edges[0] - n_edges, room.atoms - n_edges // 20 - 1
        assert spare <= 0.04 * n_edges + 64 and spare <= 33 * ghosts


class Recorded(Replay):
    """A replay on the CPU: the recording is evaluated anew each time, from what is in the buffers then."""

    n_recordings, fault = 0, 1.0

    def _record(self):
        self.n_recordings += 1
        return lambda: type(self._evaluate())(*(self.fault * x for x in self._evaluate()))


def test_replays_along_a_path(potential):
    """The first evaluations are ordinary, then one recording serves as long as the atoms are the same."""
    replay = Recorded(potential)
    for step in range(6):
        atoms = structure(step)
        assert_same(replay(*arguments(potential, atoms)), ordinary(potential, atoms), len(atoms))
        assert replay.n_recordings == (step >= 2)
    larger = structure(repeat=3)
    for step in range(4):
        assert_same(replay(*arguments(potential, larger)), ordinary(potential, larger), len(larger))
    assert replay.n_recordings == 2 and replay.problem == ""
    larger.numbers = larger.numbers[::-1]
    for step in range(4):
        assert_same(replay(*arguments(potential, larger)), ordinary(potential, larger), len(larger))
    assert replay.n_recordings == 3 and replay.problem == ""
    energies = replay(*arguments(potential, larger), gradient=False)
    torch.testing.assert_close(energies.node_energy, ordinary(potential, larger).node_energy, rtol=1e-12, atol=1e-12)


def test_inference_mode_of_the_caller(potential):
    replay = Recorded(potential)
    for step in range(6):
        with torch.inference_mode(step % 2 == 0):
            found = replay(*arguments(potential, structure(step)))
        assert_same(found, ordinary(potential, structure(step)), 8)
    assert replay.n_recordings == 1


@pytest.mark.parametrize("fault", ["wrong", "nan", "broken"])
def test_what_fails_is_evaluated_in_the_ordinary_way(potential, fault, monkeypatch, caplog):
    replay, atoms = Recorded(potential), structure()
    if fault == "broken":
        monkeypatch.setattr(replay, "_record", lambda: 1 / 0)
    replay.fault = {"wrong": 1 + 1e-6, "nan": float("nan"), "broken": 1.0}[fault]
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert_same(replay(*arguments(potential, atoms)), ordinary(potential, atoms), len(atoms))
    assert replay.problem and "not replayed as CUDA graphs" in caplog.text and len(caplog.records) == 1
    assert {"wrong": "differs by", "nan": "differs by nan", "broken": "ZeroDivisionError"}[fault] in replay.problem


def test_what_is_not_recorded(potential, monkeypatch):
    """No atoms, several structures at once, pieces of a structure, large structures."""
    replay = Recorded(potential)
    graphs, positions, vectors = arguments(potential, structure())
    double = tuple(v.repeat(2, 1) for v in vectors)
    two = tuple(collate([graph, graph]) for graph in graphs), positions.repeat(2, 1), double
    for _ in range(4):
        energy = replay(*two).node_energy
        torch.testing.assert_close(energy[:8], energy[8:], rtol=1e-12, atol=1e-12)
        assert len(replay(graphs, positions, vectors, n_counted=5).node_energy) == 5
    monkeypatch.setattr("ase_equinn.cuda_graph._MOST_EDGES", 10)
    for atoms in (structure()[:0], structure()):
        for _ in range(4):
            assert len(replay(*arguments(potential, atoms)).node_energy) == len(atoms)
    assert replay.n_recordings == 0 and replay.problem == ""


@pytest.mark.parametrize("most", [0, 2**26])
def test_linear_maps_by_species_without_counting_atoms(most, monkeypatch):
    """On CUDA matrices are gathered, or the maps of all species are added up under masks: the same numbers."""
    monkeypatch.setattr("ase_equinn.nn._GATHERED", most)
    torch.manual_seed(0)
    linear = Linear(Irreps("3x0e+2x1o"), Irreps("4x0e+2x1o"), 3)
    x, species = [torch.randn(7, 1, 3), torch.randn(7, 3, 2)], torch.tensor([2, 0, 0, 1, 2, 2, 0])
    expected = linear(x, species)
    found = [Linear._by_species(block, weight, species) for block, weight in zip(x, linear._scaled(1.0))]
    for ours, right in zip(found, expected):
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-6)


def test_what_elements_are_present_is_asked_once(monkeypatch):
    """While the numbers are the same tensor with the same values: a recording must not wait for the device."""
    graph, _ = graph_and_vectors(structure(), 4.0)
    index = SpeciesIndex((1, 8, 14))
    first = find_pairs(True, graph, index(graph.numbers), (1, 8, 14))
    assert set(first.species) == {(1, 1), (1, 2), (2, 2)}
    ends = index(graph.numbers)[graph.edge_index].sort(0).values.T.tolist()
    assert [first.species[k] for k in first.edge] == [tuple(pair) for pair in ends]
    with monkeypatch.context() as context:
        context.setattr(torch, "unique", None)
        again = find_pairs(True, graph, index(graph.numbers), (1, 8, 14))
    assert again.species == first.species and torch.equal(again.edge, first.edge)
    graph.numbers[0] = 1
    assert len(find_pairs(True, graph, index(graph.numbers), (1, 8, 14)).species) == 6
    assert len(find_pairs(True, graph, graph.numbers // 7, (7, 8, 14)).species) == 6
    with torch.inference_mode():
        numbers = graph.numbers.clone()
        assert len(find_pairs(True, graph._replace(numbers=numbers), index(numbers), (1, 8, 14)).species) == 6


class Watch(TorchDispatchMode):
    """Lists the operations that touch a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.on_cpu = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if any(x.device.type == "cpu" for x in tensors):
            self.on_cpu.append(str(function))
        return result


@pytest.mark.parametrize("k", range(4), ids=["NequIP", "MACE", "SchNet", "ZBL"])
def test_recordings_neither_wait_for_the_device_nor_copy_from_the_cpu(potential, k, monkeypatch):
    """On the meta device, whose numbers cannot be looked at, with kernels left out: what comes after a first run."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # so that kernels are chosen on a device that is not CUDA
    monkeypatch.setattr(torch, "unique", lambda species: torch.tensor([0, 1]))  # the first run may wait
    launched = []
    for module in (conv_triton, product_triton):
        monkeypatch.setattr(module, "jit_function", lambda name, source: name)
        monkeypatch.setattr(module, "launch", lambda kernel, *rest: launched.append(kernel))
        monkeypatch.setattr(module, "_kernels", {})
    graphs, _, vectors = arguments(potential, structure())
    there = Potential([copy.deepcopy(potential.models[k])]).to("meta")
    for module in there.modules():
        if hasattr(module, "backend"):
            module.backend = "triton"
    graphs, vectors = [graphs[potential.graph_of[k]].to("meta")], [vectors[potential.graph_of[k]].to("meta")]
    buffers = Buffers(graphs, there.cutoffs, capacity_for(size_of(graphs)))
    buffers.fill(graphs, vectors)
    padded(there, buffers)
    monkeypatch.setattr(torch, "unique", None)
    with Watch() as watch:
        found = padded(there, buffers)
    assert found.forces.shape == (buffers.capacity.atoms, 3) and found.forces.device.type == "meta"
    assert watch.on_cpu == []
    assert {name.split("_")[0] for name in launched} >= {"forward", "edges"} or k == 3
