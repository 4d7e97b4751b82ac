"""When EquiCalculator computes, and what it remembers."""

import copy

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from calculator_toys import SPECIES, crystal, molecule, slab, tiny, toy_potential
from toy import Pair

from ase_equinn.calculator import EquiCalculator
from ase_equinn.potential import Potential

NAMES = ("energy", "forces", "stress")


@pytest.fixture
def calc():
    return EquiCalculator(toy_potential(), device="cpu", dtype="float64")


def count(calc) -> int:
    return calc.timings["count"]


def fresh(atoms, names=NAMES, **kwargs):
    """Results of a calculator that has seen nothing else."""
    calc = EquiCalculator(toy_potential(), device="cpu", **{"dtype": "float64", **kwargs})
    return [calc.get_property(name, atoms) for name in names]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Watched(Pair):
    """Notes whether each evaluation was prepared for a gradient."""

    def __init__(self, info_keys=(), array_keys=()):
        super().__init__(SPECIES, 4.0)
        self.info_keys, self.array_keys = info_keys, array_keys
        self.gradients = []

    def forward(self, graph, vectors):
        self.gradients.append(vectors.requires_grad)
        return super().forward(graph, vectors)


def watched(**kwargs):
    calc = EquiCalculator(Potential(Watched(**kwargs)), device="cpu")
    return calc, calc._potentials[0].models[0].gradients


# ---- when it computes


@pytest.mark.parametrize("name", ["energy", "free_energy", "energies"])
def test_energy_alone_takes_no_gradient(name):
    calc, gradients = watched()
    calc.get_property(name, crystal())
    assert gradients == [False] and set(calc.results) == {"energy", "free_energy", "energies"}


@pytest.mark.parametrize("name", ["forces", "stress", "stresses"])
def test_any_gradient_computes_everything_once(name):
    calc, gradients = watched()
    for wanted in (name, *EquiCalculator.implemented_properties):
        calc.get_property(wanted, crystal())
    assert gradients == [True]
    assert set(calc.results) == set(EquiCalculator.implemented_properties)


def test_forces_after_the_energy_are_computed_for_the_same_atoms(calc):
    atoms = crystal()
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    assert atoms.get_potential_energy() == energy and count(calc) == 1
    same([atoms.get_forces(), atoms.get_stress()], fresh(atoms, ("forces", "stress")))
    assert count(calc) == 2
    atoms.positions[0, 0] += 0.01
    moved = atoms.get_potential_energy()
    assert moved != energy and "forces" not in calc.results
    same([moved, atoms.get_forces(), atoms.get_stress()], fresh(atoms))


CHANGES = {
    "position": lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 1e-9),
    "last bit of a position": lambda a: a.positions.__setitem__((1, 2), np.nextafter(a.positions[1, 2], 9)),
    "number": lambda a: a.numbers.__setitem__(0, 6),
    "cell": lambda a: a.cell.__setitem__((2, 1), 0.71),
    "pbc": lambda a: a.pbc.__setitem__(0, False),
    "charges": lambda a: a.set_initial_charges([1, 0, 0, 0]),
    "magmoms": lambda a: a.set_initial_magnetic_moments([0, 0, 0, 2]),
}
OTHERS = {
    "momenta": lambda a: a.set_momenta(np.ones((4, 3))),
    "tags": lambda a: a.set_tags([1, 2, 3, 4]),
    "constraint": lambda a: a.set_constraint(FixAtoms([0])),
    "info": lambda a: a.info.update(note="other"),
    "array": lambda a: a.set_array("note", np.arange(4)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["energy", "forces"])
def test_every_change_that_matters_is_seen(calc, change, name):
    atoms = crystal()
    atoms.calc = calc
    calc.get_property(name, atoms)
    CHANGES[change](atoms)
    assert calc.calculation_required(atoms, [name])
    assert calc.get_property(name, atoms, allow_calculation=False) is None
    np.testing.assert_array_equal(calc.get_property(name, atoms), fresh(atoms, [name])[0])
    assert count(calc) == 2


@pytest.mark.parametrize("change", OTHERS)
def test_what_does_not_matter_costs_nothing(calc, change):
    atoms = crystal()
    calc.get_forces(atoms)
    OTHERS[change](atoms)
    assert not calc.calculation_required(atoms, ["energy", "forces", "stress"])
    calc.get_forces(atoms)
    assert count(calc) == 1


def test_changing_what_was_returned_changes_no_result(calc):
    atoms = crystal()
    expected = fresh(atoms)
    for _ in range(2):
        for name in ("forces", "stress", "energies"):
            calc.get_property(name, atoms)[...] = 1e9
    same([calc.get_property(name, atoms) for name in NAMES], expected)


def test_new_atoms_every_step(calc):
    """What i-PI's driver does. Equal atoms are the same atoms, whatever object they are."""
    rng = np.random.default_rng(0)
    positions = crystal().positions
    for _ in range(5):
        positions = positions + rng.normal(0, 0.05, positions.shape)
        for _ in range(2):
            atoms = crystal()
            atoms.positions = positions
            atoms.calc = calc
            found = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()]
            del atoms
        expected = crystal()
        expected.positions = positions
        same(found[1:], fresh(expected, NAMES[1:]))
    assert count(calc) == 10  # each step the energy, then everything


def test_one_calculator_for_many_structures(calc):
    """Number of atoms, pbc, cell and species change from call to call; each result is that of a fresh calculator."""
    structures = [crystal(), tiny(), molecule(), slab(), crystal(pbc=[0, 0, 1]), crystal(n=3), crystal(seed=1)]
    for k in np.random.default_rng(0).integers(0, len(structures), 30):
        same([calc.get_property(name, structures[k]) for name in NAMES[:2]], fresh(structures[k], NAMES[:2]))


def test_skin_changes_no_bit():
    """Along a walk with shear, large jumps and changed periodicity."""
    rng = np.random.default_rng(1)
    calculators = [EquiCalculator(toy_potential(), device="cpu", dtype="float64", skin=s) for s in (0, 0.3, 0.5, 2.0)]
    atoms = crystal()
    for step in range(40):
        atoms.positions += rng.normal(0, 0.02 if step % 10 else 1.0, (4, 3))
        atoms.set_cell(atoms.cell.array + rng.normal(0, 0.01, (3, 3)), scale_atoms=bool(step % 2))
        if step % 13 == 12:
            atoms.pbc = rng.random(3) < 0.5
        first, *others = ([c.get_property(n, atoms) for n in ("forces", "energies")] for c in calculators)
        for other in others:
            same(other, first)
    assert calculators[0]._lists[5.0].n_builds > calculators[2]._lists[5.0].n_builds


def test_stress_refused_keeps_what_is_valid(calc):
    atoms = crystal(pbc=[True, True, False])
    forces = calc.get_forces(atoms)
    with pytest.raises(PropertyNotImplementedError):
        calc.get_stress(atoms)
    np.testing.assert_array_equal(calc.get_forces(atoms), forces)
    assert count(calc) == 1
    atoms.positions[0] += 0.1
    with pytest.raises(PropertyNotImplementedError):
        calc.get_stress(atoms)
    assert calc.results == {}
    calc.get_forces(atoms)
    with pytest.raises(PropertyNotImplementedError):
        calc.calculate(slab(), ["stress"])
    assert calc.results == {}


def test_direct_calculate(calc):
    """`calculate(atoms)` without a list of properties gives everything."""
    calc.calculate(crystal())
    same([calc.results[name] for name in NAMES], fresh(crystal()))


# ---- info and arrays that a model reads


def shared_list():
    value = [1, 2]
    return value, lambda: value.append(3)


def shared_array():
    value = np.array([1.0, 2.0])
    return value, lambda: value.__setitem__(0, 5.0)


@pytest.mark.parametrize("make", [shared_list, shared_array])
def test_info_that_a_model_reads_is_compared_by_value(make):
    calc, gradients = watched(info_keys=("field",))
    atoms = crystal()
    ask = [lambda: calc.get_forces(atoms), lambda: len(gradients)]

    def evaluations():
        return [f() for f in ask][1]

    assert evaluations() == 1
    value, change = make()
    atoms.info["field"] = value
    assert evaluations() == 2 and evaluations() == 2
    atoms.info["field"] = copy.deepcopy(value)
    assert evaluations() == 2  # an equal value in another object
    atoms.info["field"] = value
    change()  # in place
    assert evaluations() == 3 and evaluations() == 3
    del atoms.info["field"]
    assert evaluations() == 4 and evaluations() == 4
    atoms.info["other"] = 1
    assert evaluations() == 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0, 1),
        ("a", "b"),
        (None, 0),
        ({"x": np.zeros(2)}, {"x": np.ones(2)}),
        ({"x": 1}, {"y": 1}),
        (np.zeros(2), np.zeros(3)),
    ],
)
def test_info_values_of_many_kinds(before, after):
    calc, gradients = watched(info_keys=("field",))
    atoms = crystal()
    for value, expected in [(before, 1), (copy.deepcopy(before), 1), (after, 2), (before, 3)]:
        atoms.info["field"] = value
        calc.get_forces(atoms)
        assert len(gradients) == expected


def test_array_that_a_model_reads_is_in_the_key():
    calc, gradients = watched(array_keys=("spin",))
    atoms = crystal()
    atoms.set_array("spin", np.zeros(4))
    for value, expected in [(0, 1), (0, 1), (2, 2), (2, 2)]:
        atoms.arrays["spin"][1] = value
        calc.get_forces(atoms)
        assert len(gradients) == expected
