"""Lattice constant, bulk modulus and elastic constants of any crystal, with any ASE calculator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from .relax import RelaxSettings, relax
from .runfiles import stress_or_none

GPa = units.GPa


class EquationOfState(NamedTuple):
    """Two independent answers: from the energies' minimum, and from where the pressure crosses zero.

    `scale` multiplies the lattice vectors of the input, volumes are in A^3, energies in eV, pressures and bulk moduli
    in GPa. The stress' answers are None for a calculator without stress, and where the pressure has no zero in range.
    For a potential they agree with the energies' within the fit; a calculator of other stresses (a finite basis set,
    forces and stress of a network of their own) gives two different crystals.
    """

    scale: float
    volume: float
    energy: float
    bulk_modulus: float
    scale_stress: float | None
    bulk_modulus_stress: float | None
    volumes: np.ndarray
    energies: np.ndarray
    pressures: np.ndarray | None


class CubicConstants(NamedTuple):
    """C11, C12, C44 in GPa; `spread`: how far the tensor is from one of cubic symmetry along x, y, z."""

    c11: float
    c12: float
    c44: float
    spread: float


class ElasticConstants(NamedTuple):
    """Second derivatives of the energy with respect to strain: `tensor` (6, 6) GPa in Voigt order xx yy zz yz xz xy.

    `residual_stress` (6,) GPa is that of the unstrained cell; `asymmetry` GPa, how far the fitted tensor was from
    symmetric before it was symmetrised, measures the noise and the error of the fit.
    """

    tensor: np.ndarray
    residual_stress: np.ndarray
    asymmetry: float

    @property
    def bulk_modulus(self) -> float:
        """Voigt's average: that of a crystal under uniform strain, GPa."""
        return float(self.tensor[:3, :3].mean())

    @property
    def cubic(self) -> CubicConstants:
        """The nearest cubic tensor, for a crystal whose cubic axes lie along x, y and z."""
        c, off = self.tensor, ~np.eye(3, dtype=bool)
        c11, c12, c44 = np.diag(c)[:3].mean(), c[:3, :3][off].mean(), np.diag(c)[3:].mean()
        model = np.zeros((6, 6))
        model[:3, :3] = c12 + (c11 - c12) * np.eye(3)
        model[3:, 3:] = c44 * np.eye(3)
        return CubicConstants(float(c11), float(c12), float(c44), float(abs(c - model).max()))


def equation_of_state(
    atoms: Atoms, calculator, *, max_strain: float = 0.02, points: int = 9, relaxed: bool = False
) -> EquationOfState:
    """Energies and pressures of an isotropically strained cell are fitted by a polynomial in x = V^(-2/3).

        E = sum_k a_k x^k (k = 0..4),   B = V d2E/dV2 = (4/9) V^(-7/3) E''(x) at E'(x) = 0

    With k <= 3 this is the equation of Birch and Murnaghan. The range is moved until the minimum lies inside it.

    Args:
        atoms: a crystal, periodic in three directions (left unchanged).
        calculator: any ASE calculator with energy; pressures are fitted where it has stress.
        max_strain: largest change of the lattice constants, relative.
        points: number of volumes, at least 5.
        relaxed: relax the atoms at each volume. Needed where symmetry does not hold them in place.
    Raises:
        ValueError: bad argument, or no minimum within 8 times max_strain.

    Source: F. Birch, Phys. Rev. 71, 809 (1947), eq. 19.
    """
    _check(atoms, max_strain)
    if points < 5:
        raise ValueError(f"points must be at least 5; received {points}")
    centre = 1.0
    for _ in range(8):
        scales = centre * np.linspace(1 - max_strain, 1 + max_strain, points)
        cells = [_strained(atoms, s * np.eye(3)) for s in scales]
        results = [_evaluate(cell, calculator, relaxed) for cell in cells]
        energies = np.array([energy for energy, _ in results])
        scale, curvature = _minimum(scales, energies)
        if scale is not None:
            break
        centre = scales[energies.argmin()]
    else:
        raise ValueError(f"no energy minimum between {scales[0]:.3f} and {scales[-1]:.3f} times the lattice constants")
    v0 = atoms.get_volume()
    volume = float(v0 * scale**3)
    energy = float(np.polyval(_fit(scales, energies), scale**-2))
    bulk = float(4 / 9 * scale**-7 * curvature / v0 / GPa)
    if results[0][1] is None:
        return EquationOfState(scale, volume, energy, bulk, None, None, v0 * scales**3, energies, None)
    pressures = np.array([-np.trace(stress) / 3 for _, stress in results]) / GPa
    crossing, bulk_stress = _zero(scales, pressures)
    return EquationOfState(scale, volume, energy, bulk, crossing, bulk_stress, v0 * scales**3, energies, pressures)


def elastic_constants(
    atoms: Atoms, calculator, *, strain: float = 0.005, relaxed: bool = False, fmax: float = 1e-4
) -> ElasticConstants:
    """C_ij = (1/V0) d2E / d(eta_i) d(eta_j): derivatives of the second Piola-Kirchhoff stress by Lagrangian strain.

        F = sqrt(1 + 2 eta),   S = det(F) F^-1 sigma F^-T,   C_ij = dS_i / d(eta_j)

    S is the exact first derivative of the energy by eta also where the unstrained cell carries stress, so C is its
    second one there too; without residual stress it is the usual stress-strain coefficient. Slopes are four-point
    differences, exact for cubic polynomials.

    Args:
        atoms: a crystal, periodic in three directions (left unchanged); relax its cell first for zero stress.
        calculator: any ASE calculator with stress.
        strain: largest Voigt strain (engineering shear).
        relaxed: False keeps fractional coordinates (clamped ions); True relaxes the atoms in every strained cell.
        fmax: eV/A, to which they are relaxed.
    Returns:
        ElasticConstants, GPa.
    Raises:
        ValueError: bad argument, or atoms that could not be relaxed to fmax.

    Source: D. C. Wallace, Thermodynamics of Crystals (1972), eqs. 2.11 and 2.25.
    """
    _check(atoms, strain)
    start = _relaxed_ions(atoms, calculator, fmax) if relaxed else atoms
    tensor = np.empty((6, 6))
    for j in range(6):
        s = {}
        for step in (-1.0, -0.5, 0.5, 1.0):
            eta = np.zeros(6)
            eta[j] = step * strain if j < 3 else step * strain / 2
            deformation = _root(np.eye(3) + 2 * voigt_6_to_full_3x3_stress(eta))
            s[step] = _piola(start, deformation, calculator, fmax if relaxed else None)
        tensor[:, j] = (8 * (s[0.5] - s[-0.5]) - (s[1.0] - s[-1.0])) / (6 * strain)
    residual = _piola(start, np.eye(3), calculator, None)
    asymmetry = float(abs(tensor - tensor.T).max())
    return ElasticConstants((tensor + tensor.T) / 2 / GPa, residual / GPa, asymmetry / GPa)


def _check(atoms: Atoms, strain: float) -> None:
    if len(atoms) == 0 or not atoms.pbc.all():
        raise ValueError(f"needs a crystal periodic in three directions; received {atoms.symbols}, pbc {atoms.pbc}")
    if not 0 < strain <= 0.1:
        raise ValueError(f"strain must lie between 0 and 0.1; received {strain!r}")


def _strained(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    """A copy whose cell is deformed by a symmetric matrix, fractional coordinates kept."""
    strained = atoms.copy()
    strained.set_constraint()
    strained.set_cell(strained.cell @ deformation, scale_atoms=True)
    return strained


def _relaxed_ions(atoms: Atoms, calculator, fmax: float) -> Atoms:
    result = relax(atoms, calculator, RelaxSettings(fmax=fmax, optimizer="bfgs"), steps=300)
    if not result.converged:
        raise ValueError(f"atoms relaxed to {result.max_force:.2e} eV/A only, fmax is {fmax:.2e}: give a larger one")
    return result.atoms


def _evaluate(atoms: Atoms, calculator, relaxed: bool) -> tuple[float, np.ndarray | None]:
    """Energy in eV and stress (3, 3) in eV/A^3, if the calculator has it."""
    if relaxed:
        atoms = _relaxed_ions(atoms, calculator, 1e-3)
    atoms.calc = calculator
    stress = stress_or_none(atoms)  # before the energy, so that one evaluation gives both
    return atoms.get_potential_energy(), stress


def _fit(scales: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of a fourth-order polynomial in x = scale^-2, which is V^(-2/3) in units of the input's."""
    return np.polyfit(scales**-2.0, values, 4)


def _minimum(scales: np.ndarray, energies: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Scale and d2E/dx2 at the fitted minimum; None where it lies outside the range."""
    polynomial = _fit(scales, energies)
    roots = np.roots(np.polyder(polynomial))
    x = roots[abs(roots.imag) < 1e-9].real
    second = np.polyval(np.polyder(polynomial, 2), x)
    inside = (x > scales[-1] ** -2.0) & (x < scales[0] ** -2.0) & (second > 0)
    if not inside.any():
        return None, None
    return float(x[inside][0] ** -0.5), float(second[inside][0])


def _zero(scales: np.ndarray, pressures: np.ndarray) -> tuple[float | None, float | None]:
    """Scale and bulk modulus -V dP/dV where the fitted pressure is zero; None where that lies outside the range."""
    polynomial = _fit(scales, pressures)
    roots = np.roots(polynomial)
    x = roots[abs(roots.imag) < 1e-9].real
    x = x[(x > scales[-1] ** -2.0) & (x < scales[0] ** -2.0)]
    if not len(x):
        return None, None
    return float(x[0] ** -0.5), float(2 / 3 * x[0] * np.polyval(np.polyder(polynomial), x[0]))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def _piola(atoms: Atoms, deformation: np.ndarray, calculator, fmax: float | None) -> np.ndarray:
    """Second Piola-Kirchhoff stress (6,) in eV/A^3 of the deformed cell, ions relaxed to fmax unless it is None."""
    strained = _strained(atoms, deformation)
    if fmax is not None:
        strained = _relaxed_ions(strained, calculator, fmax)
    strained.calc = calculator
    inverse = np.linalg.inv(deformation)
    stress = np.linalg.det(deformation) * inverse @ strained.get_stress(voigt=False) @ inverse.T
    return full_3x3_to_voigt_6_stress(stress)
