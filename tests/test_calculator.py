"""Results of EquiCalculator against finite differences, brute-force graphs and closed forms; and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from calculator_toys import (
    DEVICES, SPECIES, STRUCTURES, crystal, left_handed, molecule, no_edges, slab, tiny, toy_potential, unwrapped,
)  # fmt: skip
from toy import Pair, brute_graph

from ase_equinn.calculator import EquiCalculator
from ase_equinn.derivatives import derivatives
from ase_equinn.models.nequip import NequIP
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential

MASKS = list(itertools.product([False, True], repeat=3))
STEP = (
    1e-4  # A, or strain; central differences of these potentials are then good to about 1e-8 of the largest component
)


@pytest.fixture(scope="module", params=DEVICES)
def calc(request):
    return EquiCalculator(toy_potential(), device=request.param, dtype="float64")


def nets():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        schnet = SchNet(SPECIES, 3.5, 10.0, n_channels=8, n_layers=2, n_basis=8)
        nequip = NequIP(SPECIES, 3.5, 10.0, n_layers=2, irreps_hidden="8x0e+4x1o+4x2e", radial_mlp=(8,))
    return {"schnet": schnet, "nequip": nequip}


def close(a, b, rel):
    """Agreement to `rel` of the largest component of b."""
    np.testing.assert_allclose(a, b, rtol=0, atol=rel * np.abs(b).max())


# ---- against finite differences


@pytest.mark.parametrize("build", [crystal, left_handed])
@pytest.mark.parametrize("pbc", MASKS, ids=str)
def test_forces_are_the_gradient_under_every_pbc(calc, build, pbc):
    atoms = build(pbc=pbc)
    atoms.calc = calc
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    close(calculate_numerical_forces(atoms, eps=STEP, force_consistent=True), forces, 1e-6)


@pytest.mark.parametrize("build", [crystal, left_handed, tiny, unwrapped])
def test_stress_is_the_strain_derivative(calc, build):
    atoms = build()
    atoms.calc = calc
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-3
    close(calculate_numerical_stress(atoms, eps=STEP), stress, 1e-6)


@pytest.mark.parametrize("name", ["schnet", "nequip"])
def test_networks_give_the_gradients_of_their_energy(name):
    atoms = crystal()
    atoms.calc = EquiCalculator(Potential(nets()[name].double()), dtype="float64")
    close(calculate_numerical_forces(atoms, eps=STEP, force_consistent=True), atoms.get_forces(), 1e-6)
    close(calculate_numerical_stress(atoms, eps=STEP), atoms.get_stress(), 1e-6)


@pytest.mark.parametrize("name", ["schnet", "nequip"])
def test_float32_is_float64_up_to_its_round_off(name):
    potential = Potential(nets()[name])
    single, double = (EquiCalculator(potential, dtype=dtype) for dtype in ("float32", "float64"))
    atoms = crystal()
    # unit round-off 6e-8, some hundred operations deep; equal numbers would mean that dtype is ignored
    assert single.get_potential_energy(atoms) == pytest.approx(double.get_potential_energy(atoms), rel=1e-5)
    close(single.get_forces(atoms), double.get_forces(atoms), 1e-4)
    assert np.abs(single.get_forces(atoms) - double.get_forces(atoms)).max() > 0


# ---- every kind of structure


@pytest.mark.parametrize("kind", STRUCTURES)
def test_results_are_those_of_all_images(calc, kind):
    """Same numbers as from a graph found by trying every image; sums and shapes as documented."""
    atoms = STRUCTURES[kind]()
    n, before = len(atoms), atoms.copy()
    potential = toy_potential()
    arguments = (torch.tensor(atoms.numbers), torch.tensor(atoms.positions), atoms.cell.array, atoms.pbc)
    expected = derivatives(potential, tuple(brute_graph(*arguments, c) for c in potential.cutoffs), arguments[1])
    energy = calc.get_potential_energy(atoms)
    assert energy == pytest.approx(expected.energy.item(), rel=1e-12)
    np.testing.assert_allclose(calc.get_forces(atoms), expected.forces, rtol=0, atol=1e-10)
    assert calc.get_potential_energy(atoms) == pytest.approx(energy, rel=1e-14)
    assert calc.results["free_energy"] == calc.results["energy"]
    assert calc.get_potential_energies(atoms).shape == (n,)
    assert calc.get_potential_energies(atoms).sum() == pytest.approx(energy, rel=1e-14)
    assert calc.get_forces(atoms).shape == (n, 3) and calc.get_forces(atoms).dtype == np.float64
    np.testing.assert_allclose(calc.get_forces(atoms).sum(0), 0, atol=1e-12)
    if atoms.pbc.all():
        full = expected.stress[0].numpy()
        voigt = [full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]]
        np.testing.assert_allclose(calc.get_stress(atoms), voigt, rtol=0, atol=1e-12)
        assert calc.get_stresses(atoms).shape == (n, 6)
        np.testing.assert_allclose(calc.get_stresses(atoms).sum(0), calc.get_stress(atoms), rtol=0, atol=1e-13)
    else:
        assert not {"stress", "stresses"} & set(calc.results)
    assert atoms == before and set(atoms.arrays) == set(before.arrays) and not atoms.info


def test_wrapping_and_handedness_change_nothing(calc):
    expected = [calc.get_property(name, crystal()) for name in ("energy", "forces", "stress")]
    for atoms in (left_handed(), unwrapped()):
        for name, value in zip(("energy", "forces", "stress"), expected, strict=True):
            np.testing.assert_allclose(calc.get_property(name, atoms), value, rtol=0, atol=1e-11)


def test_lone_atoms_have_the_energy_that_the_potential_states(calc):
    expected = toy_potential().isolated_energy(6) + toy_potential().isolated_energy(14)
    for pbc in (True, False):
        atoms = no_edges()
        atoms.pbc = pbc
        assert calc.get_potential_energy(atoms) == pytest.approx(expected, rel=1e-14)
        assert not calc.get_forces(atoms).any()
    assert not calc.get_stress(no_edges()).any()


@pytest.mark.parametrize("atoms", [Atoms(), Atoms(cell=[3, 3, 3], pbc=True)], ids=["nowhere", "empty cell"])
def test_no_atoms(calc, atoms):
    assert calc.get_potential_energy(atoms) == 0.0
    assert calc.get_forces(atoms).shape == (0, 3)
    assert calc.get_potential_energies(atoms).shape == (0,)
    if atoms.pbc.all():
        assert not calc.get_stress(atoms).any() and calc.get_stresses(atoms).shape == (0, 6)


def test_descriptors_do_not_turn_with_the_atoms(calc):
    atoms = crystal()
    found = calc.get_descriptors(atoms)
    assert found.shape == (4, 3) and found.dtype == np.float64 and np.ptp(found, axis=0).min() > 1e-3
    atoms.rotate(77, (1, 2, 3), rotate_cell=True)
    np.testing.assert_allclose(calc.get_descriptors(atoms), found, atol=1e-12)


def test_works_in_a_sum_of_calculators():
    """Two calculators with one shared energy: the sum is twice the whole, stress included."""
    one = EquiCalculator(toy_potential(), dtype="float64")
    atoms = crystal()
    atoms.calc = SumCalculator([one, EquiCalculator(toy_potential(), dtype="float64")])
    assert atoms.get_potential_energy() == pytest.approx(2 * one.get_potential_energy(atoms), rel=1e-14)
    close(atoms.get_forces(), 2 * one.get_forces(atoms), 1e-14)
    close(atoms.get_stress(), 2 * one.get_stress(atoms), 1e-14)


# ---- what is refused


@pytest.mark.parametrize("pbc", [mask for mask in MASKS if not all(mask)], ids=str)
@pytest.mark.parametrize("name", ["stress", "stresses"])
def test_stress_is_refused_with_advice_unless_fully_periodic(calc, name, pbc):
    atoms = crystal(pbc=pbc)
    atoms.calc = calc
    for _ in range(2):
        with pytest.raises(PropertyNotImplementedError, match=r"add vacuum and set pbc=True") as error:
            calc.get_property(name, atoms)
        assert str(list(pbc)) in str(error.value)
        atoms.get_forces()  # the second time everything else is cached
    assert calc.get_property(name, atoms, allow_calculation=False) is None


def broken(change):
    atoms = crystal()
    change(atoms)
    return atoms


BAD_ATOMS = {
    "unknown element": (lambda a: a.numbers.__setitem__(2, 79), r"atom 2 .*79 \(Au\).*C, Si"),
    "no element": (lambda a: a.numbers.__setitem__(1, 0), r"atom 1 .*number 0"),
    "nan position": (lambda a: a.positions.__setitem__((3, 1), np.nan), r"atom 3 .*nan"),
    "infinite position": (lambda a: a.positions.__setitem__((1, 0), np.inf), r"atom 1 .*inf"),
    "nan cell": (lambda a: a.cell.__setitem__((0, 0), np.nan), r"cell .*nan"),
    "no cell": (lambda a: a.set_cell([0, 0, 0]), r"cell .*0\.0, 0\.0, 0\.0"),
    "flat cell": (lambda a: a.set_cell([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), r"no volume.*3\.0, 3\.0, 0\.0"),
    "coincident": (lambda a: a.positions.__setitem__(2, a.positions[0] + [0, 5e-5, 0]), r"atoms 0 and 2 are 5e-05 A"),
    "coincident image": (
        lambda a: a.positions.__setitem__(1, a.positions[3] - a.cell[0] + [0, 0, 9e-5]), r"atoms 1 and 3 are 9e-05 A",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ATOMS)
@pytest.mark.parametrize("name", ["energy", "forces"])
def test_bad_atoms_are_named_and_leave_nothing_behind(calc, kind, name):
    change, message = BAD_ATOMS[kind]
    good = calc.get_forces(crystal())
    atoms = broken(change)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            calc.get_property(name, atoms)
        assert calc.results == {} and calc.atoms is None
    np.testing.assert_array_equal(calc.get_forces(crystal()), good)


def test_atoms_just_beyond_the_limit_are_evaluated(calc):
    atoms = Atoms("C2", [[0, 0, 0], [0, 0, 1.01e-4]])
    assert np.isfinite(calc.get_potential_energy(atoms)) and np.isfinite(calc.get_forces(atoms)).all()


class NotANumber(Pair):
    """A pair potential that fails on atom 1: its energy or only its gradient is not a number."""

    def __init__(self, what):
        super().__init__(SPECIES, 4.0)
        self.what = what

    def forward(self, graph, vectors):
        energy = super().forward(graph, vectors)
        if self.what == "energy":
            energy = energy * torch.tensor([1.0, torch.nan, 1.0, 1.0], dtype=energy.dtype)
        if self.what == "infinity":
            energy = energy / torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=energy.dtype)
        if self.what == "gradient":  # d sqrt(0) = infinity, times d(0 * r)/dr = 0
            energy = energy + torch.sqrt(0 * vectors[graph.edge_index[0] == 1].sum())
        return energy


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("energy", "energy", r"energies of atom 1 \(C\) = nan"),
        ("energy", "forces", r"energies of atom 1 \(C\) = nan"),
        ("infinity", "energy", r"energies of atom 1 \(C\) = -?inf"),
        ("gradient", "forces", r"forces of atom \d \(\w+\) = nan for SiC2Si"),
        ("gradient", "stress", r"forces of atom \d \(\w+\) = nan"),
    ],
)
def test_what_is_not_a_number_is_never_a_result(what, name, message):
    calc = EquiCalculator(Potential(NotANumber(what)), dtype="float64", device="cpu")
    if what == "gradient":
        assert np.isfinite(calc.get_potential_energy(crystal()))
    with pytest.raises(CalculationFailed, match=message):
        calc.get_property(name, crystal())
    assert calc.results == {} and calc.atoms is None


def test_needs_atoms():
    calc = EquiCalculator(toy_potential())
    for ask in (calc.get_forces, calc.get_hessian, calc.get_descriptors):
        with pytest.raises(Exception, match="has no atoms yet"):
            ask()
    calc.get_potential_energy(molecule())
    assert calc.get_forces().shape == calc.get_forces(molecule()).shape == (4, 3)


def test_anything_but_atoms_is_refused():
    calc = EquiCalculator(toy_potential())
    with pytest.raises(TypeError, match="expected ase.Atoms, got list"):
        calc.calculate([1, 2])


def test_slab_with_vacuum_has_stress(calc):
    """The advice in the refusal works: vacuum and pbc=True leave the energy as it was, and the stress is that of the
    true cell, whose volume times it does not depend on the vacuum."""
    atoms = slab()
    energy = calc.get_potential_energy(atoms)
    virials = []
    for height in (20, 40):
        atoms.set_cell([*atoms.cell.array[:2], [0, 0, height]])
        atoms.pbc = True
        assert calc.get_potential_energy(atoms) == pytest.approx(energy, rel=1e-12)
        virials.append(calc.get_stress(atoms) * atoms.get_volume())
    assert np.abs(virials[0]).max() > 0.1
    np.testing.assert_allclose(virials[1], virials[0], rtol=0, atol=1e-11)
