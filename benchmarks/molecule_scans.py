"""Bonds of a molecule, and what a potential says when they are turned, stretched and pressed: for molecules.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixInternals
from ase.data import covalent_radii
from ase.optimize import BFGS
from scipy.spatial.transform import Rotation

from ase_equinn import evaluate
from ase_equinn.relax import RelaxSettings, relax
from ase_equinn.relax_batch import relax_all

BONDED, BROKEN, FORMED = 1.25, 1.6, 1.1  # in sums of covalent radii: a bond of the relaxed molecule; gone; a new one
RIPPLE = 0.02  # eV; a turn of a curve that is lower than this is not reported


class Molecule(NamedTuple):
    """A relaxed molecule, its bonds (i < j), and for each atom its neighbours."""

    atoms: Atoms
    bonds: list[tuple[int, int]]
    neighbours: list[set[int]]

    def name(self, *atoms: int) -> str:
        return "-".join(f"{self.atoms.symbols[i]}{i}" for i in atoms)

    def kind(self, i: int, j: int) -> str:
        return "-".join(sorted((self.atoms.symbols[i], self.atoms.symbols[j])))


class Curve(NamedTuple):
    """Energies in eV, those of the relaxed molecule taken as 0, over a coordinate; `note` tells what else happened."""

    name: str
    x: np.ndarray
    energies: np.ndarray
    note: str = ""


def closeness(atoms: Atoms) -> np.ndarray:
    """(n, n): distances in sums of covalent radii, infinite on the diagonal."""
    radii = covalent_radii[atoms.numbers]
    ratio = atoms.get_all_distances() / (radii[:, None] + radii)
    np.fill_diagonal(ratio, np.inf)
    return ratio


def relaxed_molecule(atoms: Atoms, calculator) -> Molecule:
    """The molecule relaxed to 0.01 eV/A, and its bonds."""
    atoms = relax(atoms, calculator, RelaxSettings(fmax=0.01), steps=1000).atoms
    ratio = closeness(atoms)
    bonded = ratio < BONDED
    for h in np.flatnonzero(atoms.numbers == 1):  # one bond each, also in a hydrogen bridge
        bonded[h] = bonded[:, h] = np.arange(len(atoms)) == ratio[h].argmin()
    neighbours = [set(np.flatnonzero(row).tolist()) for row in bonded]
    bonds = [(i, j) for i in range(len(atoms)) for j in sorted(neighbours[i]) if i < j]
    return Molecule(atoms, bonds, neighbours)


def side(molecule: Molecule, i: int, j: int) -> set[int] | None:
    """The atoms that hang on j when the bond i-j is cut; None for a bond of a ring."""
    found, new = {j}, {j}
    while new:
        new = set().union(*(molecule.neighbours[k] - ({i} if k == j else set()) for k in new)) - found
        found |= new
    return None if i in found else found


def changed(molecule: Molecule, atoms: Atoms) -> tuple[str, tuple[str, ...]]:
    """(what is no longer the same molecule, "" if it is; hydrogens that went from N or O to N or O: allowed)."""
    ratio, heavy, hops = closeness(atoms), np.flatnonzero(atoms.numbers > 1), []
    for h in np.flatnonzero(atoms.numbers == 1):
        (own,) = molecule.neighbours[h]
        partner = heavy[ratio[h, heavy].argmin()] if len(heavy) else own
        if ratio[h, partner] > BROKEN:
            return f"{molecule.name(h)} lost", ()
        if partner != own and not {atoms.symbols[partner], atoms.symbols[own]} <= {"N", "O"}:
            return f"{molecule.name(h)} on {molecule.name(partner)}", ()
        if partner != own:
            hops.append(f"{molecule.name(h)} on {molecule.name(partner)}")
    for i, j in ((i, j) for i in heavy for j in heavy if i < j):
        if j in molecule.neighbours[i] and ratio[i, j] > BROKEN:
            return f"{molecule.name(i, j)} broken", ()
        if j not in molecule.neighbours[i] and ratio[i, j] < FORMED:
            return f"{molecule.name(i, j)} formed", ()
    return "", tuple(hops)


def rotate(atoms: Atoms, i: int, j: int, degrees: float, moved: set[int]) -> None:
    """Turns some atoms about the axis from i to j, in place."""
    axis, moved = atoms.positions[j] - atoms.positions[i], sorted(moved)
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis))
    atoms.positions[moved] = atoms.positions[j] + rotation.apply(atoms.positions[moved] - atoms.positions[j])


def torsions(molecule: Molecule) -> list[tuple[int, int, int, int]]:
    """a-i-j-b for every bond i-j outside rings with more atoms on either side; b's side is the smaller one."""
    out, numbers = [], molecule.atoms.numbers
    for i, j in molecule.bonds:
        moved = side(molecule, i, j)
        if moved is None or not 1 < len(moved) < len(numbers) - 1:
            continue
        if len(moved) > len(numbers) - len(moved):
            i, j = j, i
        a, b = (max(molecule.neighbours[k] - {other}, key=lambda z: (numbers[z], -z)) for k, other in ((i, j), (j, i)))
        out.append((a, i, j, b))
    return out


def torsion_curves(molecule: Molecule, potential: Any, torsion: tuple[int, int, int, int], step: int = 15):
    """(rigid, relaxed): over the angle turned, in degrees; relaxed with the four atoms of the torsion held."""
    a, i, j, b = torsion
    angles, turned = np.arange(0, 360, step), []
    for angle in angles:
        turned.append(molecule.atoms.copy())
        rotate(turned[-1], i, j, angle, side(molecule, i, j))
    zero = energies(potential, [molecule.atoms])[0]
    rigid = energies(potential, turned)
    for atoms in turned:
        atoms.set_constraint(FixAtoms(torsion))
    found = relax_all(turned, potential, RelaxSettings(fmax=0.03), steps=300, device="cpu")
    relaxed = energies(potential, [result.atoms for result in found])
    each = [changed(molecule, result.atoms) for result in found]
    changes = [text or hops[0] for text, hops in each if text or hops]
    note, name = f"{changes[0]}; {len(changes)} of {len(angles)} angles" if changes else "", molecule.name(*torsion)
    return Curve(name, angles, rigid - zero), Curve(name, angles, relaxed - zero, note)


def energies(potential: Any, structures: Sequence[Atoms]) -> np.ndarray:
    """eV, one for each structure, in float64 throughout."""
    bare = [Atoms(atoms.numbers, atoms.positions) for atoms in structures]
    found = evaluate(bare, potential, ["energy"], dtype="float64", device="cpu", progress=False)
    return np.array([result["energy"] for result in found])


def stretched(molecule: Molecule, i: int, j: int, lengths: np.ndarray) -> list[Atoms]:
    """The bond at so many lengths, with all that hangs on the lighter end moved along; in a ring j alone."""
    moved = side(molecule, i, j)
    if moved is not None and len(moved) > len(molecule.atoms) / 2:
        (i, j), moved = (j, i), side(molecule, j, i)
    start, moved = molecule.atoms, moved or {j}
    if lengths[-1] > molecule.atoms.get_distance(i, j):
        start = out_of_the_way(molecule, i, j, moved)
    vector = start.positions[j] - start.positions[i]
    length, indices, out = np.linalg.norm(vector), sorted(moved), []
    for wanted in lengths:
        atoms = start.copy()
        atoms.positions[indices] += vector / length * (wanted - length)
        out.append(atoms)
    return out


def out_of_the_way(molecule: Molecule, i: int, j: int, moved: set[int]) -> Atoms:
    """The molecule, with j turned about the other bond of i where it would run into another atom (hydrogen bridge)."""
    others = molecule.neighbours[i] - {j}
    if len(others) != 1:
        return molecule.atoms.copy()
    (anchor,) = others
    rest, candidates = sorted(set(range(len(molecule.atoms))) - moved - {i}), []
    for degrees in (0, 180, 90, 270):
        atoms = molecule.atoms.copy()
        rotate(atoms, anchor, i, degrees, moved)
        way = (atoms.positions[j] - atoms.positions[i]) / atoms.get_distance(i, j)
        line = atoms.positions[i] + way * np.arange(0.8, 5, 0.1)[:, None]
        closest = np.linalg.norm(line[:, None] - atoms.positions[rest], axis=2).min()
        if degrees == 0 and closest > 1.5:
            return atoms
        candidates.append((closest, -degrees, atoms))
    return max(candidates, key=lambda entry: entry[:2])[2]


def breaking(molecule: Molecule, potential: Any, cutoff: float, step: float = 0.02) -> list[Curve]:
    """One bond of each kind, outside rings, from 0.4 A until the parts do not feel each other."""
    first = {}
    for i, j in molecule.bonds:
        if side(molecule, i, j) is not None:
            first.setdefault(molecule.kind(i, j), (i, j))
    span = molecule.atoms.get_all_distances().max()
    lengths = np.append(np.arange(0.4, 4 + step / 2, step), 2 * span + cutoff)
    return [_curve(molecule, potential, i, j, lengths) for i, j in first.values()]


def compression(molecule: Molecule, potential: Any, step: float = 0.02) -> list[Curve]:
    """Every bond, from its length down to 0.4 A."""
    lengths = [np.arange(0.4, molecule.atoms.get_distance(*bond), step) for bond in molecule.bonds]
    return [_curve(molecule, potential, *bond, x) for bond, x in zip(molecule.bonds, lengths)]


def _curve(molecule: Molecule, potential: Any, i: int, j: int, lengths: np.ndarray) -> Curve:
    found = energies(potential, [molecule.atoms, *stretched(molecule, i, j, lengths)])
    return Curve(molecule.name(i, j), lengths, found[1:] - found[0])


def turn(x: np.ndarray, energies: np.ndarray) -> tuple[float, float] | None:
    """(where, by how much): where a curve that should only rise begins its deepest fall; or None."""
    highest = np.maximum.accumulate(energies)
    fall = highest - energies
    if fall.max() < RIPPLE:
        return None
    at = np.argmax(energies == highest[np.argmax(fall)])
    return float(x[at]), float(fall.max())


def transfer(molecule: Molecule, calculator, n: int = 9) -> Curve | None:
    """A hydrogen bridge D-H...A: the energy over d(D-H) - d(A-H) from D to A, everything else relaxed.

    None where there is no such bridge (acceptor N or O within 2.2 A of the hydrogen).
    """
    atoms, numbers = molecule.atoms, molecule.atoms.numbers
    distances, best = atoms.get_all_distances(), None
    for h in np.flatnonzero(numbers == 1):
        for donor in (k for k in molecule.neighbours[h] if numbers[k] in (7, 8)):
            for acceptor in np.flatnonzero(((numbers == 7) | (numbers == 8)) & (distances[h] < 2.2)):
                if acceptor != donor and acceptor not in molecule.neighbours[donor]:
                    best = min(best or (np.inf,), (distances[h, acceptor], int(donor), int(h), int(acceptor)))
    if best is None:
        return None
    _, donor, h, acceptor = best
    start = max(abs(distances[donor, h] - distances[acceptor, h]), 0.4)
    x, found = np.linspace(-start, start, n), []
    moving, zero = atoms.copy(), energies_of(calculator, atoms)
    for value in x:
        bond = [[donor, h, 1.0], [acceptor, h, -1.0]]
        moving.set_constraint(FixInternals(bondcombos=[[float(value), bond]], epsilon=1e-6))
        moving.set_positions(moving.positions)  # to where the constraint holds
        moving.calc = calculator
        BFGS(moving, logfile=None).run(fmax=0.03, steps=100)
        found.append(energies_of(calculator, moving) - zero)
    return Curve(molecule.name(donor, h, acceptor), x, np.array(found))


def energies_of(calculator, atoms: Atoms) -> float:
    atoms.calc = calculator
    return atoms.get_potential_energy()
