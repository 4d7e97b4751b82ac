"""Node energies within limits: a polynomial of the surroundings, as message passing is, is worth nothing far from its data.

    E -> low + w softplus((E - low) / w),    E -> high - w softplus((high - E) / w)
    E -> alone + f (E - alone),              f = tanh(8 rho / rho_min)
    E -> high + f (E - high),                f = (1 - tanh(8 (x - m) / (m - 1))) / 2, x = rho / rho_max, near / near_max

Between the limits, some w away from them, E stays itself up to w exp(-distance / w); beyond them energies level off and
forces fade, so that a repulsive term decides. rho and near, the two sums of nn_crowding, are about the number of atoms that
touch this one. Where one is more than rho_max or near_max, about m = 1.9 and 3 times as much, the energy goes over to the upper
limit: that is some 10 % nearer than any atoms of the training set. Where rho is less than rho_min, below a third of it, it goes
over to that of an atom alone. What a crowded atom knows it keeps: its features go to its neighbours times the factors f of
rho_max and near_max, or a third atom would hear of two that overlap what no data bound, and pull them together.
train_limits takes all of them from the training set.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .graph import Graph
from .irreps import Irreps
from .nn_crowding import Crowding
from .ops.symbols import Value, is_symbolic

SHARPNESS = 8.0  # the factors leave 1 by 1e-7 at rho_min and rho_max
MIDDLE = (1.9, 3.0)  # of rho and near: exp(6 x) for x = 0.11 and exp(12 x) for 0.09


class Limits(NamedTuple):
    """A number per species in ascending order of the atomic number: low < alone < high, 0 < rho_min <= rho_max; width w > 0.

    Energies in the units of the network's output (Potential multiplies by its scale).
    """

    low: Sequence[float]
    high: Sequence[float]
    alone: Sequence[float]
    rho_min: Sequence[float]
    rho_max: Sequence[float]
    near_max: Sequence[float]
    width: float


class Surroundings(NamedTuple):
    """Factors of each atom (n_atoms,): `bound` is 0 for an atom alone, `free` is 0 for a crowded one; otherwise 1."""

    bound: Tensor | Value
    free: Tensor | Value


class EnergyLimits(nn.Module):
    """Limits of the node energies of the model `name`; None: energies stay as they are.

    Args:
        name: of the model, for messages.
        limits: None, or a mapping with the fields of Limits.
        species: atomic numbers of the model, ascending.
        cutoff: A, of the model.

    Raises:
        ValueError: numbers per species that are missing, not finite or not in order, with what was received.
    """

    def __init__(self, name: str, limits: dict | None, species: Sequence[int], cutoff: float):
        super().__init__()
        self.limits = None if limits is None else _checked(name, limits, len(species))
        if self.limits is None:
            return
        self.crowding = Crowding(species, cutoff)
        self.register_buffer("one", torch.ones(1, 1), persistent=False)
        for name in Limits._fields[:-1]:
            rows = torch.tensor(getattr(self.limits, name), dtype=torch.float64)[:, None]
            self.register_buffer(name, rows, persistent=False)

    @property
    def hyperparameters(self) -> dict | None:
        """The argument `limits` that makes the same."""
        if self.limits is None:
            return None
        return {**{name: [*rows] for name, rows in zip(Limits._fields, self.limits[:-1])}, "width": self.limits.width}

    def surroundings(self, graph: Graph, vectors: Tensor, species: Tensor) -> Surroundings | None:
        """What the other methods want; vectors (n_edges, 3) in A, species (n_atoms,) indices."""
        if self.limits is None:
            return None
        rho, near = self.crowding(graph, vectors, species)
        free = [
            _gate(rho, _of_atoms(1.0 / self.rho_max, species), MIDDLE[0]),
            _gate(near, _of_atoms(1.0 / self.near_max, species), MIDDLE[1]),
        ]
        return Surroundings(torch.tanh(rho * _of_atoms(SHARPNESS / self.rho_min, species)), free[0] * free[1])

    def sent(
        self, x: Sequence[Tensor | Value], irreps: Irreps, around: Surroundings | None
    ) -> Sequence[Tensor | Value]:
        """Features (n_atoms, 2l + 1, mul) per irrep as the next layer shall meet them."""
        if around is None:
            return x
        free = around.free if is_symbolic(around.free) else around.free.to(self.one.dtype)
        rows = {mul: free[:, None, None] @ self.one.expand(1, mul) for mul in {mul for mul, _, _ in irreps}}
        return [block * rows[mul] for block, (mul, _, _) in zip(x, irreps)]

    def forward(self, energy: Tensor | Value, around: Surroundings | None, species: Tensor) -> Tensor | Value:
        """The node energies (n_atoms,), limited."""
        if around is None:
            return energy
        width, alone, high = self.limits.width, _of_atoms(self.alone, species), _of_atoms(self.high, species)
        above = _softplus(energy + _of_atoms(-self.low, species), width) + _of_atoms(self.low, species)
        within = _softplus(above * -1.0 + high, width) * -1.0 + high
        bonded = (within + _of_atoms(-self.alone, species)) * around.bound + alone
        crowded = around.bound * (around.free * -1.0 + 1.0)  # of atoms alone exactly 0
        return bonded + (bonded * -1.0 + high) * crowded


def _of_atoms(rows: Tensor, species: Tensor) -> Tensor | Value:
    return rows.index_select(0, species).squeeze(1)


def _gate(crowding: Tensor | Value, unit: Tensor | Value, middle: float) -> Tensor | Value:
    """1 up to crowding * unit = 1, 0 beyond twice the way to `middle`."""
    steepness = SHARPNESS / (middle - 1.0)
    return torch.tanh(crowding * unit * steepness + -steepness * middle) * -0.5 + 0.5


def _checked(name: str, limits: dict, n_species: int) -> Limits:
    try:
        sides = {name: tuple(float(value) for value in limits[name]) for name in Limits._fields[:-1]}
        found = Limits(**sides, width=float(limits["width"]))
        usable = len(limits) == len(Limits._fields) and all(len(side) == n_species for side in sides.values())
        usable = usable and all(map(math.isfinite, (*sum(sides.values(), ()), found.width))) and found.width > 0
        rows = zip(*sides.values())
        usable = usable and all(a < z < b and 0 < few <= many and near > 0 for a, b, z, few, many, near in rows)
    except (AttributeError, KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(
            f"{name}: limits are low < alone < high, 0 < rho_min <= rho_max and near_max > 0 of {n_species} species and a "
            f"positive width, got {limits!r}"
        )
    return found


def _softplus(x: Tensor | Value, width: float) -> Tensor | Value:
    y = x * (1.0 / width)
    if is_symbolic(y):  # the operator is ln((1 + e^x) / 2)
        y = y.unary("softplus") + math.log(2.0)
    else:
        y = functional.softplus(y, threshold=40.0)
    return y * width
