"""A structure in LAMMPS's frame: a lower triangular cell that starts at the origin and is as long as its atoms need."""

from __future__ import annotations

from typing import Mapping, NamedTuple

import numpy as np

from ..neighbors import complete_cell

_MARGIN = 1.0  # A between the atoms and the faces of the box in a direction without periodicity


class LammpsBox(NamedTuple):
    """cell = lower @ rotation.T row by row; positions here are those of the structure @ rotation, less the origin."""

    rotation: np.ndarray  # (3, 3) orthogonal, a reflection for a left-handed cell
    lower: np.ndarray  # (3, 3) A, lower triangular, positive diagonal
    positions: np.ndarray  # (n, 3) A
    numbers: np.ndarray  # (n,)
    pbc: np.ndarray  # (3,)

    @classmethod
    def of(cls, atoms) -> "LammpsBox":
        """The box of ase.Atoms with any cell and pbc.

        Raises:
            ValueError: periodic cell vectors that span no volume.
        """
        pbc = np.array(atoms.pbc, dtype=bool)
        rotation, upper = np.linalg.qr(complete_cell(atoms.cell.array, pbc).T)
        signs = np.where(np.diag(upper) < 0, -1.0, 1.0)
        rotation, lower = rotation * signs, (upper * signs[:, None]).T
        positions = atoms.positions @ rotation
        places = positions @ np.linalg.inv(lower)  # where a direction has no periodicity its vector is a unit vector
        if len(places):
            origin = np.where(pbc, 0.0, places.min(0) - _MARGIN)
            positions = positions - origin @ lower
            lower[~pbc] *= (np.ptp(places, axis=0) + 2 * _MARGIN)[~pbc, None]
        return cls(rotation, lower, positions, np.array(atoms.numbers), pbc)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a rank needs, by the names of lammps_rank.evaluate."""
        (xx, _, _), (xy, yy, _), (xz, yz, zz) = self.lower
        prism = np.array([0, xx, 0, yy, 0, zz, xy, xz, yz])
        return dict(prism=prism, positions=self.positions, numbers=self.numbers, pbc=self.pbc)

    def results(self, found: Mapping[str, np.ndarray]) -> dict:
        """What LAMMPS has found, in the structure's frame and ASE's order."""
        stress = None
        if self.pbc.all():
            xx, yy, zz, xy, xz, yz = found["stress"]
            full = self.rotation @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ self.rotation.T
            stress = full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        forces = found["forces"] @ self.rotation.T
        return dict(energy=float(found["energy"]), energies=found["energies"], forces=forces, stress=stress)
