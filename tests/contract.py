"""What every model must do: inherit ModelContract, define make_model(dtype) -> model with weights from a fixed seed.

    class TestMyModel(ModelContract):
        def make_model(self, dtype):
            torch.manual_seed(0)
            return MyModel((1, 6, 8), 4.0, ...).to(dtype)

The model should be small (all of it runs in seconds) and know at least two species; its cutoff should exceed 3.7 A, so
that the crystal of contract_structures.py is smaller than it. Everything is float64 unless a test says otherwise; on
CUDA under `-m gpu`. tests/test_contract.py shows each test fail.

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
from contract_structures import (
    STRUCTURES,
    batch,
    crystal,
    deviation,
    energies,
    evaluate,
    molecule,
    moved,
    one_atom_cell,
    rotation,
    transformed,
)
from contract_symmetries import Symmetries

from ase_equinn.derivatives import derivatives, hessian
from ase_equinn.graph import check_atoms, edge_vectors, from_atoms
from ase_equinn.potential import Potential

STEP = 1e-4  # A, or strain, of finite differences
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}  # f' = sum_k c_k f(x + k h) / h + O(h^4)


def loss_of(potential, structures) -> torch.Tensor:
    """An energy and force loss that no symmetry makes stationary."""
    results = derivatives(potential, *batch(potential, structures), training=True)
    return (results.energy - 1.0).square().sum() + (results.forces - 0.1).square().sum()


@functools.cache
def shared_potential(contract: type, device: str) -> Potential:
    return Potential(contract().make_model(torch.float64)).to(device)


class ModelContract(Symmetries):
    def make_model(self, dtype: torch.dtype) -> torch.nn.Module:
        raise NotImplementedError

    @pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def potential(self, request) -> Potential:
        """Shared by the tests of a class: one that changes it takes a copy."""
        return shared_potential(type(self), request.param)

    @pytest.fixture(params=STRUCTURES)
    def atoms(self, request, potential) -> Atoms:
        return STRUCTURES[request.param](potential.species)

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
