"""torch-sim: its own acceptance tests, agreement with EquiCalculator, and batched runs beside single ones."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_equinn import EquiCalculator, Potential, SchNet
from ase_equinn.relax import RelaxSettings, relax

ts = pytest.importorskip("torch_sim", reason='torch-sim is not installed: pip install "ase_equinn[torchsim]"')

from torch_sim.models.interface import ModelInterface, validate_model_outputs  # noqa: E402

from ase_equinn.engines.torchsim import evaluate_frames, torchsim_model  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def potential():
    """All elements up to uranium, so that torch-sim's own structures can be evaluated."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SchNet(tuple(range(1, 93)), 4.0, n_channels=16, n_layers=2, n_basis=16, avg_num_neighbors=20.0)
    return Potential(model, scale=0.1)


def states():
    rattled = bulk("Si", cubic=True)
    rattled.rattle(0.1, seed=0)
    salt = bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1)
    strained = bulk("Ti")
    strained.set_cell(strained.cell.array @ (np.eye(3) + 0.03 * np.arange(9).reshape(3, 3)), scale_atoms=True)
    mirrored = bulk("Cu") * (1, 2, 1)
    mirrored.set_cell(-mirrored.cell.array, scale_atoms=True)
    return {
        "Si": bulk("Si"),
        "rattled": rattled,
        "NaCl": salt,
        "Ti": strained,
        "left": mirrored,
        "C6H6": molecule("C6H6"),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_sims_own_validation(potential, dtype):
    model = torchsim_model(potential, dtype=dtype, device="cpu")
    assert isinstance(model, ModelInterface) and model.dtype == torch.float64
    for state_dtype in (torch.float32, torch.float64):
        validate_model_outputs(model, CPU, state_dtype)


@pytest.mark.parametrize("name", states())
def test_model_equals_calculator(potential, name):
    """As torch_sim.testing.assert_model_calculator_consistency does (with 1e-5), which 0.3 has not installed."""
    atoms, model = states()[name], torchsim_model(potential, dtype="float64", device="cpu")
    calculator = EquiCalculator(potential, dtype="float64", device="cpu")
    state = ts.io.atoms_to_state([atoms], CPU, torch.float64)
    found = model(state)
    calculator.calculate(atoms, ["forces"])
    expected = calculator.results
    assert float(found["energy"]) == pytest.approx(expected["energy"], abs=1e-10)
    np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-10)
    assert ("stress" in found) == ("stress" in expected) == bool(atoms.pbc.all())
    if "stress" in found:
        voigt = [found["stress"][0][i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
        np.testing.assert_allclose(voigt, expected["stress"], atol=1e-10)
    try:
        from torch_sim.testing import assert_model_calculator_consistency
    except ImportError:
        return
    assert_model_calculator_consistency(model, calculator, state)


def test_a_batch_equals_its_structures_and_the_state_is_untouched(potential):
    crystals = [atoms for atoms in states().values() if atoms.pbc.all()]
    model = torchsim_model(potential, dtype="float64", device="cpu", max_edges=500)
    for shift in (0.0, 0.01, 0.5):  # lists are kept between calls, and searched anew
        for k, atoms in enumerate(crystals):
            atoms.rattle(shift, seed=k)
        state = ts.io.atoms_to_state(crystals, CPU, torch.float64)
        before = state.clone()
        together = model(state)
        for k, atoms in enumerate(crystals):
            alone = torchsim_model(potential, dtype="float64", device="cpu")(
                ts.io.atoms_to_state([atoms], CPU, torch.float64)
            )
            np.testing.assert_allclose(together["energy"][k], alone["energy"][0], atol=1e-10)
            np.testing.assert_allclose(together["stress"][k], alone["stress"][0], atol=1e-10)
            np.testing.assert_allclose(together["forces"][state.system_idx == k], alone["forces"], atol=1e-10)
        assert torch.equal(before.positions, state.positions) and torch.equal(before.cell, state.cell)


def test_only_what_is_asked_for(potential):
    model = torchsim_model(potential, device="cpu", compute_stress=False)
    state = ts.io.atoms_to_state([bulk("Si"), bulk("Cu")], CPU, torch.float64)
    full = model(state)
    assert set(full) == {"energy", "forces"}
    model.compute_forces = False
    energy = model(state)
    assert set(energy) == {"energy"}
    np.testing.assert_allclose(energy["energy"], full["energy"], atol=1e-6)


def test_fire_relaxes_a_batch_as_ase_does_one_by_one(pair):
    crystals = []
    for k in range(4):
        atoms = bulk("Cu", "fcc", a=3.4, cubic=True)
        atoms.rattle(0.03 * (k + 1), seed=k)
        crystals.append(atoms)
    model = torchsim_model(pair, dtype="float64", device="cpu")
    done = ts.generate_force_convergence_fn(0.005, include_cell_forces=False)
    final = ts.optimize(
        crystals, model, optimizer=ts.optimizers.fire, convergence_fn=done, max_steps=300, autobatcher=False
    )
    energies = model(final)["energy"]
    calculator, settings = EquiCalculator(pair, dtype="float64"), RelaxSettings(fmax=0.005, optimizer="fire")
    for atoms, energy in zip(crystals, energies):
        alone = relax(atoms, calculator, settings).atoms.get_potential_energy()
        assert float(energy) == pytest.approx(alone, abs=1e-4)  # forces of 0.005 eV/A are left in both


def test_nvt_of_a_batch_reaches_the_temperature(pair):
    """Langevin, 8 crystals of 32 atoms; a kinetic temperature of 96 x 8 degrees of freedom scatters by 5 %."""
    crystals = [bulk("Cu", "fcc", a=3.5, cubic=True) * (2, 2, 2) for _ in range(8)]
    torch.manual_seed(0)
    run = dict(integrator=ts.integrators.nvt_langevin, n_steps=150, temperature=200, timestep=0.004, gamma=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        final = ts.integrate(crystals, torchsim_model(pair, device="cpu"), **run)
    kinetic = 0.5 * (final.momenta.square().sum(1) / final.masses).sum()
    temperature = float(2 * kinetic / (3 * len(final.positions)) / 8.617333e-5)
    assert 130 < temperature < 270


@pytest.fixture(scope="module")
def pair():
    from toy import Pair

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Potential(Pair((14, 29), 5.0, r0=2.4).double())


def test_what_cannot_be_evaluated_is_named(pair):
    model = torchsim_model(pair, device="cpu")

    def refused(atoms, message):
        with pytest.raises(ValueError, match=message):
            model(ts.io.atoms_to_state([bulk("Si"), atoms], CPU, torch.float64))

    refused(bulk("Ge"), r"structure 1 has atomic number 32 \(Ge\); supported: Si, Cu")
    broken = bulk("Si")
    broken.positions[1, 0] = np.nan
    refused(broken, "structure 1: the position of atom 1 is not finite")
    refused(Atoms("Cu2", [[0, 0, 0], [0, 0, 1e-6]], cell=[9, 9, 9], pbc=True), "structure 1: atoms 0 and 1 are 1e-06 A")
    slab = bulk("Cu", cubic=True)
    slab.pbc[2] = False
    with pytest.raises(ValueError, match=r"frame 0: .* pbc is \[True, True, False\]"):
        evaluate_frames(pair, [slab])
