"""What a search for holes compares with: the lowest energy, the volume and the distances that are known to be sound."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols
from ase.io import read

from .evaluate_batches import batch_graphs, evaluate_with
from .evaluator import Evaluator
from .potential import find_potential
from .radial_transforms import covalent_radius
from .relax import RelaxSettings
from .relax_batch import relax_all

MARGIN = 0.3  # eV/atom below the lowest known energy: more than phases or molecules of one composition differ by
MIXING = 1.5  # eV/atom more where elements are mixed: compounds lie below their elements
COLLAPSED = 0.55  # of the sum of covalent radii: no bond is as short
CONTACT = 0.5  # of the sum of covalent radii: here every pair repels
SETTINGS = RelaxSettings(fmax=0.02, smax=0.05, cell="isotropic")


class Hole(NamedTuple):
    """A structure that shows it: `kind` names the test it fails, `detail` says by how much."""

    kind: str
    detail: str
    atoms: Atoms


class Known(NamedTuple):
    """A relaxed crystal of each element, or the relaxed molecule; `energies` in eV/atom, by element or None for it.

    `shortest`: A, of the training set, None where the file does not tell.
    """

    structures: dict[int | None, Atoms]
    energies: dict[int | None, float]
    shortest: float | None

    @property
    def molecule(self) -> Atoms | None:
        return self.structures.get(None)

    def limit(self, atoms: Atoms) -> float:
        """eV/atom: what lies lower is a hole."""
        if self.molecule is not None:
            return self.energies[None] - MARGIN
        own = [self.energies[int(z)] for z in atoms.numbers]
        return float(np.mean(own)) - MARGIN - (MIXING if len(set(own)) > 1 else 0.0)

    def short(self, a: int, b: int) -> float:
        """A, closer than which two atoms were never seen, and repel."""
        sure = 0.75 * radii(a, b)
        return sure if self.shortest is None else min(sure, self.shortest)


def radii(a: int, b: int) -> float:
    """The sum of two covalent radii in A."""
    return covalent_radius(int(a)) + covalent_radius(int(b))


def find_known(model: Any, ready: Evaluator, structure: Atoms | None) -> tuple[Known, list[Hole]]:
    """The relaxed structures of a potential, and those of them that relax to below the lowest training energy."""
    potential = ready.potential
    data = potential.metadata.get("training_data") or {}
    stored = _stored(model) if structure is None else [structure]
    elements = {str(s): n for s, n in (data.get("elements") or {}).items()}
    if stored and not stored[0].pbc.any():
        starts, settings = {None: stored[0]}, RelaxSettings(fmax=SETTINGS.fmax)
        counted = dict(zip(*np.unique(list(stored[0].symbols), return_counts=True)))
        comparable = elements.keys() == counted.keys() and len({elements[s] / counted[s] for s in elements}) == 1
    else:
        starts, settings = {z: crystal(z) for z in potential.species}, SETTINGS
        comparable = len(potential.species) == 1
    starts = {z: Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for z, a in starts.items()}
    relaxed = relax_all([*starts.values()], potential, settings, device=str(potential.device))
    structures = {z: result.atoms for z, result in zip(starts, relaxed)}
    energies = {z: float(a.get_potential_energy()) / len(a) for z, a in structures.items()}
    holes = []
    lowest = (data.get("energy_per_atom") or [None])[0] if comparable else None
    if lowest is not None:
        for z, energy in energies.items():
            if energy < lowest - MARGIN:
                text = f"relaxes to {energy:.2f} eV/atom, training data end at {lowest:.2f}"
                holes.append(Hole("energy", text, structures[z]))
                energies[z] = lowest
            energies[z] = min(energies[z], lowest)
    return Known(structures, energies, data.get("min_distance")), holes


def crystal(number: int) -> Atoms:
    """ASE's crystal of the element in a cubic cell if there is one; else a simple cubic one."""
    for options in ({"cubic": True}, {}):
        try:
            return bulk(chemical_symbols[number], **options)
        except (ValueError, RuntimeError, KeyError):
            continue
    return bulk(chemical_symbols[number], "sc", a=2.1 * covalent_radius(number))


def _stored(model: Any) -> list[Atoms]:
    """The frames of check.xyz beside the potential's file, if there is one."""
    if not isinstance(model, str | Path):
        return []
    path = find_potential(model).parent / "check.xyz"
    return read(path, ":") if path.is_file() else []


def pairs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Each pair of elements once."""
    return list(combinations_with_replacement(sorted({int(z) for z in numbers}), 2))


def evaluate_each(ready: Evaluator, structures: Sequence[Atoms], gradient: bool = True) -> list[dict | None]:
    """Results of each structure; None where they are not finite or the structure cannot be evaluated at all."""
    if not structures:
        return []
    names = [str(k) for k in range(len(structures))]
    try:
        return evaluate_with(ready, structures, None if gradient else ["energy"], names=names)
    except (ValueError, RuntimeError, MemoryError):
        if len(structures) == 1:
            return [None]
    half = len(structures) // 2
    return evaluate_each(ready, structures[:half], gradient) + evaluate_each(ready, structures[half:], gradient)


class Closest(NamedTuple):
    """The closest pair of a structure: `ratio` of its distance to the sum of covalent radii, `vector` from i to j in A.

    `next`: the same ratio of the second closest pair that has i or j in it.
    """

    ratio: float
    i: int
    j: int
    vector: np.ndarray
    next: float


def closest(ready: Evaluator, structures: Sequence[Atoms]) -> list[Closest | None]:
    """None where no two atoms see each other."""
    graphs, vectors, _ = batch_graphs(structures, ready.potential, [str(k) for k in range(len(structures))])
    graph, r = graphs[0], vectors[0].cpu().numpy()
    i, j = graph.edge_index.cpu().numpy()
    numbers, batch = graph.numbers.cpu().numpy(), graph.batch.cpu().numpy()
    radius = np.array([covalent_radius(z) if z in ready.potential.species else 0.0 for z in range(119)])
    ratios = np.linalg.norm(r, axis=1) / (radius[numbers[i]] + radius[numbers[j]])
    first_atom = np.searchsorted(batch, np.arange(len(structures)))
    edges = np.searchsorted(batch[i], np.arange(len(structures) + 1))
    found: list[Closest | None] = []
    for k, (a, b) in enumerate(zip(edges, edges[1:])):
        if a == b:
            found.append(None)
            continue
        best = a + int(ratios[a:b].argmin())
        ends = {i[best], j[best]}
        near = np.isin(i[a:b], [*ends])
        same = np.isclose(ratios[a:b], ratios[best], rtol=1e-6) & np.isin(j[a:b], [*ends])
        second = ratios[a:b][near & ~same].min(initial=np.inf)
        found.append(Closest(ratios[best], i[best] - first_atom[k], j[best] - first_atom[k], r[best], float(second)))
    return found
