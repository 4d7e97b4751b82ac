"""Node energies between two limits: a polynomial of the surroundings, as message passing is, stays finite far from its data.

    E -> low + w softplus((E - low) / w),    then    E -> high - w softplus((high - E) / w)

Between the limits, some w away from them, that is E itself up to w exp(-distance / w); beyond them energies level off and
forces fade, so that a repulsive term decides. It is part of the network in training: data feel no error from it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

from torch import Tensor
from torch.nn import functional

from .ops.symbols import Value, is_symbolic


class Limits(NamedTuple):
    """low, high and w, in the units of the network's output (Potential multiplies by its scale)."""

    low: float
    high: float
    width: float


def check_limits(name: str, limits: Sequence[float] | None) -> Limits | None:
    """The limits of the model `name`.

    Raises:
        ValueError: not three finite numbers with low < high and width > 0, with what was received.
    """
    if limits is None:
        return None
    values = [float(value) for value in limits]
    if len(values) != 3 or not all(map(math.isfinite, values)) or not (values[0] < values[1] and values[2] > 0):
        raise ValueError(f"{name}: limits are low < high and a positive width, got {list(limits)}")
    return Limits(*values)


def limited(energy: Tensor | Value, limits: Limits | None) -> Tensor | Value:
    """The node energies (n,) within the limits; None: as they are."""
    if limits is None:
        return energy
    above = _softplus(energy + -limits.low, limits.width) + limits.low
    return _softplus(above * -1.0 + limits.high, limits.width) * -1.0 + limits.high


def _softplus(x: Tensor | Value, width: float) -> Tensor | Value:
    y = x * (1.0 / width)
    if is_symbolic(y):  # the operator is ln((1 + e^x) / 2)
        y = y.unary("softplus") + math.log(2.0)
    else:
        y = functional.softplus(y, threshold=40.0)
    return y * width
