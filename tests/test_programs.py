"""Native programs against the models in plain torch: the same energies, forces and virials, however they are run."""

import os
import threading
import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch import nn

from ase_equinn import MACE, NequIP, Potential, SchNet
from ase_equinn.backend import use_backend
from ase_equinn.derivatives import derivatives, energy_only
from ase_equinn.graph import graph_and_vectors
from ase_equinn.nn import SpeciesIndex
from ase_equinn.ops.arena import arena
from ase_equinn.ops.plan import make_plan
from ase_equinn.ops.symbols import Trace, Untraceable
from ase_equinn.programs import Programs

CUTOFF = 4.0
LIMITS = {"low": -1.0, "high": 1.0, "alone": 0.1, "rho_min": 1.0, "rho_max": 6.0, "near_max": 9.0}
MODELS = {
    "schnet": lambda species: SchNet(species, CUTOFF, 10.0, n_channels=24),
    "nequip": lambda species: NequIP(species, CUTOFF, 10.0, irreps_hidden="16x0e+8x1o"),
    "nequip, all parities": lambda species: NequIP(
        species, CUTOFF, 10.0, n_layers=3, irreps_hidden="8x0e+4x0o+5x1o+3x1e+2x2e"
    ),
    "mace": lambda species: MACE(species, CUTOFF, 10.0, irreps_hidden="8x0e+8x1o"),
    "mace, residual density, agnesi": lambda species: MACE(
        species, CUTOFF, 10.0, irreps_hidden="8x0e+8x1o", interactions=["residual density"],
        radial={"transform": "agnesi", "n_knots": 64},
    ),
    "mace, limits": lambda species: MACE(
        species, CUTOFF, 10.0, irreps_hidden="8x0e+8x1o",
        limits={name: [value] * len(species) for name, value in LIMITS.items()} | {"width": 0.3},
    ),
    "mace, three layers": lambda species: MACE(
        species, CUTOFF, 10.0, n_layers=3, irreps_hidden="4x0e+4x1o+4x2e", lmax=2, correlation=2,
        readout={"activation": "tanh"},
    ),
    "mace, one layer": lambda species: MACE(species, CUTOFF, 10.0, n_layers=1, irreps_hidden="8x0e", lmax=2),
}  # fmt: skip


def crystal(cells: int = 1, seed: int = 0):
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True) * cells
    atoms.rattle(0.15, seed=seed)
    return atoms


def potential_of(make, atoms, dtype=torch.float64) -> Potential:
    torch.manual_seed(0)
    potential = Potential([make(sorted(set(atoms.numbers.tolist())))], shift=-1.5, scale=0.7).to(dtype=dtype)
    return potential.requires_grad_(False)


def graph_of(atoms, cutoff: float = CUTOFF):
    graph, vectors = graph_and_vectors(atoms, cutoff)
    return (graph,), torch.from_numpy(atoms.positions.copy()), (vectors,)


def assert_equal(found, expected, tolerance: float) -> None:
    for name in ("node_energy", "forces", "node_virial"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.shape == other.shape and one.dtype == other.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("structure", [crystal(), molecule("CH3CH2OH")], ids=["NaCl", "ethanol"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 3e-4)])
def test_program_equals_reference(name, structure, dtype, tolerance):
    """float32: both sum thousands of rounded terms in different orders, forces cancel to a part of the terms."""
    potential = potential_of(MODELS[name], structure, dtype)
    graphs, positions, vectors = graph_of(structure)
    use_backend(potential, "reference")
    expected = derivatives(potential, graphs, positions, vectors=vectors)
    programs = Programs(potential)
    found = programs(graphs, positions, vectors)
    assert not programs.in_torch
    assert_equal(found, expected, tolerance)
    energies = programs(graphs, positions, vectors, gradient=False)
    assert energies.forces is None and torch.equal(energies.node_energy, found.node_energy)
    torch.testing.assert_close(
        energies.node_energy, energy_only(potential, graphs, positions), rtol=0, atol=tolerance * 10
    )


@pytest.mark.parametrize("name", ["schnet", "nequip, all parities", "mace", "mace, residual density, agnesi"])
def test_threads_and_sizes_change_nothing(name):
    """More atoms than a block, two threads, then smaller and larger structures through the same memory; bitwise again."""
    potential = potential_of(MODELS[name], crystal())
    use_backend(potential, "reference")
    programs, first = Programs(potential), None
    before = torch.get_num_threads()
    try:
        for n_threads, cells, seed in ((1, 2, 0), (2, 2, 0), (3, 1, 1), (2, 3, 2), (1, 1, 3), (1, 2, 0)):
            torch.set_num_threads(n_threads)
            arguments = graph_of(crystal(cells, seed))
            expected = derivatives(potential, *arguments[:2], vectors=arguments[2])
            found = programs(*arguments)
            assert_equal(found, expected, 1e-11)
            assert torch.equal(programs(*arguments).forces, found.forces)
            if (n_threads, cells, seed) == (1, 2, 0):
                first = found if first is None else first
                assert torch.equal(first.forces, found.forces)
    finally:
        torch.set_num_threads(before)


def test_results_belong_to_the_caller():
    potential = potential_of(MODELS["mace"], crystal())
    programs = Programs(potential)
    found = programs(*graph_of(crystal()))
    copies = [tensor.clone() for tensor in found]
    programs(*graph_of(crystal(seed=5)))
    assert all(torch.equal(one, other) for one, other in zip(found, copies))


def test_no_edges_and_no_atoms():
    atoms = molecule("CH3CH2OH")
    potential = potential_of(MODELS["mace, residual density, agnesi"], atoms)
    programs = Programs(potential)
    alone = atoms[:1]
    found = programs(*graph_of(alone))
    assert found.node_energy.item() == pytest.approx(potential.isolated_energy(int(alone.numbers[0])), abs=1e-12)
    assert not found.forces.any() and not found.node_virial.any()
    nothing = programs(*graph_of(atoms[:0]))
    assert [len(tensor) for tensor in nothing] == [0, 0, 0]
    assert_equal(programs(*graph_of(atoms)), derivatives(potential, *graph_of(atoms)[:2]), 1e-11)


def test_sum_with_a_term_that_runs_in_torch(caplog):
    """The term has another cutoff and no native form: the rest still runs natively, and the sum is right."""
    atoms = crystal()
    species = sorted(set(atoms.numbers.tolist()))
    torch.manual_seed(0)
    term = _Cubic(species, 3.0)
    potential = Potential([MODELS["nequip"](species), term], scale=[0.5, 1.0]).double().requires_grad_(False)
    pairs = [graph_and_vectors(atoms, cutoff) for cutoff in potential.cutoffs]
    graphs, vectors = zip(*pairs)
    positions = torch.from_numpy(atoms.positions.copy())
    use_backend(potential, "reference")
    expected = derivatives(potential, graphs, positions)
    programs = Programs(potential)
    with caplog.at_level("INFO"):
        assert_equal(programs(graphs, positions, vectors), expected, 1e-11)
    assert list(programs.in_torch) == ["_Cubic"] and "_Cubic runs in torch" in caplog.text
    alone = programs(graphs, positions, vectors, gradient=False).node_energy
    torch.testing.assert_close(alone, expected.node_energy, rtol=0, atol=1e-11)


def test_energies_that_do_not_count():
    """As `derivatives` has it: forces and virials of the energy of the first atoms alone."""
    atoms = crystal(2)
    species = sorted(set(atoms.numbers.tolist()))
    torch.manual_seed(0)
    potential = Potential([MODELS["nequip"](species), _Cubic(species, 3.0)]).double().requires_grad_(False)
    graphs, vectors = zip(*(graph_and_vectors(atoms, cutoff) for cutoff in potential.cutoffs))
    positions = torch.from_numpy(atoms.positions.copy())
    use_backend(potential, "reference")
    programs = Programs(potential)
    for n_counted in (5, 64, None, 0, 1):
        expected = derivatives(potential, graphs, positions, n_counted=n_counted)
        found = programs(graphs, positions, vectors, n_counted=n_counted)
        assert len(found.node_energy) == (64 if n_counted is None else n_counted)
        for one, other in zip(found, (expected.node_energy, expected.forces, expected.node_virial)):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_elements_that_are_absent_change_nothing():
    """A model of six species on two: tables of pairs are made for those present, energies are those of the reference."""
    atoms = crystal()
    torch.manual_seed(0)
    model = MODELS["mace, residual density, agnesi"]([1, 6, 8, 11, 17, 29])
    potential = Potential([model]).double().requires_grad_(False)
    use_backend(potential, "reference")
    programs = Programs(potential)
    for structure in (atoms, molecule("CH3CH2OH"), atoms):
        arguments = graph_of(structure)
        assert_equal(programs(*arguments), derivatives(potential, *arguments[:2]), 1e-11)


def test_two_python_threads_at_once():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        jobs = []
        for name in ("mace", "nequip"):
            potential = potential_of(MODELS[name], crystal())
            arguments = graph_of(crystal(2))
            programs = Programs(potential)
            jobs.append((programs, arguments, programs(*arguments).forces))
        wrong = []

        def work(programs, arguments, expected):
            for _ in range(30):
                if not torch.equal(programs(*arguments).forces, expected):
                    wrong.append(1)

        threads = [threading.Thread(target=work, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not wrong and not any(thread.is_alive() for thread in threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        programs = Programs(potential_of(MODELS["nequip"], crystal()))
        arguments = graph_of(crystal(2))
        expected = programs(*arguments).forces
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: what is tested
            child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(programs(*arguments).forces, expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


class _Cubic(nn.Module):
    """Two steps that no kernel has: x * x and a sum over neighbours made by hand."""

    def __init__(self, species, cutoff=CUTOFF):
        super().__init__()
        self.index, self.cutoff, self.species = SpeciesIndex(species), cutoff, tuple(species)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, graph, vectors):
        energy = (self.cutoff - vectors.norm(dim=1)) ** 3 * self.weight
        return energy.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], energy)


def test_a_model_of_ones_own_runs_in_torch():
    potential = Potential([_Cubic([11, 17])]).double().requires_grad_(False)
    programs = Programs(potential)
    arguments = graph_of(crystal())
    assert_equal(programs(*arguments), derivatives(potential, *arguments[:2]), 1e-14)
    assert list(programs.in_torch) == ["_Cubic"]


def plan_of(name: str, species=(11, 17)):
    model = MODELS[name](list(species)).double().requires_grad_(False)
    trace = Trace(species)
    with torch.no_grad():
        return make_plan(trace, model(*trace.inputs()))


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_a_stage_read_nothing_of_other_atoms_from_the_same_stage(name):
    """What a convolution reads of neighbours was written in an earlier stage, and what it adds up is read in a later one."""
    plan = plan_of(name)
    written, stages = {}, [step.stage for step in plan.steps]
    assert stages == sorted(stages) and max(stages) == plan.n_stages - 1
    for step in plan.steps:
        if "conv" in step.kind:
            n_in = len(step.fixed["paths"].irreps_in) if step.fixed["rows"] is None else 0
            assert all(written[view.buffer] < step.stage for view in step.reads[:n_in])
        if step.kind == "total":
            assert written[step.reads[0].buffer] < step.stage
        written |= {view.buffer: step.stage for view in step.writes}


@pytest.mark.parametrize("name", MODELS)
def test_arena_gives_no_number_to_two_buffers_at_once(name):
    plan = plan_of(name)
    places, size = arena(plan)
    uses = {buffer: [] for buffer in places}
    for k, step in enumerate(plan.steps):
        for view in (*step.reads, *step.writes):
            if view.buffer in uses:
                uses[view.buffer].append(k)
    owner = np.full((len(plan.steps), size), -1)
    for buffer, start in places.items():
        part = owner[min(uses[buffer]) : max(uses[buffer]) + 1, start : start + plan.rows[buffer]]
        assert part.shape[1] == plan.rows[buffer] and (part == -1).all()
        part[:] = buffer


def test_trace_refuses_what_it_does_not_know():
    graph, vectors = Trace([14]).inputs()
    for act in (
        lambda: vectors.sum(),
        lambda: graph.edge_index,
        lambda: torch.exp(vectors),
        lambda: vectors[:, 0],
        lambda: torch.ones(3).index_select(0, vectors),
    ):
        with pytest.raises(Untraceable):
            act()


@pytest.mark.parametrize("name", MODELS)
def test_descriptors_on_the_way_to_the_energy(name):
    """What a program keeps is what the model gives, for any size that follows; energies and forces stay the same.

    The tolerance of the latter: linear maps that a kept value stands between are not merged.
    """
    potential = potential_of(MODELS[name], crystal())
    use_backend(potential, "reference")
    programs, plain = Programs(potential, descriptors=True), Programs(potential)
    for cells, seed in ((2, 0), (1, 1)):
        graphs, positions, vectors = graph_of(crystal(cells, seed))
        found = programs(graphs, positions, vectors)
        described = programs.last_descriptors(graphs, vectors).clone()
        expected = potential.descriptors(graphs, vectors)
        torch.testing.assert_close(described, expected, rtol=0, atol=1e-11 * expected.abs().max().item())
        assert_equal(found, plain(graphs, positions, vectors), 1e-12)
        programs(graphs, positions, vectors, gradient=False)
        assert torch.equal(programs.last_descriptors(graphs, vectors), described)
    (program,) = programs._of_atoms(graphs[0].numbers)[2]
    assert program.plan.descriptors and not plain._of_atoms(graphs[0].numbers)[2][0].plan.descriptors


class Elsewhere(NequIP):
    """Its descriptors are not what its energy is made of."""

    def descriptors(self, graph, vectors):
        return super().descriptors(graph, 0.5 * vectors)

    def forward(self, graph, vectors):
        return self.readout([NequIP.descriptors(self, graph, vectors)[:, None]])[0].flatten()


class Further(SchNet):
    """Its descriptors go one step beyond what its energy needs."""

    def descriptors(self, graph, vectors):
        return torch.tanh(super().descriptors(graph, vectors))

    def forward(self, graph, vectors):
        return self.readout(SchNet.descriptors(self, graph, vectors)).squeeze(1)


@pytest.mark.parametrize("cls", [Elsewhere, Further])
def test_descriptors_that_the_energy_does_not_need_are_computed_in_torch(cls, caplog):
    atoms = crystal()
    torch.manual_seed(0)
    potential = Potential(cls(sorted(set(atoms.numbers.tolist())), CUTOFF, 10.0)).double().requires_grad_(False)
    use_backend(potential, "reference")
    programs = Programs(potential, descriptors=True)
    graphs, positions, vectors = graph_of(atoms)
    with caplog.at_level("INFO"):
        assert_equal(programs(graphs, positions, vectors), derivatives(potential, graphs, positions), 1e-11)
    assert f"descriptors of {cls.__name__} are computed in torch" in caplog.text and not programs.in_torch
    torch.testing.assert_close(programs.last_descriptors(graphs, vectors), potential.descriptors(graphs, vectors))
