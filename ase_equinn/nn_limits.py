"""Node energies within limits: a polynomial of the surroundings, as message passing is, is worth nothing far from its data.

    E -> low + w softplus((E - low) / w),    E -> high - w softplus((high - E) / w)
    E -> high + f (E - high),                f = (1 - tanh(8 (rho / rho_max - 1.7) / 0.7)) / 2

Between the limits, some w away from them, E stays itself up to w exp(-distance / w); beyond them energies level off and
forces fade, so that a repulsive term decides. Where atoms are more crowded than rho_max (nn_crowding), between 1.5 and 1.9
times as much, the energy goes over to the upper limit. train_limits takes all of them from the training set.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .graph import Graph
from .nn_crowding import Crowding
from .ops.symbols import Value, is_symbolic

MIDDLE = 1.7
SHARPNESS = 8.0 / (MIDDLE - 1.0)  # f leaves 1 by 1e-7 at rho_max


class Limits(NamedTuple):
    """low, high and crowding (rho_max > 0): a number per species in ascending order of the atomic number; width w > 0.

    Energies in the units of the network's output (Potential multiplies by its scale).
    """

    low: Sequence[float]
    high: Sequence[float]
    crowding: Sequence[float]
    width: float


class EnergyLimits(nn.Module):
    """Limits of the node energies of the model `name`; None: energies stay as they are.

    Args:
        name: of the model, for messages.
        limits: None, or a mapping with the fields of Limits.
        species: atomic numbers of the model, ascending.
        cutoff: A, of the model.

    Raises:
        ValueError: not one finite low < high and positive crowding per species and a positive width, with what was
            received.
    """

    def __init__(self, name: str, limits: dict | None, species: Sequence[int], cutoff: float):
        super().__init__()
        self.limits = None if limits is None else _checked(name, limits, len(species))
        if self.limits is None:
            return
        self.crowding = Crowding(species, cutoff)
        for side in ("low", "high", "crowding"):
            rows = torch.tensor(getattr(self.limits, side), dtype=torch.float64)[:, None]
            self.register_buffer("most" if side == "crowding" else side, rows, persistent=False)

    @property
    def hyperparameters(self) -> dict | None:
        """The argument `limits` that makes the same."""
        return (
            None if self.limits is None else {k: [*v] if k != "width" else v for k, v in self.limits._asdict().items()}
        )

    def forward(self, energy: Tensor | Value, graph: Graph, vectors: Tensor, species: Tensor) -> Tensor | Value:
        """The node energies (n_atoms,), limited; vectors (n_edges, 3) in A, species (n_atoms,) indices."""
        if self.limits is None:
            return energy

        def of_atoms(rows: Tensor) -> Tensor | Value:
            return rows.index_select(0, species).squeeze(1)

        width, high = self.limits.width, of_atoms(self.high)
        above = _softplus(energy + of_atoms(-self.low), width) + of_atoms(self.low)
        gap = _softplus(above * -1.0 + high, width)
        rho = self.crowding(graph, vectors, species)
        fade = torch.tanh(rho * of_atoms(SHARPNESS / self.most) + -SHARPNESS * MIDDLE) * -0.5 + 0.5
        return gap * fade * -1.0 + high


def _checked(name: str, limits: dict, n_species: int) -> Limits:
    try:
        sides = [tuple(float(value) for value in limits[side]) for side in Limits._fields[:-1]]
        found = Limits(*sides, float(limits["width"]))
        complete = len(limits) == len(Limits._fields) and all(len(side) == n_species for side in sides)
        finite = all(map(math.isfinite, (*sum(sides, ()), found.width)))
    except (AttributeError, KeyError, TypeError, ValueError):
        complete = finite = False
    if complete and finite and found.width > 0:
        if all(a < b and most > 0 for a, b, most in zip(*sides)):
            return found
    raise ValueError(
        f"{name}: limits are low < high and a positive crowding of {n_species} species and a positive width, "
        f"got {limits!r}"
    )


def _softplus(x: Tensor | Value, width: float) -> Tensor | Value:
    y = x * (1.0 / width)
    if is_symbolic(y):  # the operator is ln((1 + e^x) / 2)
        y = y.unary("softplus") + math.log(2.0)
    else:
        y = functional.softplus(y, threshold=40.0)
    return y * width
