"""Structures near those of a training set with a committee's mean as labels: one network learns from them what several know.

The mean of networks that differ in their seeds has smaller errors than each of them. A single one that is trained on the
labelled data and on the committee's word for their surroundings takes most of that over, at the cost of one.

Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Sequence

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from .data import Frame, read_structures, write_frames
from .evaluate_batches import evaluate
from .potential import Potential
from .radial_transforms import covalent_radius

CONFIG_TYPE = "distilled"
NEAREST = 0.9  # of the least distance in the structures


def neighbourhood(
    structures: Sequence[Atoms], copies: int = 4, rattle: float = 0.1, strain: float = 0.02, seed: int = 0
) -> list[Atoms]:
    """`copies` of each structure, bare of all else, moved at random: every copy by its own amount, up to `rattle` and `strain`.

    No copy has atoms nearer, in units of their covalent radii, than 0.9 of the nearest in all structures: there a committee knows
    as little as its members. Such a copy is moved half as far, and again.

    Args:
        structures: left unchanged; single atoms give no copies.
        copies: of each, at least 1.
        rattle: A, the largest standard deviation of a coordinate's displacement.
        strain: the largest standard deviation of an element of the symmetric strain of a structure that is periodic in
            three directions.
        seed: of all random numbers.

    Raises:
        ValueError: no copies, or a displacement that is negative or not finite, with the value.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    for name, value in (("rattle", rattle), ("strain", strain)):
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")
    random, found = np.random.default_rng(seed), []
    least = NEAREST * min(map(_nearest, structures), default=0.0)
    for atoms in structures:
        for _ in range(copies if len(atoms) > 1 else 0):
            amount, e = random.uniform(), random.normal(scale=strain, size=(3, 3))
            strains = (e + e.T) / 2 if atoms.pbc.all() else np.zeros((3, 3))
            displacements = rattle * random.normal(size=atoms.positions.shape)
            copy = _moved(atoms, amount * strains, amount * displacements)
            while _nearest(copy) < least:
                amount *= 0.5
                copy = _moved(atoms, amount * strains, amount * displacements)
            found.append(copy)
    return found


def _moved(atoms: Atoms, strains: np.ndarray, displacements: np.ndarray) -> Atoms:
    deformation = np.eye(3) + strains
    positions = atoms.positions @ deformation + displacements
    return Atoms(atoms.numbers, positions, cell=atoms.cell.array @ deformation, pbc=atoms.pbc)


def _nearest(atoms: Atoms) -> float:
    """The least distance of two atoms in units of the sum of their covalent radii; inf for those beyond it."""
    radii = np.array([covalent_radius(z) for z in atoms.numbers])
    i, j, distances = neighbor_list("ijd", atoms, [*radii])
    return float((distances / (radii[i] + radii[j])).min(initial=np.inf))


def distill(
    committee: Sequence[str | Path | Potential] | str | Path,
    structures: Sequence[Atoms],
    *,
    copies: int = 4,
    rattle: float = 0.1,
    strain: float = 0.02,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int, int], None] | bool = False,
) -> list[Frame]:
    """Labelled frames for a training set: the `neighbourhood` of the structures with the committee's mean.

    Args:
        committee: potentials, or a calibrated committee, as `EquiCalculator` takes them; also a single potential.
        structures: of the training set.
        copies, rattle, strain, seed: see `neighbourhood`.
        device: see `EquiCalculator`.
        progress: see `evaluate`.

    Returns:
        frames with energy and forces and the config_type "distilled", at which limits and the core do not look. Not stress: that of
        labels may hold a constant which the committee's lacks (loss.stress_offset), and energies under strain say the same.

    Raises:
        ValueError: see `neighbourhood`, `evaluate` and EquiCalculator; structures that give no copies.
    """
    moved = neighbourhood(structures, copies, rattle, strain, seed)
    if not moved:
        raise ValueError(f"distill needs structures of more than one atom, got {len(structures)} without any")
    found = evaluate(moved, committee, ["energy", "forces"], device=device, progress=progress)
    return [Frame(atoms, x["energy"], x["forces"], None, CONFIG_TYPE) for atoms, x in zip(moved, found, strict=True)]


def of_labelled(items: Sequence, frames: Sequence[Frame]) -> list:
    """Those of the items, one for each frame, whose frame is not distilled; all of them if every frame is."""
    return [item for item, frame in zip(items, frames, strict=True) if frame.config_type != CONFIG_TYPE] or list(items)


def distill_files(committee, files: Sequence[str | Path], out: str | Path, **options) -> int:
    """`distill` from files of structures, labelled or not, to the extxyz file `out`; the number of frames."""
    structures = [atoms for file in files for atoms in read_structures(Path(file))]
    frames = distill(committee, structures, **options)
    write_frames(out, frames)
    return len(frames)
