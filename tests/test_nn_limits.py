"""nn_limits: what lies between the limits stays, what lies beyond levels off, everywhere smoothly and in order."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces

from ase_equinn.calculator import EquiCalculator
from ase_equinn.models.mace import MACE
from ase_equinn.models.nequip import NequIP
from ase_equinn.graph import graph_and_vectors
from ase_equinn.nn_crowding import Crowding
from ase_equinn.nn_limits import MIDDLE, EnergyLimits
from ase_equinn.potential import Potential

LIMITS = {
    "low": [-1.0, -2.0],
    "high": [5.0, 7.0],
    "alone": [0.5, 2.0],
    "rho_min": [0.01, 0.02],
    "rho_max": [9.0, 9.0],
    "near_max": [9.0, 9.0],
    "width": 0.1,
}


def limited(x, species=0):
    """Of atoms of one element, or several, each with a neighbour that touches it."""
    numbers = torch.full((len(x),), species) if isinstance(species, int) else torch.tensor(species)
    numbers = torch.cat([numbers, torch.tensor([0])])
    places = [[9.0 * (k // 2) + 1.4 * (k % 2), 0, 0] for k in range(len(numbers))]
    atoms = Atoms(numbers=[6 if index == 0 else 8 for index in numbers], positions=places)
    graph, vectors = graph_and_vectors(atoms, 4.0)
    limits = EnergyLimits("model", LIMITS, [6, 8], 4.0).double()
    return limits(torch.cat([x, x[:1]]), limits.surroundings(graph, vectors, numbers), numbers)[:-1]


def test_between_the_limits_energies_stay():
    x = torch.linspace(-0.5, 4.5, 101, dtype=torch.float64)
    bound = 0.1 * (torch.exp(-(x + 1.0) / 0.1) + torch.exp(-(5.0 - x) / 0.1))
    gate = 1e-7 * (5.0 - x)  # a gate leaves 1 by no more up to the crowding of the training set, here by far less
    assert ((limited(x) - x).abs() <= bound + gate).all() and bound.max() < 1e-3


def test_every_element_has_its_own():
    x = torch.tensor([-9.0, -9.0, 1.0, 9.0, 9.0], dtype=torch.float64)
    y = limited(x, [0, 1, 1, 0, 1])
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


@pytest.mark.parametrize("gate", ["rho_max", "near_max"])
@pytest.mark.parametrize("make", [MACE, NequIP])
def test_crowded_atoms_have_the_upper_limit(make, gate, tmp_path):
    """Two elements; programs and the reference agree where the gate is half open, forces with finite differences."""
    torch.manual_seed(0)
    atoms = Atoms("COCO", [[0, 0, 0], [1.4, 0, 0.1], [0, 1.45, 0.2], [0.1, 0.3, 1.5]])
    graph, vectors = graph_and_vectors(atoms, 4.0)
    crowding = Crowding([6, 8], 4.0).double()(graph, vectors, torch.tensor([0, 1, 0, 1]))[gate == "near_max"]
    middle = MIDDLE[gate == "near_max"]
    half = [float(crowding[0]) / middle, float(crowding[1]) / middle]
    limits = {
        "low": [-3.0, -4.0],
        "high": [5.0, 7.0],
        "alone": [1.0, -2.0],
        "rho_min": [0.3, 0.3],
        "rho_max": [99.0, 99.0],
        "near_max": [99.0, 99.0],
        "width": 0.1,
    } | {gate: half}
    model = make([6, 8], 4.0, irreps_hidden="8x0e+8x1o", avg_num_neighbors=4.0, limits=limits)
    Potential([model]).save(tmp_path / "model")
    calculators = [EquiCalculator(tmp_path / "model", dtype="float64", backend=name) for name in ("auto", "reference")]
    found = [(atoms.copy(), calculator) for calculator in calculators]
    for copy, calculator in found:
        copy.calc = calculator
    energies = [copy.get_potential_energies() for copy, _ in found]
    np.testing.assert_allclose(*energies, rtol=0, atol=1e-12)
    np.testing.assert_allclose(*(copy.get_forces() for copy, _ in found), rtol=0, atol=1e-10)
    assert 2.0 < energies[0][0] < 3.0 and 3.0 < energies[0][1] < 4.0  # on the way up
    atoms.calc = calculators[0]
    expected = calculate_numerical_forces(atoms, eps=2e-6)
    np.testing.assert_allclose(atoms.get_forces(), expected, rtol=1e-6, atol=1e-6)
    atoms.positions *= 0.7
    np.testing.assert_allclose(atoms.get_potential_energies(), [5.0, 7.0, 5.0, 7.0], atol=1e-6)


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_atoms_that_lose_their_neighbours_become_atoms_alone(make):
    torch.manual_seed(0)
    limits = {
        "low": [-3.0, -4.0],
        "high": [5.0, 7.0],
        "alone": [1.0, -2.0],
        "rho_min": [0.5, 0.5],
        "rho_max": [9.0, 9.0],
        "near_max": [9.0, 9.0],
        "width": 0.1,
    }
    model = make([6, 8], 4.0, irreps_hidden="8x0e+8x1o", avg_num_neighbors=4.0, limits=limits)
    atoms = Atoms("CO", [[0, 0, 0], [1.4, 0, 0]])
    atoms.calc = EquiCalculator(Potential([model]), dtype="float64")
    energies = []
    for distance in (2.6, 3.2, 3.8, 4.2):
        atoms.positions[1, 0] = distance
        energies.append(atoms.get_potential_energies())
        np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-5), atol=1e-6)
    distances = np.abs(np.array(energies) - [1.0, -2.0]).max(1)
    assert (np.diff(distances) < 0).all() and distances[-1] == 0.0


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_models_keep_within_them_in_every_implementation(make, tmp_path):
    """A crowd of atoms: the network alone leaves the limits, the native program and the reference agree within them."""
    torch.manual_seed(0)
    options = {"irreps_hidden": "8x0e+8x1o", "avg_num_neighbors": 4.0}
    free = make([14], 4.0, **options)
    bound = make(
        [14],
        4.0,
        limits={
            "low": [-0.02],
            "high": [0.05],
            "alone": [0.0],
            "rho_min": [0.1],
            "rho_max": [9.0],
            "near_max": [9.0],
            "width": 0.004,
        },
        **options,
    )
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


GOOD = {
    "low": [-1.0],
    "high": [1.0],
    "alone": [0.0],
    "rho_min": [1.0],
    "rho_max": [2.0],
    "near_max": [2.0],
    "width": 0.1,
}
BAD = {
    "order": GOOD | {"low": [1.0], "high": [0.0]},
    "width": GOOD | {"width": 0.0},
    "alone": GOOD | {"alone": [1.5]},
    "crowding": GOOD | {"rho_min": [0.0]},
    "rho": GOOD | {"rho_max": [0.5], "near_max": [0.5]},
    "species": {name: [*value] * 2 if name != "width" else value for name, value in GOOD.items()},
    "missing": {name: value for name, value in GOOD.items() if name != "rho_min"},
    "unknown": GOOD | {"depth": 1.0},
    "nan": GOOD | {"high": [float("nan")]},
    "list": [0.0, 1.0, 0.1],
}


@pytest.mark.parametrize("limits", BAD.values(), ids=BAD)
def test_limits_without_meaning_are_named(limits):
    with pytest.raises(
        ValueError,
        match="MACE: limits are low < alone < high, 0 < rho_min <= rho_max and near_max > 0 of 1 species and a positive width, got",
    ):
        MACE([14], 4.0, irreps_hidden="4x0e", limits=limits)


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_hyperparameters_make_the_same_model(make):
    model = make(
        [1, 8],
        4.0,
        irreps_hidden="8x0e+8x1o",
        limits={name: [*value] * 2 if name != "width" else value for name, value in GOOD.items()},
    )
    assert make(**model.hyperparameters).hyperparameters == model.hyperparameters
    assert make([1, 8], 4.0, irreps_hidden="8x0e+8x1o").hyperparameters["limits"] is None


@pytest.mark.parametrize("make", [MACE, NequIP])
def test_crowded_atoms_tell_their_neighbours_nothing(make):
    """O hears of the far H through the C between them, unless another C overlaps with that one."""
    torch.manual_seed(0)
    limits = {"low": [-90.0] * 3, "high": [90.0] * 3, "alone": [0.0] * 3, "rho_min": [1e-3] * 3, "rho_max": [2.0] * 3}
    limits |= {"near_max": [2.0] * 3, "width": 0.1}
    options = {"irreps_hidden": "8x0e+8x1o", "avg_num_neighbors": 4.0, "n_layers": 2}
    model = make([1, 6, 8], 3.0, limits=limits, **options)
    energies = []
    for second in (8.0, 1.8):  # where the other C is
        for height in (0.0, 1.0):
            atoms = Atoms("OCCH", [[0, 0, 0], [1.6, 0, 0], [second, 0, 0.1], [3.2, 0, height]])
            atoms.calc = EquiCalculator(Potential([model]), dtype="float64", device="cpu")
            energies.append(atoms.get_potential_energies()[0])
    assert abs(energies[1] - energies[0]) > 1e-5 and abs(energies[3] - energies[2]) < 1e-11
