"""benchmarks/molecules.py: what it takes for bonds, torsions and falls, on a molecule and curves known by hand."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule as known_molecule

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scans(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import molecule_scans

    return molecule_scans


@pytest.fixture
def molecules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import molecules

    return molecules


def bonded(scans, name, cutoff=1.25):
    """ASE's molecule with its bonds, not relaxed."""
    atoms = known_molecule(name)
    ratio = scans.closeness(atoms)
    neighbours = [set(np.flatnonzero(row < cutoff).tolist()) for row in ratio]
    bonds = [(i, j) for i in range(len(atoms)) for j in sorted(neighbours[i]) if i < j]
    return scans.Molecule(atoms, bonds, neighbours)


def test_torsions_are_bonds_outside_rings_with_atoms_on_both_sides(scans):
    ethanol = bonded(scans, "CH3CH2OH")  # C0-C1-O2-H3
    assert len(ethanol.bonds) == 8
    middles = {frozenset(torsion[1:3]) for torsion in scans.torsions(ethanol)}
    assert middles == {frozenset((0, 1)), frozenset((1, 2))}
    assert scans.side(ethanol, 1, 2) == {2, 3}
    benzene = bonded(scans, "C6H6")
    assert scans.torsions(benzene) == [] and scans.side(benzene, 0, 1) is None
    assert not scans.torsions(bonded(scans, "CH4"))


def test_stretching_moves_the_lighter_part_and_nothing_else(scans):
    ethanol, lengths = bonded(scans, "CH3CH2OH"), np.array([0.4, 1.0, 3.0])
    for atoms, wanted in zip(scans.stretched(ethanol, 1, 2, lengths), lengths):
        assert atoms.get_distance(1, 2) == pytest.approx(wanted)
        assert atoms.get_distance(2, 3) == pytest.approx(ethanol.atoms.get_distance(2, 3))
        kept = [i for i in range(9) if i not in (2, 3)]
        np.testing.assert_array_equal(atoms.positions[kept], ethanol.atoms.positions[kept])


def test_what_counts_as_a_change(scans):
    ethanol = bonded(scans, "CH3CH2OH")
    assert scans.changed(ethanol, ethanol.atoms) == ("", ())
    apart = scans.stretched(ethanol, 0, 1, np.array([3.5]))[0]
    assert scans.changed(ethanol, apart)[0] == "C0-C1 broken"
    lost = scans.stretched(ethanol, 2, 3, np.array([2.5]))[0]
    assert scans.changed(ethanol, lost)[0] == "H3 lost"
    moved = ethanol.atoms.copy()
    outward = moved.positions[0] - moved.positions[1]
    moved.positions[3] = moved.positions[0] + 1.1 * outward / np.linalg.norm(outward)
    assert scans.changed(ethanol, moved)[0] == "H3 on C0"


def test_curves_that_turn(scans, molecules):
    """A Morse curve rises on both sides; with a dip of 0.3 eV behind a barrier it is said where it falls."""
    x = np.append(np.arange(0.4, 4.01, 0.02), 20.0)
    morse = 4 * (1 - np.exp(-2 * (x - 1.1))) ** 2
    dip = morse - 0.3 * np.exp(-(((x - 3.0) / 0.1) ** 2))
    core = np.where(x < 0.7, -5.0, morse)
    rows = molecules.breaking_table([scans.Curve(name, x, y) for name, y in (("a", morse), ("b", dip))])
    assert rows["a"]["stretched"] == rows["a"]["compressed"] == "rises"
    assert rows["a"]["lowest at, A"] == pytest.approx(1.1) and rows["a"]["+ apart"] == pytest.approx(4, abs=1e-6)
    assert rows["a"]["+ at 2 A"] == pytest.approx(4 * (1 - np.exp(-1.8)) ** 2, abs=1e-3)
    where, deep = scans.turn(x[40:-1], dip[40:-1])
    before, after = dip[(x > 2) & (x < 2.95)].max(), dip[(x > 2.95) & (x < 3.1)].min()
    assert 2.75 < where < 2.95 and deep == pytest.approx(before - after)
    assert rows["b"]["stretched"] == f"falls by {deep:.2f} eV from {where:.2f} A on"
    pressed = molecules.compression_table([scans.Curve("C0-C1", x[x < 1.1], core[x < 1.1])], lambda curve: "C-C")
    assert pressed["C-C"]["repel down to 0.4 A"] == 0 and pressed["C-C"]["least at 0.4 A, eV"] == -5
