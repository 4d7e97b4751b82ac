"""A committee of potentials: mean and sample standard deviation of every result, wherever ASE may look for them."""

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read, write
from ase.io.trajectory import Trajectory
from calculator_toys import DEVICES, crystal, molecule, slab, toy_potential
from toy import Pair

from ase_equinn.calculator import EquiCalculator
from ase_equinn.potential import Potential

MEANS = ("energy", "free_energy", "energies", "forces", "stress", "stresses")
STD = {"energy": "energy_std", "forces": "forces_std", "stress": "stress_std"}


def calculator(model, device="cpu"):
    return EquiCalculator(model, device=device, dtype="float64")


@pytest.mark.parametrize("device", DEVICES)
def test_mean_and_spread_of_different_members(device):
    """Members with other weights and other cutoffs, against numpy over calculators of their own."""
    members = [toy_potential(0), toy_potential(1, scale=0.7), toy_potential(2, cutoffs=(4.0, 4.5))]
    committee, atoms = calculator(members, device), crystal()
    single = [calculator(member) for member in members]
    for name in MEANS:
        values = np.array([calc.get_property(name, atoms) for calc in single])
        np.testing.assert_allclose(committee.get_property(name, atoms), values.mean(0), rtol=0, atol=1e-11)
        if name in STD:
            expected = np.sqrt(((values - values.mean(0)) ** 2).sum(0) / (3 - 1))
            found = committee.get_property(STD[name], atoms)
            assert np.shape(found) == np.shape(values[0]) and np.min(found) > 1e-6
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
            np.testing.assert_array_equal(committee.results[STD[name]], found)
    assert isinstance(committee.results["energy_std"], float) and isinstance(committee.results["energy"], float)


def test_spread_of_one_potential_times_1_2_and_4():
    """x_m = f_m x: mean 7/3 x and standard deviation sqrt(((4/3)^2 + (1/3)^2 + (5/3)^2) / 2) |x| in the unit of x."""
    committee = calculator([toy_potential(scale=factor) for factor in (1.0, 2.0, 4.0)])
    one, atoms = calculator(toy_potential()), crystal()
    for name, std in STD.items():
        x = one.get_property(name, atoms)
        np.testing.assert_allclose(committee.get_property(name, atoms), 7 / 3 * x, rtol=1e-12)
        np.testing.assert_allclose(committee.get_property(std, atoms), np.sqrt(7 / 3) * np.abs(x), rtol=1e-12)


def test_equal_members_agree():
    committee, one, atoms = calculator([toy_potential()] * 2), calculator(toy_potential()), crystal()
    for name in MEANS:
        np.testing.assert_array_equal(committee.get_property(name, atoms), one.get_property(name, atoms))
    assert committee.get_property("energy_std", atoms) == 0.0 and not committee.results["forces_std"].any()


def test_energy_spread_needs_no_gradient_and_is_cached():
    committee, atoms = calculator([toy_potential(0), toy_potential(1)]), crystal()
    spread = committee.get_property("energy_std", atoms)
    assert set(committee.results) == {"energy", "free_energy", "energies", "energy_std"}
    assert committee.get_property("energy_std", atoms) == spread and committee.timings["count"] == 1
    committee.get_property("forces_std", atoms)
    committee.get_property("stress_std", atoms)
    assert committee.timings["count"] == 2
    atoms.positions[0, 0] += 0.1
    assert committee.get_property("energy_std", atoms) != spread


def test_stress_spread_only_where_there_is_stress():
    committee = calculator([toy_potential(0), toy_potential(1)])
    assert committee.get_property("forces_std", slab()).shape == (4, 3)
    assert "stress_std" not in committee.results
    with pytest.raises(PropertyNotImplementedError, match="pbc=True"):
        committee.get_property("stress_std", slab())


@pytest.mark.parametrize("model", [toy_potential(), [toy_potential()]], ids=["potential", "list of one"])
def test_one_potential_has_no_spread(model):
    calc = calculator(model)
    calc.get_forces(crystal())
    assert set(calc.results) == set(MEANS) == set(calc.implemented_properties)
    with pytest.raises(
        PropertyNotImplementedError, match=r"forces_std needs a committee: EquiCalculator\(\[first, second"
    ):
        calc.get_property("forces_std", crystal())


def test_set_turns_one_into_a_committee_and_back():
    calc = calculator(toy_potential())
    calc.set(model=[toy_potential(0), toy_potential(1)])
    assert "energy_std" in calc.implemented_properties and calc.get_property("energy_std", crystal()) > 0
    calc.set(model=toy_potential())
    assert "energy_std" not in calc.implemented_properties
    assert "energy_std" not in EquiCalculator.implemented_properties


def test_only_common_elements_are_known():
    committee = calculator([toy_potential(), Potential(Pair([6, 8], 4.0)).double()])
    with pytest.raises(ValueError, match=r"atom 2 has atomic number 14 \(Si\); supported: C$"):
        committee.get_potential_energy(molecule())


def test_hessian_and_descriptors_of_all_members():
    members = [toy_potential(0), toy_potential(1)]
    committee, single = calculator(members), [calculator(member) for member in members]
    hessians = [calc.get_hessian(molecule()) for calc in single]
    np.testing.assert_allclose(committee.get_hessian(molecule()), np.mean(hessians, axis=0), rtol=0, atol=1e-12)
    side_by_side = np.concatenate([calc.get_descriptors(molecule()) for calc in single], axis=1)
    np.testing.assert_array_equal(committee.get_descriptors(molecule()), side_by_side)


def test_files_of_ase_take_a_committee(tmp_path):
    """ASE writes the properties it has names for; the others stay in `results`."""
    atoms = crystal()
    atoms.calc = calculator([toy_potential(0), toy_potential(1)])
    forces = atoms.get_forces()
    assert set(atoms.calc.export_properties()) == {"natoms", *MEANS}
    write(tmp_path / "a.xyz", atoms)
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    for name in ("a.xyz", "a.traj"):
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, rtol=0, atol=1e-7)
    assert {"energy_std", "forces_std", "stress_std"} <= set(atoms.calc.results)
