"""A calculator that says how uncertain forces are, and acts on it."""

import json
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read
from calculator_toys import crystal, toy_potential

from ase_equinn import EquiCalculator, NequIP, Potential
from ase_equinn.calculator_guard import WARN_EVERY, UncertainForces, UncertaintyWarning
from ase_equinn.md import md
from ase_equinn.runfiles import RunError
from ase_equinn.uncertainty import Scale, Uncertainty


def centred(potential: Potential, atoms, largest=0.4) -> Potential:
    """Uncertainties that are the distance, in units of 0.1, from the descriptors of these atoms."""
    descriptors = torch.from_numpy(EquiCalculator(potential, device="cpu", dtype="float64").get_descriptors(atoms))
    species, numbers = potential.species, torch.from_numpy(atoms.numbers.copy())
    centres = {z: descriptors[numbers == z] for z in species}
    widths = {z: torch.full((descriptors.shape[1],), 0.1) for z in species}
    potential.uncertainty = Uncertainty(centres, widths, Scale(1e-4, 1.0, 1.0, dict.fromkeys(species, 1.0)), largest)
    return potential


@pytest.fixture
def toy():
    return centred(toy_potential(), crystal())


@pytest.fixture(scope="module")
def nequip():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return centred(Potential(NequIP([6, 14], 3.5, 10.0, irreps_hidden="8x0e+8x1o")), crystal())


def squeezed(factor=0.9):
    atoms = crystal()
    atoms.set_cell(factor * atoms.cell, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-6), ("float32", 1e-3)])
def test_sigma_is_that_of_the_descriptors(nequip, backend, dtype, tolerance):
    """Natively and in torch; centres are stored as float32."""
    calc = EquiCalculator(nequip, device="cpu", dtype=dtype, backend=backend)
    for atoms in (squeezed(), squeezed(0.95), squeezed().repeat((2, 1, 1))):
        found = calc.get_property("forces_sigma", atoms)
        numbers, descriptors = torch.from_numpy(atoms.numbers.copy()), torch.from_numpy(calc.get_descriptors(atoms))
        np.testing.assert_allclose(found, nequip.uncertainty.sigma(numbers, descriptors).numpy(), rtol=tolerance)
        assert found.shape == (len(atoms),) and found.dtype == np.float64 and found.min() > 1e-3
        assert {"forces", "forces_sigma"} < set(calc.results)
    near = calc.get_property("forces_sigma", crystal())
    assert near.max() < 0.01 * found.max()


def test_only_where_it_is_asked_for(toy):
    atoms = squeezed()
    calc = EquiCalculator(toy, device="cpu")
    assert "forces_sigma" in calc.implemented_properties
    calc.get_forces(atoms)
    assert "forces_sigma" not in calc.results
    calc.set(guard="warn", guard_threshold=1e6)
    calc.get_potential_energy(atoms)
    assert "forces_sigma" in calc.results and "forces" not in calc.results
    bare = EquiCalculator(toy_potential(), device="cpu")
    assert "forces_sigma" not in bare.implemented_properties
    with pytest.raises(PropertyNotImplementedError, match="equinn calibrate gives it some"):
        bare.get_property("forces_sigma", atoms)


def test_stop_names_the_atoms_and_saves_the_structure(toy, tmp_path):
    atoms, path = squeezed(), tmp_path / "folder/frame.xyz"
    plain = EquiCalculator(toy, device="cpu", dtype="float64")
    sigma = plain.get_property("forces_sigma", atoms)
    worst = int(sigma.argmax())
    threshold = float(np.sort(sigma)[-2:].mean())
    calc = EquiCalculator(toy, device="cpu", dtype="float64", guard="stop", guard_threshold=threshold, guard_file=path)
    symbol = atoms.symbols[worst]
    message = rf"forces on 1 of 4 atoms are uncertain by more than .* eV/A: atom {worst} \({symbol}\) .*frame.xyz"
    with pytest.raises(UncertainForces, match=message):
        calc.get_forces(atoms)
    assert not calc.results and [p.name for p in path.parent.iterdir()] == ["frame.xyz"]
    saved = read(path)
    np.testing.assert_allclose(saved.arrays["forces_sigma"], sigma, rtol=1e-6)
    np.testing.assert_allclose(saved.get_forces(), plain.get_forces(atoms), atol=1e-7)
    np.testing.assert_allclose(saved.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(saved.cell, atoms.cell, atol=1e-7)
    known = crystal()
    known.calc = calc
    assert np.isfinite(known.get_forces()).all()  # the calculator goes on elsewhere
    with pytest.raises(UncertainForces):
        calc.get_forces(squeezed())


def test_a_file_that_cannot_be_written_is_not_silent(toy, tmp_path):
    (tmp_path / "file").write_text("")
    calc = EquiCalculator(toy, device="cpu", guard="stop", guard_threshold=1e-3, guard_file=tmp_path / "file/x.xyz")
    with pytest.raises(OSError):
        calc.get_forces(squeezed())


def test_warnings_come_once_in_a_while(toy):
    atoms = squeezed()
    calc = EquiCalculator(toy, device="cpu", guard="warn", guard_threshold=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(WARN_EVERY + 2):
            atoms.positions[0, 0] += 1e-5
            assert np.isfinite(calc.get_forces(atoms)).all()
    assert [warning.category for warning in caught] == [UncertaintyWarning] * 2
    assert "forces on 4 of 4 atoms" in str(caught[0].message)


def test_threshold_of_its_own(toy):
    """Twice the largest sigma of the validation set."""
    calc = EquiCalculator(toy, device="cpu", guard="stop")
    assert calc._guard.threshold == 2 * 0.4
    assert calc.todict()["guard"] == "stop" and "guard_threshold" not in calc.todict()
    json.dumps(calc.todict())
    twin = pickle.loads(pickle.dumps(calc))
    assert twin._guard.threshold == 0.8 and twin.parameters == calc.parameters
    calc.set(guard=None)
    assert calc._guard is None


WRONG = [
    (dict(guard="stopp"), "guard must be one of 'warn', 'stop', got 'stopp'"),
    (dict(guard=True), "guard must be one of"),
    (dict(guard="warn", guard_threshold=0.0), "guard_threshold must be a positive number of eV/A, got 0.0"),
    (dict(guard="warn", guard_threshold=float("nan")), "got nan"),
    (dict(guard="warn", guard_threshold="1"), "got '1'"),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=lambda x: str(x)[:40])
def test_arguments_that_have_no_meaning(toy, arguments, message):
    with pytest.raises(ValueError, match=message):
        EquiCalculator(toy, device="cpu", **arguments)


def test_a_guard_needs_something_to_look_at():
    with pytest.raises(ValueError, match="needs a potential with uncertainties"):
        EquiCalculator(toy_potential(), device="cpu", guard="warn")
    with pytest.raises(ValueError, match="needs a guard_threshold"):
        EquiCalculator([toy_potential(0), toy_potential(1)], device="cpu", guard="stop")


def test_a_committee_is_judged_by_its_spread(tmp_path):
    members = [toy_potential(0), toy_potential(1)]
    plain = EquiCalculator(members, device="cpu")
    spread = np.linalg.norm(plain.get_property("forces_std", crystal()), axis=1)
    np.testing.assert_array_equal(plain.get_property("forces_sigma", crystal()), spread)
    for factor, stops in ((1.01, False), (0.99, True)):
        calc = EquiCalculator(
            members, device="cpu", guard="stop", guard_threshold=factor * spread.max(), guard_file=tmp_path / "x.xyz"
        )
        calc.get_potential_energy(crystal())  # no forces, no spread of theirs
        if stops:
            with pytest.raises(UncertainForces, match="forces on 1 of 4 atoms"):
                calc.get_forces(crystal())
        else:
            assert calc.get_forces(crystal()).shape == (4, 3)
    assert os.listdir(tmp_path) == ["x.xyz"]


def test_molecular_dynamics_stops(toy, tmp_path):
    atoms = crystal()
    atoms.set_velocities(np.full((4, 3), 0.05) * [[1], [-1], [1], [-1]])
    calc = EquiCalculator(toy, device="cpu", guard="stop", guard_threshold=0.5, guard_file=tmp_path / "x.xyz")
    with pytest.raises(RunError, match=r"after step \d+: UncertainForces: forces on .* is in .*x\.xyz .*holds step 0"):
        md(atoms, calc, steps=100, output=tmp_path / "run")
    assert len(read(tmp_path / "x.xyz")) == 4
