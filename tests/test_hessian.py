"""Second derivatives through the calculator: against differences of its forces and against ase.vibrations."""

import numpy as np
import pytest
import torch
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from ase.vibrations.data import VibrationsData
from calculator_toys import DEVICES, SPECIES, STRUCTURES, crystal, molecule, toy_potential
from toy import Pair

from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.nequip import NequIP
from ase_equinn.potential import Potential


@pytest.fixture(scope="module", params=DEVICES)
def calc(request):
    return EquiCalculator(toy_potential(), device=request.param, dtype="float64")


def numerical(calc, atoms, step=1e-4):
    """-dF/dr by central differences, good to about 1e-7 of the largest element here."""
    rows = []
    for atom in range(len(atoms)):
        for x in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, x] += sign * step
                forces.append(calc.get_forces(moved).ravel())
            rows.append((forces[1] - forces[0]) / (2 * step))
    return np.array(rows)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_hessian_is_the_derivative_of_the_forces(calc, kind):
    atoms = STRUCTURES[kind]()
    n, found = len(atoms), calc.get_hessian(atoms)
    assert found.shape == (3 * n, 3 * n) and found.dtype == np.float64
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, numerical(calc, atoms), rtol=0, atol=1e-6 * max(np.abs(found).max(), 1e-3))
    np.testing.assert_allclose(found.reshape(3 * n, n, 3).sum(1), 0, atol=1e-11)  # a shift of all atoms costs nothing


def test_hessian_of_a_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = Potential(NequIP(SPECIES, 3.5, 10.0, irreps_hidden="4x0e+4x1o+2x2e", radial_mlp=(8,)).double())
    calc, atoms = EquiCalculator(potential, dtype="float64", device="cpu"), crystal()
    found = calc.get_hessian(atoms)
    np.testing.assert_allclose(found, numerical(calc, atoms), rtol=0, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("indices", [[1, 3], [3, 1], [-1], [True, False, True, False], np.array([2]), []], ids=str)
def test_chosen_atoms_are_a_block_of_the_whole(calc, indices):
    whole = calc.get_hessian(crystal()).reshape(4, 3, 4, 3)
    atoms = np.arange(4)[np.asarray(indices, dtype=None if len(indices) else int)]
    found = calc.get_hessian(crystal(), indices=indices)
    expected = whole[atoms][:, :, atoms].reshape(3 * len(atoms), 3 * len(atoms))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_bad_index(calc):
    with pytest.raises(ValueError, match="index 4 is not an atom: there are 4"):
        calc.get_hessian(crystal(), indices=[0, 4])


def test_float32_is_close():
    """Round-off 6e-8 times the cancellation between pair terms; the results of energy requests are not disturbed."""
    atoms = crystal()
    single, double = (EquiCalculator(toy_potential(), device="cpu", dtype=d) for d in ("float32", "float64"))
    energy = single.get_potential_energy(atoms)
    found, expected = single.get_hessian(atoms), double.get_hessian(atoms)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert single.get_potential_energy(atoms) == energy and single.timings["count"] == 1


def relaxed_molecule():
    """A compact one of four atoms, bound by Morse pairs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = Potential(Pair(SPECIES, 5.0))
    atoms = molecule()
    atoms.calc = EquiCalculator(potential, device="cpu", dtype="float64")
    assert BFGS(atoms, logfile=None).run(fmax=1e-7, steps=500)
    return atoms


def test_frequencies_of_a_molecule_are_those_of_finite_differences(tmp_path):
    atoms = relaxed_molecule()
    # four-point differences: relative error about (0.005 A / 1 A)^4
    numeric = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.005, nfree=4)
    numeric.run()
    data = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms))
    found, expected = data.get_frequencies(), numeric.get_frequencies()
    assert (np.abs(found[:6]) < 0.5).all()  # translations and rotations, 1/cm
    assert (found[6:].real > 50).all() and not found[6:].imag.any()
    np.testing.assert_allclose(found[6:].real, expected[6:].real, rtol=1e-5)


def test_frequencies_with_atoms_held(tmp_path):
    atoms = relaxed_molecule()
    numeric = Vibrations(atoms, indices=[0, 2], name=str(tmp_path / "vib"), delta=0.005, nfree=4)
    numeric.run()
    data = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms, indices=[0, 2]), indices=[0, 2])
    found, expected = data.get_frequencies(), numeric.get_frequencies()
    assert abs(found[0]) < 0.5  # the rotation about the axis of the two held atoms
    assert (found[1:].real > 50).all()
    np.testing.assert_allclose(found[1:].real, expected[1:].real, rtol=1e-5)
