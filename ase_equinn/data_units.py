"""Do forces and stresses explain the energies? The sign and the unit of labels, read from pairs of similar structures.

For two structures a, b of the same atoms in the same order the trapezoidal rule gives, exactly for a harmonic crystal,

    E_b - E_a = f * W_F + s * W_S      W_F = -(F_a + F_b)/2 . u      W_S = V (S_a + S_b)/2 : e

with the displacement u at fixed cell, the strain e of the cell, and f = s = 1 if energies, forces and stresses agree in
unit and sign. Least squares over many pairs gives f and s with their standard errors. A pair counts with the factor
1/(d^2 + d0^2)^1.5, d its root mean square displacement, as the error of the rule grows with the cube of d.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from .data import Frame

MAX_GROUP = 120  # structures of one composition that are compared
NEAR = 0.03  # A, d0
MAX_PAIRS = 500
WRONG = 1.6  # a factor beyond which a unit is doubted
LIKE = 1.35  # how near to a unit's factor the fitted one must be to be called by its name

HINTS = {
    1 / 27.2114: "energies in Hartree",
    1 / 13.6057: "energies in Rydberg",
    0.529177: "forces per bohr",
    23.0605: "energies in kcal/mol",
    96.4853: "energies in kJ/mol",
    1000.0: "energies in meV",
}
STRESS_HINTS = {1 / 160.2177: "stresses in GPa", 1 / 1602.177: "stresses in kbar"}
STRESS_HINTS |= {factor: hint for factor, hint in HINTS.items() if hint.startswith("energies")}


class Work(NamedTuple):
    """Factors f and s with standard errors (nan: not determined) from `n_pairs`, and how much of E they explain."""

    n_pairs: int
    forces: float
    forces_error: float
    stress: float
    stress_error: float
    r_squared: float

    @property
    def knows_forces(self) -> bool:
        return self.r_squared > 0.7 and self.forces_error < 0.2 * abs(self.forces)

    @property
    def knows_stress(self) -> bool:
        return self.r_squared > 0.7 and self.stress_error < 0.2 * abs(self.stress)

    def warnings(self) -> list[str]:
        """What is wrong, in words; empty if all is well or nothing can be told."""
        found = []
        if self.knows_forces and not 1 / WRONG < self.forces < WRONG:
            found.append(
                f"forces do not match the energies: E changes by {self.forces:.3g} times the work of the forces over "
                f"{self.n_pairs} pairs of similar structures{_hint(self.forces, HINTS)}"
            )
        elif self.knows_stress and not 1 / WRONG < self.stress < WRONG:
            found.append(
                f"stresses do not match the energies: E changes by {self.stress:.3g} times the work of the stress over "
                f"{self.n_pairs} pairs of strained structures{_hint(self.stress, STRESS_HINTS)}"
            )
        return found


def _hint(factor: float, hints: dict[float, str]) -> str:
    sign = ["their sign is opposite to ASE's"] if factor < 0 else []
    near = [hint for value, hint in hints.items() if 1 / LIKE < abs(factor) / value < LIKE]
    return f": {'; '.join(sign + near)}" if sign or near else ""


def work_of_pairs(frames: Sequence[Frame]) -> Work:
    """The factors f and s of a set of frames; periodic and isolated structures alike."""
    groups: dict[tuple, list[Frame]] = {}
    for frame in frames:
        if frame.energy is not None and frame.forces is not None and len(frame.atoms) > 1:
            groups.setdefault((frame.atoms.numbers.tobytes(), frame.atoms.pbc.tobytes()), []).append(frame)
    rows = []
    for group in groups.values():
        group = group[:: -(-len(group) // MAX_GROUP)]
        if len(rows) < MAX_PAIRS and len(group) > 1 and (group[0].atoms.pbc.all() or not group[0].atoms.pbc.any()):
            rows += _pairs(group)
    return _fit(np.array(rows).reshape(-1, 3))


def _pairs(group: list[Frame]) -> list[tuple[float, float, float]]:
    """(energy difference, work of the forces, work of the stress) of each structure and the one most like it."""
    periodic = group[0].atoms.pbc.all()
    cells = np.array([frame.atoms.cell.array for frame in group])
    positions = np.array([frame.atoms.positions for frame in group])
    rows, done = [], set()
    for a, frame in enumerate(group):
        others = [b for b in range(len(group)) if b != a]
        if periodic:
            u = _crystal_displacements(positions[a], positions[others], cells[a], cells[others])
            turns = None
        else:
            u, turns = _molecule_displacements(positions[a], positions[others])
        strain = np.linalg.solve(0.5 * (cells[a] + cells[others]), cells[others] - cells[a]) if periodic else None
        distance = (u**2).sum((1, 2))
        if periodic:
            distance = distance + (strain**2).sum((1, 2)) * np.abs(np.linalg.det(cells[a])) ** (2 / 3)
        k = int(distance.argmin())
        b = others[k]
        if (b, a) in done or distance[k] < 1e-10:
            continue
        done.add((a, b))
        other = group[b]
        turned = other.forces if periodic else other.forces @ turns[k]
        w_forces = -0.5 * float(((frame.forces + turned) * u[k]).sum())
        w_stress = 0.0
        if periodic and np.abs(strain[k]).max() > 1e-6:
            if frame.stress is None or other.stress is None:
                continue
            virials = [f.stress * f.atoms.cell.volume for f in (frame, other)]
            w_stress = 0.5 * float((sum(virials) * strain[k]).sum())
        weight = (distance[k] / len(u[k]) + NEAR**2) ** -1.5
        rows.append(tuple(weight * x for x in (other.energy - frame.energy, w_forces, w_stress)))
    return rows


def _crystal_displacements(a, others, cell_a, cells) -> np.ndarray:
    """(structures, atoms, 3): from structure a to the others at fixed cell, without the common translation."""
    steps = np.swapaxes(np.linalg.solve(np.swapaxes(cells, 1, 2), np.swapaxes(others, 1, 2)), 1, 2)
    steps = steps - np.linalg.solve(cell_a.T, a.T).T
    steps -= np.round(steps)
    steps -= np.median(steps, axis=1, keepdims=True)
    return (steps - np.round(steps)) @ (0.5 * (cell_a + cells))


def _molecule_displacements(a, others) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (structures, atoms, 3) after the best superposition on a, and the rotations r (x @ r) of that."""
    a, others = a - a.mean(0), others - others.mean(1, keepdims=True)
    left, _, right = np.linalg.svd(np.swapaxes(others, 1, 2) @ a)
    left[:, :, -1] *= np.linalg.det(left @ right)[:, None]
    turns = left @ right
    return others @ turns - a, turns


def _fit(rows: np.ndarray) -> Work:
    """Least squares of E on the two works; a work that never occurs has factor nan."""
    nothing = Work(len(rows), np.nan, np.nan, np.nan, np.nan, 0.0)
    if len(rows) < 6:
        return nothing
    energy, work = rows[:, 0], rows[:, 1:]
    used = [k for k in range(2) if np.abs(work[:, k]).max() > 1e-6]
    if not used or not energy.any():
        return nothing
    a = work[:, used] / np.linalg.norm(work[:, used], axis=0)
    if len(used) == 2 and abs(a[:, 0] @ a[:, 1]) > 0.98:
        return nothing
    solution = np.linalg.lstsq(a, energy, rcond=None)[0]
    rest = energy - a @ solution
    variance = rest @ rest / max(len(energy) - len(used), 1) * np.diag(np.linalg.inv(a.T @ a))
    scale = np.linalg.norm(work[:, used], axis=0)
    factor, error = np.full(2, np.nan), np.full(2, np.nan)
    factor[used], error[used] = solution / scale, np.sqrt(variance) / scale
    return Work(len(rows), factor[0], error[0], factor[1], error[1], 1.0 - rest @ rest / (energy @ energy))
