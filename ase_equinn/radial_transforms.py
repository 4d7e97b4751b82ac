"""Distance transforms: what a radial basis sees instead of the distance, so that it resolves the bonds of each pair.

Both depend on the covalent radii of the two atoms. They work elementwise in the dtype of their input and can be
differentiated twice, r = 0 included.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A, for Z = 1..96: Cordero et al., Dalton Trans. 2008, 2832, table 2 (sp3 carbon, low-spin Mn, Fe and Co).
_CORDERO = """
0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 1.70 1.60 1.53 1.39
1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46 1.42 1.39 1.45 1.44
1.42 1.39 1.39 1.38 1.39 1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.90 1.87 1.87 1.75
1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21 2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69
"""


def covalent_radius(number: int) -> float:
    """The covalent radius of an element in A.

    Raises:
        ValueError: an element that the table lacks, with its number.

    Source: Cordero et al., Dalton Trans. 2008, 2832.
    """
    radii = _CORDERO.split()
    if not 1 <= number <= len(radii):
        raise ValueError(f"covalent radii are known for atomic numbers 1..{len(radii)}, got {number}")
    return float(radii[number - 1])


def agnesi(lengths: Tensor, radii: float, q: float = 0.9183, p: float = 4.5791, a: float = 1.0805) -> Tensor:
    """``1 / (1 + a x^p / (1 + x^(p - q)))`` with x = 2 r / radii: from 1 at r = 0 towards 0, steepest at bond lengths.

    Args:
        lengths: distances of any shape, A.
        radii: sum of the two covalent radii, A.
        q, p, a: shape; p > 2 for a second derivative at r = 0.

    Source: Witt et al., J. Chem. Phys. 159, 164101 (2023), section on radial transformations.
    """
    x = lengths * (2 / radii)
    return 1 / (1 + a * x**p / (1 + x ** (p - q)))


def soft(lengths: Tensor, radii: float, alpha: float = 4.0) -> Tensor:
    """From 3/4 radii at short distances to r at long ones: ``b + (r - b) (1 + tanh(alpha (r - m) / (c - b))) / 2``.

    Here b = 3/4 radii, c = 4/3 radii and m = (b + c) / 2.

    Args:
        lengths: distances of any shape, A.
        radii: sum of the two covalent radii, A.
        alpha: steepness.

    Source: the transform of mace-torch, where it is called Soft.
    """
    low, high = 0.75 * radii, 4 / 3 * radii
    return low + (lengths - low) * 0.5 * (1 + torch.tanh(alpha / (high - low) * (lengths - 0.5 * (low + high))))


TRANSFORMS = {"agnesi": agnesi, "soft": soft}
