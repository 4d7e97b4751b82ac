"""A calculator for tests: a Morse pair potential with a smooth cutoff, by brute force over all images, in float64.

It keeps no neighbour list, so its results depend on nothing but the atoms it is given.
"""

import itertools

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress


class PairCalculator(Calculator):
    """V(r) = D (exp(-2a(r - r0)) - 2 exp(-a(r - r0))) (1 - (r/c)^2)^3 for r < c."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, depth=0.4, a=1.5, r0=2.6, cutoff=5.0):
        super().__init__()
        self.depth, self.a, self.r0, self.cutoff = depth, a, r0, cutoff
        self.count = 0

    def pair(self, r):
        """Energy and its derivative of pairs at distances r < cutoff."""
        x, f = np.exp(-self.a * (r - self.r0)), 1 - (r / self.cutoff) ** 2
        morse, slope = self.depth * (x * x - 2 * x), -2 * self.a * self.depth * (x * x - x)
        return morse * f**3, slope * f**3 - morse * 6 * r / self.cutoff**2 * f**2

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.count += 1
        cell = atoms.cell.complete()
        fractional = np.linalg.solve(cell.T, atoms.positions.T).T
        nearest = fractional[None] - fractional[:, None]
        nearest -= np.rint(nearest) * atoms.pbc
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        reach = np.where(atoms.pbc, np.floor(self.cutoff / heights + 0.5), 0).astype(int)
        images = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
        vectors = (nearest[:, :, None] + images) @ np.array(cell)  # r_ij of all images
        r = np.sqrt((vectors**2).sum(-1))
        near = (r < self.cutoff) & (r > 1e-8)
        energy, slope = np.zeros_like(r), np.zeros_like(r)
        energy[near], slope[near] = self.pair(r[near])
        gradient = np.where(near, slope / np.where(near, r, 1), 0)[..., None] * vectors
        total = float(energy.sum() / 2)
        self.results = {"energy": total, "free_energy": total, "forces": gradient.sum((1, 2))}
        if atoms.pbc.all():
            virial = np.einsum("ijka,ijkb->ab", gradient, vectors) / 2
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / atoms.get_volume())
