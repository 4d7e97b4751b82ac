"""Arguments of EquiCalculator: what each accepts, its answer to anything else, their way through set and todict."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from ase.io.trajectory import Trajectory
from calculator_toys import SPECIES, crystal, toy_potential
from toy import Pair, register

from ase_equinn.calculator import EquiCalculator
from ase_equinn.calculator_arguments import atom_indices
from ase_equinn.potential import Potential, PotentialFileError, shipped_potentials


@pytest.fixture
def folder(tmp_path, monkeypatch):
    register(monkeypatch)
    toy_potential().save(tmp_path / "toy")
    toy_potential(seed=1).save(tmp_path / "other.safetensors")
    return tmp_path


def forces(model, **kwargs):
    return EquiCalculator(model, device="cpu", **{"dtype": "float64", **kwargs}).get_forces(crystal())


def test_model_is_a_folder_a_file_a_potential_or_a_list(folder, monkeypatch):
    expected = forces(toy_potential())
    monkeypatch.chdir(folder)
    for model in (
        folder / "toy",
        str(folder / "toy"),
        folder / "toy/model.safetensors",
        "toy",
        Path("toy"),
        ["toy"],
        ("toy",),
    ):
        np.testing.assert_array_equal(forces(model), expected)
    assert np.abs(forces("other.safetensors") - expected).max() > 1e-3


@pytest.mark.skipif(not shipped_potentials(), reason="no potential is shipped")
def test_shipped_name_from_any_folder(tmp_path, monkeypatch):
    name = min(shipped_potentials())
    expected = EquiCalculator(name, device="cpu")._stored[0].state_dict()
    monkeypatch.chdir(tmp_path)
    found = EquiCalculator(name, device="cpu")._stored[0].state_dict()
    assert expected and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"model": "no-such-thing"},
            PotentialFileError,
            r"'no-such-thing' is no file, no folder and no shipped potential",
        ),
        ({"model": None}, TypeError, r"model must be a path.*got None"),
        ({"model": 3}, TypeError, r"model must be a path.*got 3"),
        ({"model": [toy_potential(), 3]}, TypeError, r"model must be a path.*got 3"),
        ({"model": []}, ValueError, r"at least one potential, got \[\]"),
        ({"model": Pair(SPECIES, 4.0)}, TypeError, r"model must be a path.*got Pair"),
        (
            {"model": [toy_potential(), Potential(Pair([8], 3.0))]},
            ValueError,
            r"no species in common: \[\(6, 14\), \(8,\)\]",
        ),
        ({"device": "gpu"}, ValueError, r"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ({"device": "mps"}, ValueError, r"device must be .* got 'mps'"),
        ({"device": None}, ValueError, r"device must be .* got 'None'"),
        ({"device": "cuda:99"}, ValueError, r"sees \d+ CUDA devices, asked for 'cuda:99'"),
        ({"dtype": "float16"}, ValueError, r"dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"dtype": torch.float64}, ValueError, r"dtype must be one of .* got torch.float64"),
        ({"backend": "fast"}, ValueError, r"backend must be one of 'auto', 'reference', 'llvm', 'triton', got 'fast'"),
        ({"neighbors": "ase"}, ValueError, r"neighbors must be one of .*'vesin'.*, got 'ase'"),
        ({"skin": -0.1}, ValueError, r"skin .* got -0.1"),
        ({"skin": float("nan")}, ValueError, r"skin .* got nan"),
        ({"skin": "0.5"}, TypeError, r"skin must be a number of A, got '0.5'"),
        ({"skin": None}, TypeError, r"skin must be a number of A, got None"),
    ],
    ids=str,
)
def test_bad_arguments_are_answered_with_their_value(kwargs, error, message):
    with pytest.raises(error, match=message):
        EquiCalculator(**{"model": toy_potential(), **kwargs})
    calc = EquiCalculator(toy_potential(), device="cpu", dtype="float64")
    before, expected = dict(calc.parameters), calc.get_forces(crystal())
    with pytest.raises(error, match=message):
        calc.set(**{"skin": 0.7, **kwargs})
    assert calc.parameters == before and calc.timings["count"] == 1
    np.testing.assert_array_equal(calc.get_forces(crystal()), expected)
    assert calc.timings["count"] == 1


def test_unknown_argument():
    with pytest.raises(TypeError, match="unexpected keyword argument 'precision'"):
        EquiCalculator(toy_potential(), precision="double")
    with pytest.raises(TypeError, match="no argument 'precision', only model, device, dtype"):
        EquiCalculator(toy_potential()).set(precision="double")


def test_set_acts_on_the_results(folder):
    calc = EquiCalculator(folder / "toy", device="cpu")
    single = calc.get_forces(crystal())
    assert calc.set(dtype="float32", skin=1.0) == {} and calc.results
    assert calc.set(dtype="float64", skin=1.0) == {"dtype": "float64"} and not calc.results
    np.testing.assert_array_equal(calc.get_forces(crystal()), forces(toy_potential()))  # not weights rounded before
    calc.set(dtype="float32")
    np.testing.assert_array_equal(calc.get_forces(crystal()), single)
    calc.set(model=folder / "other.safetensors", dtype="float64")
    np.testing.assert_array_equal(calc.get_forces(crystal()), forces(toy_potential(seed=1)))


def test_backend_reaches_the_operators_of_the_copy_only():
    """Every module with an attribute `backend`; here the pair model is made to have one."""
    potential = toy_potential()
    potential.models[0].backend = "auto"
    calc = EquiCalculator(potential, device="cpu", backend="reference")
    assert calc._potentials[0].models[0].backend == calc.backend == "reference"
    assert not hasattr(calc._potentials[0].models[1], "backend")
    calc.set(backend="auto")
    assert calc._potentials[0].models[0].backend == calc.backend == "llvm" and potential.models[0].backend == "auto"


def test_device_may_be_a_torch_device():
    calc = EquiCalculator(toy_potential(), device=torch.device("cpu"))
    assert calc.parameters["device"] == "cpu"


@pytest.mark.gpu
def test_auto_takes_cuda():
    assert EquiCalculator(toy_potential())._device.type == "cuda"


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EquiCalculator(toy_potential())._device.type == "cpu"


def test_todict_builds_an_equal_calculator(folder):
    calc = EquiCalculator([folder / "toy", folder / "other.safetensors"], device="cpu", dtype="float64", skin=0.2)
    for skip_default in (True, False):
        text = json.dumps(calc.todict(skip_default=skip_default))
        twin = EquiCalculator(**json.loads(text))
        assert twin.parameters == calc.parameters
        np.testing.assert_array_equal(twin.get_forces(crystal()), calc.get_forces(crystal()))
    assert EquiCalculator(folder / "toy").todict() == {"model": str(folder / "toy")}


def test_todict_describes_a_potential_object():
    found = json.loads(json.dumps(EquiCalculator(toy_potential()).todict()))
    assert found == {"model": "<Potential Pair+Embedded for Z = 6, 14>"}
    with pytest.raises(PotentialFileError, match="Potential Pair"):
        EquiCalculator(**found)


def test_trajectory_records_name_arguments_and_results(folder):
    atoms = crystal()
    atoms.calc = EquiCalculator(folder / "toy", device="cpu", dtype="float64")
    expected = atoms.get_forces()
    with Trajectory(folder / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    calc = read(folder / "a.traj").calc
    assert calc.name == "equinn" and calc.parameters == atoms.calc.todict()
    np.testing.assert_array_equal(calc.results["forces"], expected)
    np.testing.assert_array_equal(calc.results["stress"], atoms.get_stress())


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (None, [0, 1, 2]),
        ([2, 0], [2, 0]),
        ([-1], [2]),
        (np.array([1]), [1]),
        ([False, True, True], [1, 2]),
        ([], []),
        (range(2), [0, 1]),
    ],
)
def test_indices(indices, expected):
    assert atom_indices(indices, 3).tolist() == expected


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 3], "index 3 is not an atom: there are 3"),
        ([-4], "index -4 is not an atom"),
        ([1, 1], r"given twice in indices \[1, 1\]"),
        ([2, -1], r"given twice in indices \[2, -1\]"),
        ([True, False], r"mask of length 3, got \[True, False\]"),
        ([0.5], r"got \[0.5\]"),
        (1, "got 1"),
        ([[0]], r"got \[\[0\]\]"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        atom_indices(indices, 3)
