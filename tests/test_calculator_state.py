"""EquiCalculator leaves everything of the caller's alone, is moved by none of it, and can be copied."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from calculator_toys import DEVICES, SPECIES, crystal, toy_potential

from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.nequip import NequIP
from ase_equinn.potential import Potential

NAMES = ("energy", "forces", "stress")


@pytest.fixture
def calc():
    return EquiCalculator(toy_potential(), device="cpu", dtype="float64")


def fresh(atoms, dtype="float64"):
    """Results of a calculator that has seen nothing else."""
    calc = EquiCalculator(toy_potential(), device="cpu", dtype=dtype)
    return [calc.get_property(name, atoms) for name in NAMES]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- the caller's things


def test_two_precisions_interleave():
    atoms = crystal()
    expected = {dtype: fresh(atoms, dtype=dtype) for dtype in ("float32", "float64")}
    potential = toy_potential()
    calculators = {dtype: EquiCalculator(potential, device="cpu", dtype=dtype) for dtype in expected}
    for _ in range(2):
        for dtype, calc in calculators.items():
            calc.reset()
            same([calc.get_property(name, atoms) for name in NAMES], expected[dtype])
    assert np.abs(expected["float32"][1] - expected["float64"][1]).max() > 0
    assert {p.dtype for p in potential.parameters()} == {torch.float64}


@pytest.mark.parametrize("device", DEVICES)
def test_settings_generators_and_the_given_potential_stay_as_they_are(device, tmp_path):
    potential = toy_potential(dtype=torch.float32).train()
    path = network().save(tmp_path)
    weights = copy.deepcopy(potential.state_dict())
    atoms = crystal()
    atoms.info["note"], atoms.constraints = [1], FixAtoms([2])
    arrays, calc_before = copy.deepcopy(atoms.arrays), atoms.calc

    def state():
        return (torch.get_default_dtype(), torch.get_num_threads(), torch.get_num_interop_threads(),
                torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(),
                random.getstate(), np.random.get_state()[1].tolist())  # fmt: skip

    before = state()
    calc = EquiCalculator(potential, device=device, dtype="float64")
    for ask in (calc.get_potential_energy, calc.get_forces, calc.get_stress, calc.get_hessian, calc.get_descriptors):
        ask(atoms)
    pickle.loads(pickle.dumps(calc)).set(dtype="float32")
    EquiCalculator(path, device=device).get_forces(atoms)
    assert state() == before
    assert potential.training and potential.dtype == torch.float32 and potential.device.type == "cpu"
    assert all(p.requires_grad and p.grad is None for p in potential.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in potential.state_dict().items())
    assert set(atoms.arrays) == set(arrays) and all(np.array_equal(atoms.arrays[k], arrays[k]) for k in arrays)
    assert atoms.info == {"note": [1]} and len(atoms.constraints) == 1 and atoms.calc is calc_before


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Potential(NequIP(SPECIES, 3.5, 10.0, irreps_hidden="4x0e+4x1o", radial_mlp=(8,)))


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "float64 by default"])
def test_modes_of_the_caller_change_no_result(mode, tmp_path):
    path, atoms = network().save(tmp_path), crystal()

    def ask():
        calc = EquiCalculator(path, device="cpu")
        found = [calc.get_property(name, atoms) for name in NAMES]
        return [*found, calc.get_hessian(atoms), calc.get_descriptors(atoms)]

    expected = ask()
    if mode == "float64 by default":
        torch.set_default_dtype(torch.float64)
        try:
            found = ask()
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(
            mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        )():
            found = ask()
    same(found, expected)


def test_later_changes_of_the_given_potential_do_not_matter():
    potential = toy_potential()
    calc = EquiCalculator(potential, device="cpu", dtype="float64")
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(2)
    same([calc.get_property(name, crystal()) for name in NAMES], fresh(crystal()))
    calc.set(skin=0.1)
    same([calc.get_property(name, crystal()) for name in NAMES], fresh(crystal()))


# ---- copies


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))], ids=["deepcopy", "pickle"]
)
def test_copies_give_the_same_and_are_independent(calc, copied):
    atoms = crystal()
    expected = [calc.get_property(name, atoms) for name in NAMES]
    twin = copied(calc)
    assert twin.timings["count"] == 0 and twin.parameters == calc.parameters
    same([twin.get_property(name, atoms) for name in NAMES], expected)
    assert twin.timings["count"] == 0  # the results were copied too
    twin.reset()
    assert calc.results
    atoms.positions[0] += 0.3
    same([twin.get_property(name, atoms) for name in NAMES], fresh(atoms))
    same([calc.get_property(name, crystal()) for name in NAMES], expected)
    assert calc.timings["count"] == 2  # as before: the energy, then everything
    assert twin._lists[5.0] is not calc._lists[5.0] and twin._potentials[0] is not calc._potentials[0]


def test_pickle_grows_with_nothing_but_the_last_atoms(calc):
    """The Verlet lists (here of 500 atoms) stay out."""
    before = len(pickle.dumps(calc))
    atoms = crystal() * (5, 5, 5)
    calc.get_forces(atoms)
    arrays = sum(np.asarray(v).nbytes for v in [*calc.results.values(), *atoms.arrays.values()])
    assert len(pickle.dumps(calc)) < before + arrays + 10_000
    calc.reset()
    assert len(pickle.dumps(calc)) < before + 1_000


def test_atoms_with_the_calculator_are_copied_whole(calc):
    atoms = crystal()
    atoms.calc = calc
    forces = atoms.get_forces()
    twin: Atoms = pickle.loads(pickle.dumps(atoms))
    np.testing.assert_array_equal(twin.get_forces(), forces)
    assert twin.calc is not calc


@pytest.mark.gpu
def test_pickle_of_a_cuda_calculator_lives_on_the_cpu():
    calc = EquiCalculator(toy_potential(), device="auto", dtype="float64")
    assert calc._device.type == "cuda"
    forces = calc.get_forces(crystal())
    stored = calc.__getstate__()["_stored"]
    assert {p.device.type for p in stored[0].parameters()} == {"cpu"}
    twin = pickle.loads(pickle.dumps(calc))
    twin.reset()
    np.testing.assert_array_equal(twin.get_forces(crystal()), forces)
    twin.set(device="cpu")
    np.testing.assert_allclose(twin.get_forces(crystal()), forces, atol=1e-11)


def test_timings_add_up(calc):
    start = {"neighbors": 0.0, "model": 0.0, "total": 0.0, "count": 0, "backend": calc.backend}
    assert calc.timings == start
    for seed in range(3):
        calc.get_forces(crystal(seed=seed))
        calc.get_forces(crystal(seed=seed))
    timings = calc.timings
    assert timings["count"] == 3 and min(timings[phase] for phase in ("neighbors", "model", "total")) > 0
    assert timings["neighbors"] + timings["model"] <= timings["total"]
