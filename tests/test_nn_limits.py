"""nn_limits: what lies between the limits stays, what lies beyond levels off, everywhere smoothly and in order."""

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.mace import MACE
from ase_equinn.models.nequip import NequIP
from ase_equinn.nn_limits import EnergyLimits, Limits
from ase_equinn.potential import Potential

LIMITS = Limits([-1.0, -2.0], [5.0, 7.0], 0.1)


def limited(x, species=0):
    """Of atoms of one element."""
    return EnergyLimits("model", LIMITS, 2).double()(x, torch.full((len(x),), species))


def test_between_the_limits_energies_stay():
    x = torch.linspace(-0.5, 4.5, 101, dtype=torch.float64)
    bound = 0.1 * (torch.exp(-(x + 1.0) / 0.1) + torch.exp(-(5.0 - x) / 0.1))
    assert ((limited(x) - x).abs() <= bound + 1e-14).all() and bound.max() < 1e-3


def test_every_element_has_its_own():
    x = torch.tensor([-9.0, -9.0, 1.0, 9.0, 9.0], dtype=torch.float64)
    y = EnergyLimits("model", LIMITS, 2).double()(x, torch.tensor([0, 1, 1, 0, 1]))
    np.testing.assert_allclose(y, [-1.0, -2.0, 1.0, 5.0, 7.0], atol=1e-9)


def test_beyond_them_energies_level_off_in_order():
    x = torch.tensor([-1e6, -50.0, -1.0, 0.0, 5.0, 50.0, 1e6], dtype=torch.float64, requires_grad=True)
    y = limited(x)
    assert y.min() >= -1.0 and y.max() <= 5.0 and (y.diff() >= 0).all()
    (slope,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(slope, [0, 0, 0.5, 1, 0.5, 0, 0], atol=1e-4)


def test_second_derivatives():
    x = torch.tensor([-1.2, -1.0, -0.9, 3.0, 4.9, 5.0, 5.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: limited(x), x)
    assert torch.autograd.gradgradcheck(lambda x: limited(x), x)


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_models_keep_within_them_in_every_implementation(make, tmp_path):
    """A crowd of atoms: the network alone leaves the limits, the native program and the reference agree within them."""
    torch.manual_seed(0)
    options = {"irreps_hidden": "8x0e+8x1o", "avg_num_neighbors": 4.0}
    free = make([14], 4.0, **options)
    bound = make([14], 4.0, limits={"low": [-0.02], "high": [0.05], "width": 0.004}, **options)
    bound.load_state_dict(free.state_dict())
    atoms = Atoms("Si8", np.random.default_rng(0).uniform(0, 4, (8, 3)), cell=[4, 4, 4], pbc=True)
    energies, forces = {}, {}
    Potential([bound]).save(tmp_path / "bound")
    cases = {"free": (Potential([free]), "auto"), "native": (tmp_path / "bound", "auto")}
    cases["reference"] = (tmp_path / "bound", "reference")
    for name, (potential, backend) in cases.items():
        atoms.calc = EquiCalculator(potential, dtype="float64", backend=backend)
        energies[name], forces[name] = atoms.get_potential_energies(), atoms.get_forces()
    assert energies["free"].min() < -0.02 or energies["free"].max() > 0.05
    assert energies["native"].min() > -0.0201 and energies["native"].max() < 0.0501
    np.testing.assert_allclose(energies["native"], energies["reference"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(forces["native"], forces["reference"], rtol=0, atol=1e-10)


BAD = {
    "order": {"low": [1.0], "high": [0.0], "width": 0.1},
    "width": {"low": [0.0], "high": [1.0], "width": 0.0},
    "species": {"low": [0.0, 0.0], "high": [1.0, 1.0], "width": 0.1},
    "missing": {"low": [0.0], "high": [1.0]},
    "unknown": {"low": [0.0], "high": [1.0], "width": 0.1, "depth": 1.0},
    "nan": {"low": [0.0], "high": [float("nan")], "width": 1.0},
    "list": [0.0, 1.0, 0.1],
}


@pytest.mark.parametrize("limits", BAD.values(), ids=BAD)
def test_limits_without_meaning_are_named(limits):
    with pytest.raises(ValueError, match="MACE: limits are low < high of 1 species and a positive width, got"):
        MACE([14], 4.0, irreps_hidden="4x0e", limits=limits)


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_hyperparameters_make_the_same_model(make):
    model = make([1, 8], 4.0, irreps_hidden="8x0e+8x1o", limits={"low": [-1, -2], "high": [3, 4], "width": 0.1})
    assert make(**model.hyperparameters).hyperparameters == model.hyperparameters
    assert make([1, 8], 4.0, irreps_hidden="8x0e+8x1o").hyperparameters["limits"] is None
