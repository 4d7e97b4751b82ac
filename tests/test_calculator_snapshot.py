"""A snapshot is `atoms.copy()` made later, and tells what has changed since."""

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from calculator_toys import crystal, toy_potential

from ase_equinn.calculator import EquiCalculator
from ase_equinn.calculator_snapshot import Snapshot


def decorated():
    """Everything that Atoms may hold."""
    atoms = crystal(pbc=[True, False, True])
    atoms.set_momenta(np.arange(12.0).reshape(4, 3))
    atoms.set_array("note", np.arange(4))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    atoms.set_constraint(FixAtoms([1]))
    atoms.info |= {"field": [1.0, 2.0], "name": "x"}
    return atoms


def spoil(atoms):
    atoms.positions += 1
    atoms.arrays["note"] += 1
    atoms.cell[0, 0] += 1
    atoms.pbc = False
    atoms.set_celldisp([9, 9, 9])
    atoms.constraints[0].index[0] = 2
    atoms.info["field"].append(3.0)
    atoms.info["name"] = "y"


def assert_same(found, expected):
    assert type(found) is type(expected) and found == expected and found.info == expected.info
    assert set(found.arrays) == set(expected.arrays)
    for name, values in expected.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(found.arrays[name], values)
    np.testing.assert_array_equal(found.get_celldisp(), expected.get_celldisp())
    assert [c.todict() for c in found.constraints] == [c.todict() for c in expected.constraints]


def test_is_a_copy_made_later():
    atoms = decorated()
    snapshot = Snapshot(atoms, info=["field"])
    spoil(atoms)
    found = snapshot.atoms()
    assert_same(found, decorated())
    assert snapshot.atoms() is found and found.calc is None


def test_neither_the_original_nor_the_copy_changes_the_snapshot():
    names = ["positions", "numbers", "note"], ["field", "name"]
    atoms = decorated()
    snapshot = Snapshot(atoms, *names)
    spoil(atoms)
    spoil(snapshot.atoms())
    assert snapshot.changes(decorated()) == []
    assert set(snapshot.changes(atoms)) == {"positions", "note", "info['field']", "info['name']", "cell", "pbc"}


class Named(Atoms):
    def __init__(self, *args, label=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.label = label

    def copy(self):
        out = super().copy()
        out.label = self.label
        return out


def test_a_class_of_its_own_copies_itself():
    atoms = Named(crystal(), label="mine")
    snapshot = Snapshot(atoms)
    atoms.label = "other"
    atoms.positions += 1
    assert snapshot.atoms().label == "mine"
    np.testing.assert_array_equal(snapshot.atoms().positions, crystal().positions)


def test_a_calculation_makes_no_atoms(monkeypatch):
    """Copying Atoms takes longer than everything else that a calculation does beside the model."""
    calc = EquiCalculator(toy_potential(), device="cpu", dtype="float64")
    atoms = decorated()
    monkeypatch.setattr(Atoms, "copy", lambda *args: pytest.fail("copied"))
    monkeypatch.setattr(Atoms, "__init__", lambda *args, **kwargs: pytest.fail("made"))
    calc.get_forces(atoms)
    calc.get_potential_energy(atoms)
    assert calc.timings["count"] == 1
    monkeypatch.undo()
    before = calc.atoms
    assert_same(before, decorated())
    atoms.positions += 0.1
    calc.get_forces(atoms)
    assert_same(before, decorated())
    np.testing.assert_array_equal(calc.atoms.positions, atoms.positions)
    calc.reset()
    assert calc.atoms is None
