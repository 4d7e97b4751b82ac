"""A radial function as a table: quintic Hermite interpolation between equidistant knots, twice continuously differentiable.

The table is the radial function: every implementation of the convolution interpolates the same numbers, in training too, so
the trained model is the deployed model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Coefficients of t^0..t^5 on [0, 1] of the functions that carry value, slope, curvature at t = 0, then at t = 1.
HERMITE = np.array(
    [
        [1, 0, 0, -10, 15, -6],
        [0, 1, 0, -6, 8, -3],
        [0, 0, 0.5, -1.5, 1.5, -0.5],
        [0, 0, 0, 10, -15, 6],
        [0, 0, 0, -4, 7, -3],
        [0, 0, 0, 0.5, -1, 0.5],
    ]
)


class RadialTable(NamedTuple):
    """n functions on the knots k * spacing.

    values: (n_knots, 3, n): value, first derivative times spacing, second derivative times spacing^2.
    spacing: A.
    first: None, or for every edge the row where its own table begins, (E,) int64: several tables stand one after the
        other in `values`, each of `n_knots` rows. Knots that no edge needs may be left out: knot k of an edge's table is
        row first + k.
    """

    values: Tensor
    spacing: float
    first: Tensor | None = None
    n_knots: int | None = None

    def __call__(self, lengths: Tensor) -> Tensor:
        """The functions at distances (E,) within the knots: (E, n), twice differentiable in distances and values."""
        n_knots = self.values.shape[0] if self.first is None else self.n_knots
        scaled = lengths / self.spacing
        knot = scaled.detach().floor().clamp(0, n_knots - 2)
        t = scaled - knot
        # The functions of the two values add up to 1: with the difference of the values in place of the second, that of
        # the first is constant, and slopes are no small differences of large terms.
        hermite = torch.from_numpy(HERMITE[1:]).to(t)
        powers = torch.stack([torch.ones_like(t), t, t**2, t**3, t**4, t**5])
        basis = (hermite @ powers).T  # (E, 5)
        whole = knot.long() if self.first is None else knot.long() + self.first
        low, high = self.values[:-1], self.values[1:]
        intervals = torch.cat([low[:, 1:], high[:, :1] - low[:, :1], high[:, 1:]], dim=1)  # (n_knots - 1, 5, n)
        changes = torch.bmm(basis[:, None], intervals.index_select(0, whole))[:, 0]
        return low[:, 0].index_select(0, whole) + changes
