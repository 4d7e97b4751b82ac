"""Every test of the contract can fail: each broken model has one defect and is caught by the tests named for it."""

import inspect

import broken_models as broken
import pytest
import torch
from contract import ModelContract
from contract_structures import STRUCTURES, crystal, molecule, one_atom_cell

from ase_equinn import derivatives, potential
from ase_equinn.potential import Potential

ROTATION = ("test_rotation_and_reflection", dict(atoms="molecule", determinant=1))
REFLECTION = ("test_rotation_and_reflection", dict(atoms="molecule", determinant=-1))
INVERSION = ("test_inversion_of_a_molecule_turns_the_forces", {})
PERMUTATION = ("test_permutation", dict(make=molecule))
WRAPPING = ("test_lattice_vectors_added_to_atoms_change_nothing", {})
SUPERCELL = ("test_supercell", dict(make=crystal))
TINY = ("test_supercell", dict(make=one_atom_cell))
DESCRIPTORS = ("test_descriptors_are_invariant", dict(atoms="crystal"))
BATCH = ("test_a_batch_equals_its_structures", {})
CLUSTERS = ("test_far_clusters_add", {})
ISOLATED = ("test_isolated_atoms_have_the_recorded_energy_and_no_force", {})
CENTRE = ("test_edges_belong_to_their_centre", {})
ELEMENTS = ("test_energy_depends_on_elements", {})
FORCES = ("test_forces_are_minus_the_gradient", dict(atoms="slab"))
STRESS = ("test_stress_is_the_strain_gradient", dict(make=one_atom_cell))
HESSIAN = ("test_hessian_is_the_gradient_of_the_forces", {})
CUTOFF = ("test_energy_and_forces_are_continuous_at_the_cutoff", {})
LEARNS = ("test_every_parameter_learns", {})
FORCE_LOSS = ("test_gradient_of_a_force_loss", {})
UNCHANGED = ("test_nothing_global_and_no_input_changes", {})
FILES = ("test_copies_and_files_give_identical_numbers", dict(dtype=torch.float32))
REBUILD = ("test_hyperparameters_rebuild_the_model", {})
FLOAT32 = ("test_float32_is_close_to_float64", {})
TRANSLATION = ("test_translation", dict(atoms="molecule"))
UNKNOWN = ("test_unknown_elements_are_refused", {})

CAUGHT = {
    broken.Anisotropic: [ROTATION, REFLECTION],
    broken.Chiral: [REFLECTION, INVERSION],
    broken.CountsImages: [WRAPPING, SUPERCELL, TINY],
    broken.KnowsTheVolume: [SUPERCELL, TINY, ISOLATED, STRESS],
    broken.KnowsTheOrder: [PERMUTATION, BATCH, CLUSTERS],
    broken.CapsNeighbours: [SUPERCELL],
    broken.NormalisesTheBatch: [BATCH],
    broken.NormalisesTheStructure: [CLUSTERS],
    broken.CentreIsSender: [CENTRE],
    broken.MeanOverNeighbours: [ISOLATED, CUTOFF],
    broken.SeesWhetherThereAreEdges: [BATCH, CENTRE],
    broken.LinearCutoff: [CUTOFF],
    broken.NoCutoff: [CUTOFF],
    broken.Detached: [FORCES, STRESS, HESSIAN],
    broken.SingleInside: [FORCES, STRESS, HESSIAN],
    broken.WrongSecondDerivative: [HESSIAN, FORCE_LOSS],
    broken.UnusedParameter: [LEARNS],
    broken.ElementBlind: [ELEMENTS],
    broken.AnyElement: [UNKNOWN],
    broken.Forgetful: [FILES, REBUILD],
    broken.WrongHyperparameters: [FILES, REBUILD],
    broken.Random: [UNCHANGED, FILES],
    broken.Reseeds: [UNCHANGED],
    broken.WritesIntoItsInput: [UNCHANGED],
    broken.AlwaysDouble: [FLOAT32],
    broken.RoughInSingle: [FLOAT32],
    broken.VectorDescriptors: [DESCRIPTORS],
}
CASES = [(model, *test) for model, tests in CAUGHT.items() for test in tests]


def run(model_class, name, arguments, monkeypatch, tmp_path):
    """One test of the contract for one model."""

    class Contract(ModelContract):
        def make_model(self, dtype):
            torch.manual_seed(0)
            return model_class().to(dtype)

    place = (model_class.__module__, model_class.__qualname__)
    monkeypatch.setattr(potential, "ARCHITECTURES", {"toy": place})
    test, built = getattr(Contract(), name), Potential(Contract().make_model(torch.float64))
    arguments = dict(arguments)
    if "atoms" in arguments:
        arguments["atoms"] = STRUCTURES[arguments["atoms"]](built.species)
    if "tmp_path" in inspect.signature(test).parameters:
        arguments["tmp_path"] = tmp_path
    test(built, **arguments)


@pytest.mark.parametrize("model, name, arguments", CASES, ids=lambda x: getattr(x, "__name__", None))
def test_a_defect_is_caught(model, name, arguments, monkeypatch, tmp_path):
    with pytest.raises((AssertionError, pytest.fail.Exception, potential.PotentialFileError)):
        run(model, name, arguments, monkeypatch, tmp_path)


@pytest.mark.parametrize("name, arguments", [ROTATION, REFLECTION, TRANSLATION, FILES])
def test_the_sound_model_passes(name, arguments, monkeypatch, tmp_path):
    run(broken.Sound, name, arguments, monkeypatch, tmp_path)


def test_positions_in_single_precision_break_translation(monkeypatch, tmp_path):
    exact = derivatives.edge_vectors
    monkeypatch.setattr(derivatives, "edge_vectors", lambda g, positions: exact(g, positions.float().double()))
    with pytest.raises(AssertionError):
        run(broken.Sound, *TRANSLATION, monkeypatch, tmp_path)


def test_every_test_of_the_contract_is_shown_to_fail():
    shown = {name for _, name, _ in CASES} | {TRANSLATION[0]}
    assert shown == {name for name in dir(ModelContract) if name.startswith("test_")}
