"""Small labelled data made on the spot: copper with ASE's EMT, whose energies, forces and stresses belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from ase_equinn.potential import Potential


def copper(n: int, seed: int = 0, rattle: float = 0.08, strain: float = 0.02) -> list[Atoms]:
    """`n` rattled and strained 4-atom cells with REF_energy, REF_forces, REF_stress and config_type "bulk"."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-strain, strain, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
        images.append(label(atoms))
    return images


def label(atoms: Atoms, config_type: str = "bulk") -> Atoms:
    """A copy with EMT's numbers under the REF_ names."""
    work = atoms.copy()
    work.calc = EMT()
    labelled = atoms.copy()
    labelled.info |= {"REF_energy": work.get_potential_energy(), "config_type": config_type}
    labelled.arrays["REF_forces"] = work.get_forces()
    if atoms.pbc.all():
        labelled.info["REF_stress"] = work.get_stress(voigt=False)
    return labelled


def save(path: Path, images: list[Atoms]) -> str:
    """Writes extxyz and gives the name as text."""
    write(path, images, format="extxyz")
    return str(path)


def three_sets(folder: Path) -> dict[str, str]:
    """Names of the files "train" (12 frames), "valid" and "test" (4 each)."""
    images = {"train": copper(12), "valid": copper(4, seed=1), "test": copper(4, seed=2)}
    return {name: save(folder / f"{name}.xyz", frames) for name, frames in images.items()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the potential in a folder."""
    return Potential.load(folder).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
