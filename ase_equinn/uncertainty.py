"""How uncertain a force is, from how far the atom's descriptors lie from those of the training set.

    sigma_i^2 = floor^2 + (factor_Z d_i^power)^2        d_i^2 = min_c sum_a ((x_ia - c_a) / w_a)^2 / k

x_i are the k descriptors of atom i, c the centres that stand for the training atoms of its element Z, w_a their
standard deviations. sigma_i, eV/A, predicts the root mean square of |F_i - F_i(reference)|. Beyond the reach, the
largest distance on the validation set, nothing was fitted: there the second term grows at least in proportion to d.

Source: distances in the latent space as a measure of error, scaled on held-out data: Janet, Duan, Yang, Nandy, Kulik,
Chem. Sci. 10, 7913 (2019). Clusters of the training set's features of atoms for interatomic potentials: Zhu, Batzner,
Musaelian, Kozinsky, J. Chem. Phys. 158, 164111 (2023), who take the likelihood of a Gaussian mixture instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .uncertainty_nearest import Nearest

METHOD = "nearest centre"
PREFIX = "uncertainty."  # of the names of its tensors in a potential file


class Scale(NamedTuple):
    """From distances to sigma: floor (eV/A), power, reach, and a factor (eV/A) for each element."""

    floor: float
    power: float
    reach: float
    factors: dict[int, float]

    def __call__(self, factors, squares):
        """sigma from the factors of the atoms and their d^2, tensors or arrays."""
        term = squares**self.power * (factors * factors)
        if self.power < 1:
            term = term * (squares / self.reach**2).clip(min=1) ** (1 - self.power)
        return (term + self.floor**2) ** 0.5


class _Atoms(NamedTuple):
    rows: list[tuple[int, Tensor]]  # of each element
    factors: Tensor  # (n,) eV/A


class Uncertainty:
    """Calibrated uncertainties of one potential; not to be changed.

    Args:
        centres: {atomic number: (n_centres, k)} in the space of the potential's descriptors.
        widths: {atomic number: (k,)}, positive.
        scale: how distances become sigma.
        largest: eV/A, the largest sigma on the validation set.
        facts: anything JSON can hold: coverage, files, ...

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite or positive, with the value.
    """

    def __init__(
        self,
        centres: dict[int, Tensor],
        widths: dict[int, Tensor],
        scale: Scale,
        largest: float,
        facts: dict | None = None,
    ):
        self.species = tuple(sorted(centres))
        self.centres = {z: centres[z].detach().float().cpu() for z in self.species}
        self.widths = {z: widths[z].detach().float().cpu() for z in self.species if z in widths}
        self.scale, self.largest, self.facts = scale, float(largest), dict(facts or {})
        self._ready: dict[tuple, Nearest] = {}
        self._kept: tuple[Tensor, _Atoms] | None = None
        _check(self, widths)
        self.n_descriptors = self.centres[self.species[0]].shape[1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_ready": {}, "_kept": None}

    def sigma(self, numbers: Tensor, descriptors: Tensor) -> Tensor:
        """Expected size of the force's error on each atom.

        Args:
            numbers: (n,) atomic numbers, of `species` only.
            descriptors: (n, k) of the potential; any dtype and device.

        Returns:
            (n,) eV/A, float64.
        """
        rows, factors = self._atoms(numbers)
        squares = self._squares(rows, descriptors)
        if squares.device.type != "cpu":
            return self.scale(factors, squares)
        return torch.from_numpy(self.scale(factors.numpy(), squares.numpy()))  # for so little several times faster

    def distances(self, numbers: Tensor, descriptors: Tensor) -> Tensor:
        """d_i, (n,) float64."""
        return self._squares(self._atoms(numbers).rows, descriptors).sqrt()

    def _squares(self, atoms: list[tuple[int, Tensor]], descriptors: Tensor) -> Tensor:
        """d_i^2, (n,) float64."""
        if descriptors.shape[1] != self.n_descriptors:
            raise ValueError(f"{descriptors.shape[1]} descriptors, the centres have {self.n_descriptors}")
        x = descriptors if descriptors.stride(1) == 1 else descriptors.contiguous()
        out = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for z, rows in atoms:
            self._nearest(z, x)(x, rows, out)
        return out.double()

    def _atoms(self, numbers: Tensor) -> _Atoms:
        """What follows from the atomic numbers, kept while they stay."""
        if self._kept is None or not torch.equal(self._kept[0], numbers):
            factors = torch.zeros(len(numbers), dtype=torch.float64, device=numbers.device)
            rows = [(z, torch.nonzero(numbers == z)[:, 0]) for z in self.species]
            for z, own in rows:
                factors[own] = self.scale.factors[z]
            self._kept = numbers.clone(), _Atoms(rows, factors)
        return self._kept[1]

    def _nearest(self, number: int, x: Tensor) -> Nearest:
        key = number, x.dtype, x.device
        if key not in self._ready:
            self._ready[key] = Nearest(self.centres[number], self.widths[number], x.dtype, x.device)
        return self._ready[key]

    def to_file(self) -> tuple[dict, dict[str, Tensor]]:
        """An entry for the header of a potential file, and tensors by name."""
        entry = {
            "method": METHOD,
            "floor": self.scale.floor,
            "power": self.scale.power,
            "reach": self.scale.reach,
            "factors": {str(z): self.scale.factors[z] for z in self.species},
            "largest": self.largest,
            "facts": self.facts,
        }
        named = {"centres": self.centres, "widths": self.widths}
        return entry, {f"{PREFIX}{name}.{z}": table[z] for name, table in named.items() for z in self.species}

    @classmethod
    def from_file(cls, entry: dict, tensors: dict[str, Tensor], species: tuple[int, ...]) -> "Uncertainty":
        """What `to_file` gave, for a potential of these species; everything is checked.

        Raises:
            ValueError: whatever does not fit.
        """
        kinds = dict(method=str, floor=float, power=float, reach=float, factors=dict, largest=float, facts=dict)
        found = {key: type(value) for key, value in entry.items()}
        if found != kinds or entry["method"] != METHOD:
            raise ValueError(f"uncertainty {str(entry)[:300]} is not of the method {METHOD!r} with {', '.join(kinds)}")
        factors = entry["factors"]
        if set(factors) != {str(z) for z in species} or not all(type(value) is float for value in factors.values()):
            raise ValueError(f"uncertainty has factors {str(factors)[:200]}, not one number for each of {species}")
        wanted = {f"{PREFIX}{name}.{z}" for name in ("centres", "widths") for z in species}
        wrong = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != torch.float32}
        if set(tensors) != wanted or wrong:
            names = str(sorted(tensors))[:300]
            raise ValueError(f"uncertainty has the tensors {names} (not float32: {str(wrong)[:300]})")
        tables = [{z: tensors[f"{PREFIX}{name}.{z}"] for z in species} for name in ("centres", "widths")]
        scale = Scale(entry["floor"], entry["power"], entry["reach"], {z: factors[str(z)] for z in species})
        return cls(*tables, scale, entry["largest"], entry["facts"])


def _check(uncertainty: Uncertainty, widths: dict) -> None:
    species, scale = uncertainty.species, uncertainty.scale
    if not species or set(widths) != set(species) or set(scale.factors) != set(species):
        raise ValueError(f"centres for {species}, widths for {sorted(widths)}, factors for {sorted(scale.factors)}")
    numbers = {"floor": scale.floor, "power": scale.power, "reach": scale.reach, "largest sigma": uncertainty.largest}
    numbers |= {f"factor of element {z}": scale.factors[z] for z in species}
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"uncertainty: {name} must be positive and finite, got {number}")
    k = uncertainty.centres[species[0]].shape[-1]
    for z in species:
        centres, width = uncertainty.centres[z], uncertainty.widths[z]
        if centres.dim() != 2 or not centres.numel() or centres.shape[1] != k or width.shape != (k,):
            shapes = tuple(centres.shape), tuple(width.shape)
            raise ValueError(f"uncertainty: centres and widths of element {z} are {shapes}, not (n, {k}) and ({k},)")
        if not torch.isfinite(centres).all() or not (torch.isfinite(width) & (width > 0)).all():
            raise ValueError(f"uncertainty: a centre or width of element {z} is not finite, or a width not positive")
