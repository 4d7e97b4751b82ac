"""The part of tests/contract.py that compares a model with itself: symmetries, and what its energy is a sum over."""

import numpy as np
import pytest
import torch
from ase import Atoms
from contract_structures import (
    batch,
    crystal,
    deviation,
    energies,
    evaluate,
    molecule,
    moved,
    one_atom_cell,
    rotation,
    slab,
    transformed,
)

from ase_equinn.graph import Graph, edge_vectors
from ase_equinn.potential import Potential


class Symmetries:
    """Needs the fixtures `potential` and `atoms`."""

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
        structures = [
            none,
            molecule(species),
            lone,
            crystal(species),
            none,
            slab(species),
            one_atom_cell(species),
            none,
        ]
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
