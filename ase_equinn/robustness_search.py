"""Random structures, relaxed: in a sound energy surface none falls below the ground state, and no atoms merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from .evaluator import Evaluator
from .radial_transforms import covalent_radius
from .robustness_known import COLLAPSED, CONTACT, Hole, Known, closest, evaluate_each, radii

VOLUMES = (0.4, 3.0)  # of random cells, in units of the crystal's
DISTANCES = ((0.2, 0.6), (0.75, 0.95))  # least ones, in units of the covalent radii: overlapping atoms, sensible ones
MAX_MOVE, MAX_STRAIN = 0.1, 0.03  # A, in one step
DENSE = 0.15  # of the crystal's volume: nothing sound relaxes to it


class SearchResult(NamedTuple):
    """`lowest`: eV/atom above the limit, `shortest`: in units of the covalent radii after relaxation."""

    name: str
    n_cells: int
    lowest: float
    shortest: float
    holes: list[Hole]


def search(
    ready: Evaluator,
    known: Known,
    name: str,
    numbers: list[int],
    *,
    n_cells: int = 500,
    sizes: tuple[int, int] = (2, 12),
    seed: int = 0,
    steps: int = 100,
    progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Random cells of some elements (or rearrangements of the molecule) and what they relax to.

    Args:
        numbers: of the elements that are mixed at random.
        n_cells: how many.
        sizes: atoms in a cell, least and most.
        steps: of the relaxation of positions and cell.
        progress: called with the number of the step.

    Source: random structure search as in Pickard and Needs, J. Phys.: Condens. Matter 23, 053201 (2011).
    """
    rng = np.random.default_rng(seed)
    if known.molecule is not None:
        starts = [random_cluster(known.molecule.numbers, k, rng) for k in range(n_cells)]
    else:
        starts = [_random_of(numbers, sizes, known, k, rng) for k in range(n_cells)]
    walkers = [Walker(atoms, known.limit(atoms)) for atoms in starts]
    for step in range(steps + 1):
        walking = [walker for walker in walkers if walker.hole is None and not walker.done]
        for walker, result in zip(walking, evaluate_each(ready, [w.atoms for w in walking])):
            walker.judge(result)
        if step == 0:
            judge_contacts(ready, walkers)
        if progress:
            progress(step)
        if step < steps:
            for walker in walking:
                if walker.hole is None and not walker.done:
                    walker.step()
    left = [walker for walker in walkers if walker.hole is None]
    shortest = [float("inf")]
    for walker, pair in zip(left, closest(ready, [walker.atoms for walker in left]) if left else []):
        if pair is not None:
            shortest.append(float(pair.ratio))
            if pair.ratio < COLLAPSED:
                walker.hole = "distance", f"{pair.ratio:.2f} of the covalent radii after relaxation"
    holes = [Hole(*walker.hole, walker.atoms) for walker in walkers if walker.hole]
    lowest = min(walker.lowest - walker.limit for walker in walkers)
    return SearchResult(name, n_cells, lowest, min(shortest), holes)


def judge_contacts(ready: Evaluator, walkers: list[Walker]) -> None:
    """Two atoms that touch, and have nobody else as near, must repel."""
    sound = [walker for walker in walkers if walker.hole is None]
    for walker, pair in zip(sound, closest(ready, [walker.atoms for walker in sound]) if sound else []):
        if pair is None or pair.i == pair.j or not pair.ratio < CONTACT or pair.next < 1.6 * pair.ratio:
            continue
        forces = walker.result["forces"]
        push = float((forces[pair.j] - forces[pair.i]) @ pair.vector) / np.linalg.norm(pair.vector) / 2
        if push < 0:
            walker.hole = "contact", f"a pair at {pair.ratio:.2f} of the covalent radii attracts with {-push:.2f} eV/A"


# ---- where to start


def _random_of(numbers: list[int], sizes: tuple[int, int], known: Known, k: int, rng: np.random.Generator) -> Atoms:
    n = int(rng.integers(sizes[0], sizes[1] + 1))
    chosen = rng.choice(numbers, n)
    volume = sum(known.structures[int(z)].get_volume() / len(known.structures[int(z)]) for z in chosen)
    return random_cell(chosen, volume * np.exp(rng.uniform(*np.log(VOLUMES))), DISTANCES[k % 2], rng)


def random_cell(numbers: np.ndarray, volume: float, least: tuple[float, float], rng: np.random.Generator) -> Atoms:
    """Atoms at random places of a random cell; the least distance is drawn from a range of covalent radii."""
    while True:
        lengths, angles = rng.uniform(0.6, 1.6, 3), rng.uniform(60, 120, 3)
        atoms = Atoms(cell=[*lengths, *angles], pbc=True)
        if np.isfinite(atoms.cell.array).all() and atoms.cell.volume > 0.4 * lengths.prod():
            break
    atoms.set_cell(atoms.cell.array * (volume / atoms.cell.volume) ** (1 / 3))
    shifts = np.array(list(np.ndindex(3, 3, 3))) - 1.0
    return _filled(atoms, numbers, rng.uniform(*least), shifts @ atoms.cell.array, rng)


def random_cluster(numbers: np.ndarray, k: int, rng: np.random.Generator) -> Atoms:
    """The atoms of a molecule at random places of a box without periodicity."""
    volume = sum((2.0 * covalent_radius(int(z))) ** 3 for z in numbers) * np.exp(rng.uniform(*np.log(VOLUMES)))
    box = Atoms(cell=np.eye(3) * volume ** (1 / 3))
    atoms = _filled(box, np.asarray(numbers), rng.uniform(*DISTANCES[k % 2]), np.zeros((1, 3)), rng)
    atoms.set_cell(None)
    return atoms


def _filled(box: Atoms, numbers: np.ndarray, least: float, shifts: np.ndarray, rng: np.random.Generator) -> Atoms:
    """Places drawn one after the other, again where one is too near to another; what finds no place comes nearer."""
    places: list[np.ndarray] = []
    for n, number in enumerate(numbers):
        apart = np.array([radii(number, other) for other in numbers[:n]]) * least
        while True:
            tried = rng.uniform(size=(30, 3)) @ box.cell.array
            if not n:
                places.append(tried[0])
                break
            gaps = np.linalg.norm(tried[:, None, None] + shifts - np.array(places)[:, None], axis=3).min(2)
            fits = np.flatnonzero((gaps > apart).all(1))
            if len(fits):
                places.append(tried[fits[0]])
                break
            apart *= 0.9
    return Atoms(numbers, places, cell=box.cell, pbc=box.pbc)


# ---- where that goes


@dataclass
class Walker:
    """A structure on its way down: FIRE on its positions, in A, and its strain times the root of the number of atoms.

    Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """

    atoms: Atoms
    limit: float
    hole: tuple[str, str] | None = None
    done: bool = False
    lowest: float = np.inf
    result: dict | None = None
    velocity: np.ndarray | float = 0.0
    timestep: float = 0.1
    mixing: float = 0.1
    downhill: int = 0

    def __post_init__(self):
        self.volume = self.atoms.cell.volume

    def judge(self, result: dict | None) -> None:
        """A structure that is a hole stays as it is."""
        self.result = result
        if result is None:
            self.hole = "not finite", "energy, forces or stress"
            return
        energy = result["energy"] / len(self.atoms)
        self.lowest = min(self.lowest, energy)
        if energy < self.limit:
            self.hole = "energy", f"{self.limit - energy:.2f} eV/atom below the limit"
        elif self.atoms.pbc.all() and self.atoms.cell.volume < DENSE * min(self.volume, _volume(self.atoms)):
            self.hole = "volume", f"{self.atoms.cell.volume / len(self.atoms):.2f} A^3/atom"
        self.done = bool(abs(self._forces()).max() < 0.02)

    def _forces(self) -> np.ndarray:
        forces = self.result["forces"]
        if not self.atoms.pbc.all():
            return forces
        xx, yy, zz, yz, xz, xy = self.result["stress"] * -self.atoms.cell.volume / len(self.atoms) ** 0.5
        return np.concatenate([forces, [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]])

    def step(self) -> None:
        forces, n = self._forces(), len(self.atoms)
        velocity = self.velocity + np.zeros_like(forces)
        if (forces * velocity).sum() > 0:
            length = np.linalg.norm(velocity) / np.linalg.norm(forces)
            velocity = (1 - self.mixing) * velocity + self.mixing * forces * length
            if self.downhill > 5:
                self.timestep, self.mixing = min(1.1 * self.timestep, 1.0), 0.99 * self.mixing
            self.downhill += 1
        elif self.downhill or np.any(self.velocity):
            velocity, self.timestep, self.mixing, self.downhill = 0.0 * forces, 0.5 * self.timestep, 0.1, 0
        self.velocity = velocity + self.timestep * forces
        move = self.timestep * self.velocity
        move *= min(1.0, MAX_MOVE / np.linalg.norm(move[:n], axis=1).max(initial=1e-12))
        self.atoms.positions += move[:n]
        if len(move) > n:
            strain = move[n:] / n**0.5
            strain *= min(1.0, MAX_STRAIN / max(1e-12, abs(strain).max()))
            self.atoms.set_cell(self.atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)


def _volume(atoms: Atoms) -> float:
    """A^3, of balls with the covalent radii."""
    return float(sum(4 / 3 * np.pi * covalent_radius(int(z)) ** 3 for z in atoms.numbers))
