"""How uncertain a force is, from how far the members of a committee disagree about it.

    sigma_i^2 = floor^2 + (factor_Z s_i)^2        s_i^2 = sum_m |F_mi - F_i|^2 / (M - 1)

F_mi is the force on atom i, of element Z, by member m of M, and F_i the mean over the members. sigma_i, eV/A, predicts
the root mean square of |F_i - F_i(reference)|. Members that err independently have factors near 1 / sqrt(M): their mean
is better than each. What all of them get wrong in the same way makes factors and floor larger.

Source: the spread of a committee times a factor of greatest likelihood on held-out data: Musil, Willatt, Langovoy,
Ceriotti, J. Chem. Theory Comput. 15, 906 (2019).
"""

from __future__ import annotations

import math

import numpy as np

METHOD = "committee spread"
_FIELDS = {"method": str, "floor": float, "factors": dict, "largest": float, "facts": dict}


class Spread:
    """Calibrated uncertainties of a committee; not to be changed.

    Args:
        factors: {atomic number: positive number without unit}.
        floor: eV/A, sigma where all members agree.
        largest: eV/A, the largest sigma on the validation set.
        facts: anything JSON can hold: coverage, files, ...

    Raises:
        ValueError: numbers that are not finite or positive, with the value.
    """

    def __init__(self, factors: dict[int, float], floor: float, largest: float, facts: dict | None = None):
        self.species, self.factors = tuple(sorted(factors)), dict(factors)
        self.floor, self.largest, self.facts = float(floor), float(largest), dict(facts or {})
        if not factors:
            raise ValueError("a spread needs a factor for each element, got none")
        numbers = {"floor": self.floor, "largest sigma": self.largest}
        for name, number in (numbers | {f"factor of element {z}": f for z, f in factors.items()}).items():
            if not 0 < number < math.inf:
                raise ValueError(f"spread: {name} must be positive and finite, got {number}")
        self._table = np.full(max(self.species) + 1, np.nan)
        self._table[list(self.species)] = [self.factors[z] for z in self.species]

    def sigma(self, numbers: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Expected size of the force's error on each atom.

        Args:
            numbers: (n,) atomic numbers, of `species` only.
            spread: (n,) s_i, eV/A.

        Returns:
            (n,) eV/A, float64.
        """
        return np.hypot(self.floor, self._table[numbers] * spread)

    def to_file(self) -> dict:
        """An entry for the header of a file."""
        factors = {str(z): self.factors[z] for z in self.species}
        values = METHOD, self.floor, factors, self.largest, self.facts
        return dict(zip(_FIELDS, values, strict=True))

    @classmethod
    def from_file(cls, entry: dict, species: tuple[int, ...]) -> "Spread":
        """What `to_file` gave, for members with these species; everything is checked.

        Raises:
            ValueError: whatever does not fit.
        """
        if {key: type(value) for key, value in entry.items()} != _FIELDS or entry["method"] != METHOD:
            raise ValueError(f"spread {str(entry)[:300]} is not of the method {METHOD!r} with {', '.join(_FIELDS)}")
        factors = entry["factors"]
        if set(factors) != {str(z) for z in species} or not all(type(value) is float for value in factors.values()):
            raise ValueError(f"spread has factors {str(factors)[:200]}, not one number for each of {species}")
        return cls({z: factors[str(z)] for z in species}, entry["floor"], entry["largest"], entry["facts"])


def spread_of(forces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, 3) and s_i (n,) of the members' forces (M, n, 3)."""
    return forces.mean(0), np.linalg.norm(forces.std(0, ddof=1), axis=1)
