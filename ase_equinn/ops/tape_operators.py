"""The operators that act on each atom alone, in the four passes of `tape.Tape`.

For y = f(x), with s = dE/dy, y' the rate along the direction, and t = dS/dy:

    values    y = f(x)              gradient  dE/dx = s f'(x)
    tangents  y' = f'(x) x'         learn     dS/dx = t f'(x) + s f''(x) x'

Tensors are (n_atoms, dim, n). A rate that is None is zero: of what depends on the species alone.
"""

from __future__ import annotations

import weakref
from typing import Callable

import torch
from torch import Tensor

from .symbols import Op, View
from .tabulate import Series, silu_series, softplus_series, tanh_series


class Operator:
    """One operator on a tape: its operands' columns by position, and whether its outputs move or learn."""

    def __init__(self, tape, op: Op):
        # No cycle: a tape holds a batch's numbers, and must go with the last step that needs it, not when Python collects.
        self.tape = weakref.proxy(tape)
        self.fixed, self.inputs, self.outputs = op.fixed, op.inputs, op.outputs
        self.weights: list[Tensor] = []

    @property
    def moving(self) -> bool:
        """Whether an output depends on the vectors."""
        return self.outputs[0].buffer in self.tape.moves

    @property
    def learning(self) -> bool:
        """Whether an output depends on weights that are learned."""
        return self.outputs[0].buffer in self.tape.learns

    def x(self, k: int = 0) -> Tensor:
        return self.tape.value.get(self.inputs[k])

    def rate(self, k: int = 0) -> Tensor | None:
        return self.tape.rate.get(self.inputs[k]) if self.tape.directed else None

    def slope(self, k: int = 0) -> Tensor | None:
        """dE/dy of an output; None if there is no direction that would make a use of it."""
        return self.tape.slope.get(self.outputs[k])

    def rise(self, k: int = 0) -> Tensor | None:
        return self.tape.rise.get(self.outputs[k])

    def put(self, y: Tensor) -> None:
        self.tape.value.put(self.outputs[0], y)

    def put_rate(self, rate: Tensor) -> None:
        self.tape.rate.put(self.outputs[0], rate)

    def add_slope(self, slope: Callable[[], Tensor], k: int = 0) -> None:
        """Adds to dE/dx, if x depends on the vectors."""
        view: View = self.inputs[k]
        if view.buffer in self.tape.moves:
            self.tape.slope.add(view, slope(), self.tape.rows[view.buffer])

    def add_rise(self, rise: Callable[[], Tensor], k: int = 0) -> None:
        """Adds to dS/dx, if x depends on what is learned."""
        view: View = self.inputs[k]
        if view.buffer in self.tape.learns:
            self.tape.rise.add(view, rise(), self.tape.rows[view.buffer])


class Gather(Operator):
    """y_i = rows[species_i]"""

    def __init__(self, tape, op: Op):
        super().__init__(tape, op)
        self.table = op.fixed["rows"]
        self.weights = [self.table]

    def values(self) -> None:
        rows = self.table.detach().index_select(0, self.tape.edges.species)
        self.put(rows.view(len(rows), self.outputs[0].dim, self.outputs[0].n))

    def learn(self) -> None:
        if self.table.requires_grad and self.rise() is not None:
            total = torch.zeros_like(self.table).view(len(self.table), -1)
            self.tape.taught(
                self.table, total.index_add_(0, self.tape.edges.species, self.rise().flatten(1)).view_as(self.table)
            )


class Linear(Operator):
    """y = x W + b, W (n_in, n_out), the same for all or one for each species."""

    def __init__(self, tape, op: Op):
        super().__init__(tape, op)
        self.weight, self.bias = op.fixed["weight"], op.fixed["bias"]
        self.weights = [self.weight, *([] if self.bias is None else [self.bias])]
        self.w = self.weight.detach()
        self.groups = tape.by_species() if op.fixed["by_species"] else None

    def _apply(self, x: Tensor, w: Tensor) -> Tensor:
        """x w, w (n_in, n_out) or one for each species."""
        if self.groups is None:
            return x @ w
        return self.groups.join([part @ w[s] for s, part in self.groups.split(x)])

    def values(self) -> None:
        y = self._apply(self.x(), self.w)
        self.put(y if self.bias is None else y + self.bias.detach())

    def gradient(self) -> None:
        self.add_slope(lambda: self._apply(self.slope(), self.w.mT))

    def tangents(self) -> None:
        self.put_rate(self._apply(self.rate(), self.w))

    def learn(self) -> None:
        rise, rate = self.rise(), self.rate()
        pairs = [] if rise is None else [(self.x(), rise)]
        pairs += [] if rate is None else [(rate, self.slope())]
        if self.weight.requires_grad and pairs:
            self.tape.taught(self.weight, self._weight_gradient(pairs))
        if rise is None:
            return
        if self.bias is not None and self.bias.requires_grad:
            self.tape.taught(self.bias, rise.flatten(0, 1).sum(0))
        self.add_rise(lambda: self._apply(rise, self.w.mT))

    def _weight_gradient(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """sum over atoms of x^T g"""
        out = torch.zeros_like(self.w)
        for x, g in pairs:
            if self.groups is None:
                out.addmm_(x.flatten(0, 1).T, g.flatten(0, 1))
                continue
            for (s, part), (_, other) in zip(self.groups.split(x), self.groups.split(g)):
                out[s].addmm_(part.flatten(0, 1).T, other.flatten(0, 1))
        return out


class Unary(Operator):
    """y = scale f(x), or x + scale."""

    def values(self) -> None:
        x, name, scale = self.x(), self.fixed["function"], self.fixed["scale"]
        self.linear = {"add": 1.0, "scale": scale}.get(name)  # the slope of a straight line
        if self.linear is not None:
            self.put(x + scale if name == "add" else x * scale)
            return
        y, first, second, _ = SERIES[name](x)
        self.first, self.second = first * scale, second * scale
        self.put(y * scale)

    def _times(self, x: Tensor) -> Tensor:
        return x * (self.first if self.linear is None else self.linear)

    def gradient(self) -> None:
        self.add_slope(lambda: self._times(self.slope()))

    def tangents(self) -> None:
        self.put_rate(self._times(self.rate()))

    def learn(self) -> None:
        if self.rise() is not None:
            self.add_rise(lambda: self._times(self.rise()))
        if self.linear is None and self.rate() is not None:
            self.add_rise(lambda: self.slope() * self.second * self.rate())


class Add(Operator):
    """z = x + y"""

    def values(self) -> None:
        self.put(self.x(0) + self.x(1))

    def gradient(self) -> None:
        for k in range(2):
            self.add_slope(self.slope, k)

    def tangents(self) -> None:
        rates = [rate for rate in (self.rate(0), self.rate(1)) if rate is not None]
        self.put_rate(rates[0] if len(rates) == 1 else rates[0] + rates[1])

    def learn(self) -> None:
        for k in range(2):
            if self.rise() is not None:
                self.add_rise(self.rise, k)


class Gate(Operator):
    """z[m] = x[m] y, y with one row."""

    def values(self) -> None:
        self.put(self.x(0) * self.x(1))

    def gradient(self) -> None:
        self._share(self.add_slope, self.slope(), self.x(0), self.x(1))

    def tangents(self) -> None:
        (x, y), (dx, dy) = (self.x(0), self.x(1)), (self.rate(0), self.rate(1))
        parts = [a * b for a, b in ((dx, y), (x, dy)) if a is not None and b is not None]
        self.put_rate(parts[0] if len(parts) == 1 else parts[0] + parts[1])

    def learn(self) -> None:
        if self.rise() is not None:
            self._share(self.add_rise, self.rise(), self.x(0), self.x(1))
        if self.rate(0) is not None or self.rate(1) is not None:
            self._share(self.add_rise, self.slope(), self.rate(0), self.rate(1))

    @staticmethod
    def _share(add: Callable, g: Tensor, x: Tensor | None, y: Tensor | None) -> None:
        if y is not None:
            add(lambda: g * y, 0)
        if x is not None:
            add(lambda: (g * x).sum(1, keepdim=True), 1)


class Divide(Operator):
    """z = x / y, y with one number."""

    def values(self) -> None:
        self.inverse = 1 / self.x(1)
        self.z = self.x(0) * self.inverse
        self.put(self.z)

    def gradient(self) -> None:
        self.down = self.slope() * self.inverse
        self.add_slope(lambda: self.down, 0)
        self.add_slope(lambda: -_total(self.down * self.z), 1)

    def tangents(self) -> None:
        dx, dy = self.rate(0), self.rate(1)
        rate = -self.z * dy if dx is None else dx if dy is None else dx - self.z * dy
        self.dz = rate * self.inverse
        self.put_rate(self.dz)

    def learn(self) -> None:
        """The derivative of `gradient` along the direction, with s' = dS/dz."""
        dy = self.rate(1)
        up = None if self.rise() is None else self.rise() * self.inverse
        if dy is not None:
            turned = self.down * dy * self.inverse
            up = -turned if up is None else up - turned
        if up is not None:
            self.add_rise(lambda: up, 0)
            self.add_rise(lambda: -_total(up * self.z), 1)
        if self.tape.directed and self.moving:
            self.add_rise(lambda: -_total(self.down * self.dz), 1)


def _total(x: Tensor) -> Tensor:
    return x.sum((1, 2), keepdim=True)


def _absolute(x: Tensor) -> Series:
    return x.abs(), x.sign(), torch.zeros_like(x), torch.zeros_like(x)


SERIES = {"silu": silu_series, "tanh": tanh_series, "softplus": softplus_series, "abs": _absolute}
OPERATORS = {"gather": Gather, "linear": Linear, "unary": Unary, "add": Add, "gate": Gate, "divide": Divide}
