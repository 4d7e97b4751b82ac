"""Node energies between two limits: a polynomial of the surroundings, as message passing is, stays finite far from its data.

    E -> low + w softplus((E - low) / w),    then    E -> high - w softplus((high - E) / w)

Between the limits, some w away from them, that is E itself up to w exp(-distance / w); beyond them energies level off and
forces fade, so that a repulsive term decides. train_limits takes them from the node energies of the training set.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops.symbols import Value, is_symbolic


class Limits(NamedTuple):
    """low and high, a number per species in ascending order of the atomic number, and w > 0.

    In the units of the network's output (Potential multiplies by its scale).
    """

    low: Sequence[float]
    high: Sequence[float]
    width: float


class EnergyLimits(nn.Module):
    """Limits of the node energies of the model `name`; None: energies stay as they are.

    Args:
        name: of the model, for messages.
        limits: None, or a mapping with the fields of Limits.
        n_species: of the model.

    Raises:
        ValueError: not one finite low < high per species and a positive width, with what was received.
    """

    def __init__(self, name: str, limits: dict | Limits | None, n_species: int):
        super().__init__()
        self.limits = None if limits is None else _checked(name, limits, n_species)
        for side in ("low", "high"):
            rows = None if limits is None else torch.tensor(getattr(self.limits, side), dtype=torch.float64)[:, None]
            self.register_buffer(side, rows, persistent=False)

    @property
    def hyperparameters(self) -> dict | None:
        """The argument `limits` that makes the same."""
        if self.limits is None:
            return None
        return {"low": list(self.limits.low), "high": list(self.limits.high), "width": self.limits.width}

    def forward(self, energy: Tensor | Value, species: Tensor) -> Tensor | Value:
        """The node energies (n_atoms,) of atoms with the indices `species` (n_atoms,), limited."""
        if self.limits is None:
            return energy
        low, high = (rows.index_select(0, species).squeeze(1) for rows in (self.low, self.high))
        lowest = (-self.low).index_select(0, species).squeeze(1)
        above = _softplus(energy + lowest, self.limits.width) + low
        return _softplus(above * -1.0 + high, self.limits.width) * -1.0 + high


def _checked(name: str, limits: dict | Limits, n_species: int) -> Limits:
    fields = limits._asdict() if isinstance(limits, Limits) else limits
    message = f"{name}: limits are low < high of {n_species} species and a positive width, got {limits!r}"
    try:
        low, high = (tuple(float(value) for value in fields[side]) for side in ("low", "high"))
        width = float(fields["width"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(message) from None
    finite = all(map(math.isfinite, (*low, *high, width)))
    if not (len(low) == len(high) == n_species and finite and width > 0 and all(a < b for a, b in zip(low, high))):
        raise ValueError(message)
    if len(fields) != len(Limits._fields):
        raise ValueError(message)
    return Limits(low, high, width)


def _softplus(x: Tensor | Value, width: float) -> Tensor | Value:
    y = x * (1.0 / width)
    if is_symbolic(y):  # the operator is ln((1 + e^x) / 2)
        y = y.unary("softplus") + math.log(2.0)
    else:
        y = functional.softplus(y, threshold=40.0)
    return y * width
