"""What every model must do: inherit ModelContract, define make_model(dtype) -> model with weights from a fixed seed.

    class TestMyModel(ModelContract):
        def make_model(self, dtype):
            torch.manual_seed(0)
            return MyModel((1, 6, 8), 4.0, ...).to(dtype)

The model should be small (all of it runs in seconds) and know at least two species; its cutoff should exceed 3.7 A, so
that the crystal below is smaller than it. Everything is float64 unless a test says otherwise; on CUDA under `-m gpu`.
Round-off of such models is near 1e-14 of the largest force; tolerances of 1e-10 leave room for deep networks and stay
far below any real defect. Finite differences (step 1e-4 A, fourth order) are good to about 1e-9.
"""

import copy
import functools
import json
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_equinn.derivatives import derivatives, energy_only, hessian
from ase_equinn.graph import Graph, check_atoms, collate, edge_vectors, from_atoms
from ase_equinn.potential import Potential

STEP = 1e-4  # A, or strain, of finite differences
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}  # f' = sum_k c_k f(x + k h) / h + O(h^4)


def molecule(species) -> Atoms:
    """Seven atoms without symmetry, 1.0 to 3.6 A apart, every species among them."""
    positions = [[0, 0, 0], [1.1, 0.1, 0.2], [-0.4, 1.2, 0.1], [0.1, -0.9, 1.2], [1.9, 1.1, 0.4], [2.1, -0.3, -0.9],
                 [0.6, 0.7, -1.3]]  # fmt: skip
    return Atoms(np.resize(species, 7), positions)


def crystal(species) -> Atoms:
    """Four atoms without symmetry in a triclinic cell with edges of 3.1 to 3.7 A, less than the cutoff."""
    cell = [[3.1, 0.2, -0.3], [0.4, 3.4, 0.1], [-0.2, 0.5, 3.6]]
    scaled = [[0.02, 0.01, 0.97], [0.53, 0.48, 0.03], [0.47, 0.04, 0.52], [0.01, 0.55, 0.46]]
    return Atoms(np.resize(species, 4), scaled_positions=scaled, cell=cell, pbc=True)


def slab(species) -> Atoms:
    atoms = crystal(species)
    atoms.pbc = (True, True, False)
    return atoms


def one_atom_cell(species) -> Atoms:
    """All edges join the atom to its own images."""
    return Atoms([species[0]], [[0.3, 0.2, 0.1]], cell=[[2.4, 0.1, 0.0], [-0.3, 2.2, 0.2], [0.5, 0.1, 2.6]], pbc=True)


STRUCTURES = {"molecule": molecule, "crystal": crystal, "slab": slab, "one_atom_cell": one_atom_cell}


def rotation(seed: int = 0, determinant: int = 1) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix)) * determinant


def transformed(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell multiplied by a 3 x 3 matrix that acts on column vectors."""
    return Atoms(atoms.numbers, atoms.positions @ matrix.T, cell=atoms.cell.array @ matrix.T, pbc=atoms.pbc)


def moved(atoms: Atoms, displacement) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += displacement
    return atoms


def batch(potential, structures) -> tuple[tuple[Graph, ...], torch.Tensor]:
    graphs = [collate([from_atoms(a, cutoff) for a in structures]).to(potential.device) for cutoff in potential.cutoffs]
    positions = torch.tensor(np.concatenate([a.positions for a in structures]), device=potential.device)
    return tuple(graphs), positions


def evaluate(potential, *structures):
    """Energy, forces, ... of structures evaluated together, as numpy arrays."""
    return type(results := derivatives(potential, *batch(potential, structures)))(*(x.cpu().numpy() for x in results))


def energies(potential, structures) -> np.ndarray:
    """Energy of each structure, without any gradient."""
    graphs, positions = batch(potential, structures)
    node_energy = energy_only(potential, graphs, positions)
    return node_energy.new_zeros(len(structures)).index_add(0, graphs[0].batch, node_energy).cpu().numpy()


def deviation(actual, expected) -> float:
    """Largest difference relative to the largest expected value, which has to be large enough to mean something."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape and actual.size
    assert np.isfinite(actual).all() and np.isfinite(expected).all()
    assert np.abs(expected).max() > 1e-4
    return np.abs(actual - expected).max() / np.abs(expected).max()


def loss_of(potential, structures) -> torch.Tensor:
    """An energy and force loss that no symmetry makes stationary."""
    results = derivatives(potential, *batch(potential, structures), training=True)
    return (results.energy - 1.0).square().sum() + (results.forces - 0.1).square().sum()


@functools.cache
def shared_potential(contract: type, device: str) -> Potential:
    return Potential(contract().make_model(torch.float64)).to(device)


class ModelContract:
    def make_model(self, dtype: torch.dtype) -> torch.nn.Module:
        raise NotImplementedError

    @pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def potential(self, request) -> Potential:
        """Shared by the tests of a class: one that changes it takes a copy."""
        return shared_potential(type(self), request.param)

    @pytest.fixture(params=STRUCTURES)
    def atoms(self, request, potential) -> Atoms:
        return STRUCTURES[request.param](potential.species)

    # Symmetries

    @pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
    def test_rotation_and_reflection(self, potential, atoms, determinant):
        matrix = rotation(determinant=determinant)
        before, after = evaluate(potential, atoms), evaluate(potential, transformed(atoms, matrix))
        assert deviation(after.node_energy, before.node_energy) < 1e-10
        assert deviation(after.virial, matrix @ before.virial @ matrix.T) < 1e-10
        assert np.abs(after.forces - before.forces @ matrix.T).max() < 1e-10 * np.abs(before.virial).max()

    def test_inversion_of_a_molecule_turns_the_forces(self, potential):
        atoms = molecule(potential.species)
        before, after = evaluate(potential, atoms), evaluate(potential, transformed(atoms, -np.eye(3)))
        assert deviation(after.node_energy, before.node_energy) < 1e-10
        assert deviation(after.forces, -before.forces) < 1e-10

    def test_translation(self, potential, atoms):
        before, after = evaluate(potential, atoms), evaluate(potential, moved(atoms, [0.37, -5.2, 11.9]))
        assert deviation(after.node_energy, before.node_energy) < 1e-10
        assert np.abs(after.forces - before.forces).max() < 1e-10 * np.abs(before.virial).max()

    @pytest.mark.parametrize("make", [molecule, crystal])
    def test_permutation(self, potential, make):
        atoms = make(potential.species)
        order = np.random.default_rng(1).permutation(len(atoms))
        before, after = evaluate(potential, atoms), evaluate(potential, atoms[order])
        assert deviation(after.node_energy, before.node_energy[order]) < 1e-10
        assert deviation(after.forces, before.forces[order]) < 1e-10

    def test_lattice_vectors_added_to_atoms_change_nothing(self, potential):
        atoms = crystal(potential.species)
        shifts = np.random.default_rng(2).integers(-3, 4, (len(atoms), 3))
        before, after = evaluate(potential, atoms), evaluate(potential, moved(atoms, shifts @ atoms.cell.array))
        assert deviation(after.node_energy, before.node_energy) < 1e-10
        assert deviation(after.forces, before.forces) < 1e-10
        assert deviation(after.stress, before.stress) < 1e-10

    @pytest.mark.parametrize("make", [crystal, one_atom_cell])
    def test_supercell(self, potential, make):
        """The small cells are below the cutoff, their 2x2x2 supercells above it: self-images become other atoms."""
        atoms = make(potential.species)
        assert atoms.cell.lengths().max() < potential.cutoff < (2 * atoms.cell.lengths()).min()
        small, large = evaluate(potential, atoms), evaluate(potential, atoms * (2, 2, 2))
        assert deviation(large.node_energy, np.tile(small.node_energy, 8)) < 1e-10
        assert deviation(large.stress, small.stress) < 1e-10
        assert np.abs(large.forces - np.tile(small.forces, (8, 1))).max() < 1e-10 * np.abs(small.virial).max()

    def test_descriptors_are_invariant(self, potential, atoms):
        def descriptors(atoms):
            graphs, positions = batch(potential, [atoms])
            with torch.no_grad():
                return potential.descriptors(graphs, (edge_vectors(graphs[0], positions),)).cpu().numpy()

        before = descriptors(atoms)
        after = descriptors(moved(transformed(atoms, rotation(3, -1)), [1.0, 2.0, 3.0])[::-1])
        assert before.ndim == 2 and len(before) == len(atoms)
        assert deviation(after[::-1], before) < 1e-10
        squeezed = atoms.copy()
        squeezed.set_cell(0.95 * atoms.cell.array)
        squeezed.positions *= 0.95
        assert deviation(descriptors(squeezed), before) > 1e-6

    # What an energy is a sum over

    def test_a_batch_equals_its_structures(self, potential):
        species = potential.species
        lone, none = Atoms([species[0]], [[0.0, 0.0, 0.0]]), Atoms()
        structures = [none, molecule(species), lone, crystal(species), none, slab(species), one_atom_cell(species), none]
        together, single = evaluate(potential, *structures), [evaluate(potential, a) for a in structures]
        for name, values in together._asdict().items():
            assert deviation(values, np.concatenate([getattr(s, name) for s in single])) < 1e-12, name
        assert together.energy[[0, 4, 7]].tolist() == [0.0, 0.0, 0.0]

    def test_far_clusters_add(self, potential):
        first = molecule(potential.species)
        second = transformed(first[:5], rotation(4))
        pair = evaluate(potential, first + moved(second, [60.0, 0.0, 0.0]))
        one, two = evaluate(potential, first), evaluate(potential, second)
        assert deviation(pair.energy, one.energy + two.energy) < 1e-12
        assert deviation(pair.forces, np.concatenate([one.forces, two.forces])) < 1e-12

    def test_isolated_atoms_have_the_recorded_energy_and_no_force(self, potential):
        references = {number: -10.5 * number for number in potential.species}
        recorded = Potential(list(potential.models), reference_energies=references, scale=1.7, shift=0.3)
        for number in potential.species:
            vacuum = Atoms([number], [[1.0, 2.0, 3.0]])
            box = Atoms([number], cell=[30.0, 30.0, 30.0], pbc=True)
            far = Atoms([number] * 3, [[0.0, 0, 0], [20.0, 0, 0], [0, 30.0, 0]])
            bare = energies(potential, [vacuum])[0]
            results = evaluate(recorded, vacuum, box, far)
            expected = references[number] + 0.3 + 1.7 * bare
            assert recorded.isolated_energy(number) == pytest.approx(expected, abs=1e-12)
            np.testing.assert_allclose(results.energy, np.array([1, 1, 3]) * expected, rtol=1e-13)
            assert not results.forces.any() and not results.stress.any()

    def test_edges_belong_to_their_centre(self, potential):
        """One directed edge: atom 0 sees atom 1, atom 1 sees nothing."""
        a, b = potential.species[:2]
        tensors = [[a, b], np.zeros((1, 3, 3)), np.zeros((1, 3), bool), [[0], [1]], [[0, 0, 0]], [0, 1, 1], [0, 0]]
        graph = Graph(*(torch.as_tensor(x) for x in tensors), 1).to(potential.device)
        vectors = torch.tensor([[1.0, 0.5, -0.7]], dtype=torch.float64, device=potential.device)
        with torch.no_grad():
            node_energy = potential.node_energy((graph,), (vectors,)).tolist()
        assert node_energy[1] == pytest.approx(potential.isolated_energy(b), abs=1e-12)
        assert abs(node_energy[0] - potential.isolated_energy(a)) > 1e-4

    def test_energy_depends_on_elements(self, potential):
        atoms = molecule(potential.species)
        swapped = atoms.copy()
        swapped.numbers[[0, 1]] = atoms.numbers[[1, 0]]
        assert atoms.numbers[0] != atoms.numbers[1]
        assert abs(np.subtract(*energies(potential, [atoms, swapped]))) > 1e-4

    # Derivatives

    def test_forces_are_minus_the_gradient(self, potential, atoms):
        forces, displaced = evaluate(potential, atoms).forces, []
        for k in STENCIL:
            for component in range(3 * len(atoms)):
                displacement = np.zeros(3 * len(atoms))
                displacement[component] = k * STEP
                displaced.append(moved(atoms, displacement.reshape(-1, 3)))
        numeric = -np.array([*STENCIL.values()]) @ energies(potential, displaced).reshape(len(STENCIL), -1) / STEP
        assert np.abs(forces).max() > 1e-3 or len(atoms) == 1
        largest = np.abs(forces).max() if len(atoms) > 1 else 1e-3
        assert np.abs(forces - numeric.reshape(-1, 3)).max() < 1e-6 * largest

    @pytest.mark.parametrize("make", [crystal, one_atom_cell])
    def test_stress_is_the_strain_gradient(self, potential, make):
        """All nine components: an antisymmetric strain is a rotation and must give zero."""
        atoms, strained = make(potential.species), []
        for k in STENCIL:
            for component in range(9):
                strain = np.zeros(9)
                strain[component] = k * STEP
                strained.append(transformed(atoms, np.eye(3) + strain.reshape(3, 3)))
        numeric = np.array([*STENCIL.values()]) @ energies(potential, strained).reshape(len(STENCIL), -1) / STEP
        assert deviation(evaluate(potential, atoms).stress[0], numeric.reshape(3, 3) / atoms.get_volume()) < 1e-6

    def test_hessian_is_the_gradient_of_the_forces(self, potential):
        atoms = molecule(potential.species)
        displaced = [
            moved(atoms, k * STEP * np.eye(21)[component].reshape(-1, 3)) for k in STENCIL for component in range(21)
        ]
        forces = evaluate(potential, *displaced).forces.reshape(len(STENCIL), 21, 21)
        numeric = -np.tensordot([*STENCIL.values()], forces, 1) / STEP
        matrix = hessian(potential, *batch(potential, [atoms])).cpu().numpy()
        assert deviation(matrix, numeric) < 1e-6
        assert deviation(matrix, matrix.T) < 1e-10

    def test_energy_and_forces_are_continuous_at_the_cutoff(self, potential):
        """An atom leaves the sphere of another while a third sees both; steps of 1e-6 A must change little."""
        species, cutoff = potential.species, potential.cutoff

        def trimer(r):
            return Atoms(np.resize(species, 3), [[0, 0, 0], [r, 0, 0], [0.5 * cutoff, 1.1, 0]])

        inside, outside = trimer(cutoff - 1e-6), trimer(cutoff + 1e-6)
        assert from_atoms(outside, cutoff).edge_index.shape[1] == from_atoms(inside, cutoff).edge_index.shape[1] - 2
        scan = evaluate(potential, *(trimer(r) for r in np.linspace(0.8 * cutoff, 1.1 * cutoff, 60)))
        energy_range, largest_force = np.ptp(scan.energy), np.abs(scan.forces).max()
        assert energy_range > 1e-4 and largest_force > 1e-3
        near = evaluate(potential, inside, outside)
        assert abs(np.subtract(*near.energy)) < 1e-5 * energy_range + 4e-6 * largest_force
        assert np.abs(near.forces[:3] - near.forces[3:]).max() < 1e-4 * largest_force
        pair = evaluate(potential, trimer(cutoff - 1e-5)[:2], trimer(cutoff)[:2])
        assert abs(np.subtract(*pair.energy)) < 1e-8 * energy_range
        assert np.abs(pair.forces[:2]).max() < 1e-4 * largest_force and not pair.forces[2:].any()

    # Training

    def test_every_parameter_learns(self, potential):
        trained = copy.deepcopy(potential)
        loss_of(trained, [molecule(potential.species), crystal(potential.species)]).backward()
        before = {name: p.detach().clone() for name, p in trained.named_parameters() if p.numel()}
        torch.optim.SGD(trained.parameters(), lr=1e-3).step()
        assert before and all(p.requires_grad for p in trained.parameters())
        for name, parameter in trained.named_parameters():
            if parameter.numel():
                assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
                assert parameter.grad.abs().max() > 1e-12 and not torch.equal(parameter.detach(), before[name]), name

    def test_gradient_of_a_force_loss(self, potential):
        """For each parameter, along a random direction, against central differences."""
        trained, generator = copy.deepcopy(potential), torch.Generator().manual_seed(0)
        structures = [molecule(potential.species), crystal(potential.species)]
        parameters = {name: p for name, p in trained.named_parameters() if p.numel()}
        gradients = torch.autograd.grad(loss_of(trained, structures), [*parameters.values()])
        largest = max(gradient.norm().item() for gradient in gradients)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
            direction /= direction.norm()
            start, numeric = parameter.detach().clone(), 0.0
            for k, coefficient in STENCIL.items():
                parameter.data = start + k * 1e-3 * direction
                numeric += coefficient * loss_of(trained, structures).item() / 1e-3
            parameter.data = start
            exact = (gradient * direction).sum().item()
            assert abs(exact - numeric) < 1e-6 * max(abs(exact), 1e-2 * largest), name

    # State, files, precision, errors

    def test_nothing_global_and_no_input_changes(self, potential):
        atoms = crystal(potential.species)
        graphs, positions = batch(potential, [atoms])
        vectors = edge_vectors(graphs[0], positions)
        tensors = [*graphs[0][:-1], positions, vectors, torch.get_rng_state()]
        copies = [tensor.clone() for tensor in tensors]
        settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
        self.make_model(torch.float64)
        torch.set_rng_state(copies[-1])
        first = derivatives(potential, graphs, positions)
        potential.node_energy(graphs, (vectors,))
        second = derivatives(potential, graphs, positions)
        assert settings == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
        assert all(map(torch.equal, [*tensors[:-1], torch.get_rng_state()], copies))
        assert deviation(first.forces.cpu(), second.forces.cpu()) <= (1e-12 if positions.is_cuda else 0.0)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_copies_and_files_give_identical_numbers(self, potential, dtype, tmp_path):
        original = Potential(self.make_model(dtype)).to(potential.device)
        path = original.save(tmp_path / "model")
        loaded = Potential.load(path, device=str(potential.device))
        assert loaded.dtype == dtype
        structures = [molecule(potential.species), crystal(potential.species)]
        expected = evaluate(original, *structures)
        for other in (loaded, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            for name, values in evaluate(other, *structures)._asdict().items():
                assert deviation(values, getattr(expected, name)) <= (0.0 if potential.device.type == "cpu" else 1e-5)

    def test_hyperparameters_rebuild_the_model(self, potential):
        model = self.make_model(torch.float64)
        torch.manual_seed(123)
        rebuilt = type(model)(**json.loads(json.dumps(model.hyperparameters))).to(torch.float64)
        assert rebuilt.hyperparameters == model.hyperparameters
        assert isinstance(model.cutoff, float) and isinstance(model.species, tuple)
        assert (rebuilt.cutoff, rebuilt.species) == (model.cutoff, model.species)
        atoms = [molecule(model.species), crystal(model.species)]
        expected = energies(Potential(model), atoms)
        assert deviation(energies(Potential(rebuilt), atoms), expected) > 1e-6
        rebuilt.load_state_dict(model.state_dict())
        assert energies(Potential(rebuilt), atoms).tolist() == expected.tolist()

    def test_float32_is_close_to_float64(self, potential):
        single = Potential(self.make_model(torch.float32)).to(potential.device)
        structures = [molecule(potential.species), crystal(potential.species)]
        graphs, positions = batch(single, structures)
        vectors = edge_vectors(graphs[0], positions)
        for model, dtype in ((single.models[0], torch.float32), (potential.models[0], torch.float64)):
            assert model(graphs[0], vectors.to(dtype)).dtype == dtype
        low, high = evaluate(single, *structures), evaluate(potential, *structures)
        assert 0 < deviation(low.node_energy, high.node_energy) < 1e-5
        assert 0 < deviation(low.forces, high.forces) < 1e-5
        restored = evaluate(Potential(copy.deepcopy(single.models[0]).double()), *structures)
        assert deviation(restored.forces, high.forces) < 1e-5
        turned = evaluate(Potential(copy.deepcopy(single.models[0]).double()), transformed(structures[0], rotation()))
        assert deviation(turned.node_energy, restored.node_energy[:7]) < 1e-10

    def test_unknown_elements_are_refused(self, potential):
        unknown = next(z for z in range(92, 0, -1) if z not in potential.species)
        atoms = Atoms([potential.species[0], unknown], [[0, 0, 0], [1.5, 0, 0]])
        with pytest.raises(ValueError, match=f"atom 1 has atomic number {unknown}"):
            check_atoms(atoms, potential.species)
        with pytest.raises(ValueError, match=str(unknown)):
            potential.isolated_energy(unknown)
        if potential.device.type == "cpu":  # an index error on CUDA would end the process's use of the device
            with pytest.raises((ValueError, IndexError, RuntimeError)):
                evaluate(potential, atoms)
