"""Learned radial functions become tables: value, slope and curvature at the knots go through the layers together.

A `Taylor` tensor (n_knots, 3, n) holds f, f' h and f'' h^2 at every knot (h: the distance of knots). The functions below
carry it through the steps of a network, exactly and differentiably in the weights, at the cost of three rows a knot.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .radial_table import RadialTable
from .symbols import is_symbolic

Taylor = Tensor  # (n_knots, 3, n)
Series = tuple[Tensor, Tensor, Tensor, Tensor]  # a function and its first three derivatives


def taylor_linear(x: Taylor, weight: Tensor, bias: Tensor | None = None) -> Taylor:
    """x W + b, weight (n_in, n_out): the bias moves the value only."""
    out = x @ weight
    if bias is None:
        return out
    return torch.cat([out[:, :1] + bias, out[:, 1:]], dim=1)


def taylor_product(a: Taylor, b: Taylor) -> Taylor:
    """(a b), (a b)' and (a b)''; one of them may have a single column."""
    (a0, a1, a2), (b0, b1, b2) = a.unbind(1), b.unbind(1)
    return torch.stack([a0 * b0, a1 * b0 + a0 * b1, a2 * b0 + 2 * a1 * b1 + a0 * b2], dim=1)


def taylor_function(x: Taylor, function: Callable[[Tensor], Series]) -> Taylor:
    """f(x) for a function that gives (f and three derivatives) of its argument: the chain rule to second order.

    Once differentiable in x.
    """
    return _Function.apply(x, function)


class _Function(torch.autograd.Function):
    """(v, s, c) -> (f(v), f' s, f'' s^2 + f' c)"""

    @staticmethod
    def forward(ctx, x: Taylor, function: Callable[[Tensor], Series]) -> Taylor:
        value, slope, curvature = x.unbind(1)
        f, first, second, third = function(value)
        out = torch.empty_like(x)
        out[:, 0] = f
        torch.mul(first, slope, out=out[:, 1])
        torch.mul(first, curvature, out=out[:, 2]).addcmul_(second, slope.square())
        ctx.save_for_backward(slope, curvature, first, second, third)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        slope, curvature, first, second, third = ctx.saved_tensors
        bent = second * slope
        out = g * first[:, None]
        out[:, 0].addcmul_(g[:, 1], bent).addcmul_(g[:, 2], second * curvature + third * slope.square())
        out[:, 1].addcmul_(g[:, 2], bent, value=2.0)
        return out, None


def silu_series(x: Tensor) -> Series:
    """SiLU x s(x), s the logistic function, with its first three derivatives."""
    s = torch.sigmoid(x)
    ds = s * (1 - s)
    turn = 1 - 2 * s
    return x * s, s + x * ds, ds * (2 + x * turn), ds * (3 * turn + x * (1 - 6 * ds))


def tanh_series(x: Tensor) -> Series:
    """tanh with its first three derivatives."""
    t = torch.tanh(x)
    first = 1 - t * t
    return t, first, -2 * t * first, first * (4 - 6 * first)


def softplus_series(x: Tensor) -> Series:
    """ln((1 + e^x) / 2), linear above 40, and its first three derivatives: s, s (1 - s), ...; s the logistic function."""
    s = torch.sigmoid(x)
    ds = s * (1 - s)
    return torch.nn.functional.softplus(x, threshold=40.0) - math.log(2.0), s, ds, ds * (1 - 2 * s)


def knots_for_learning(n: int) -> int:
    """Half of the knots, 128 at the least: where a network's table of n is exact enough for float64, that is for float32."""
    return max(n // 2, min(n, 128))


def _series(values: Tensor, points: Tensor) -> Tensor:
    """(n, 3): values that each depend on one point only, with their first and second derivative there."""
    out = [values]
    for _ in range(2):
        slope = torch.zeros_like(points)
        if out[-1].requires_grad:
            (slope,) = torch.autograd.grad(out[-1].sum(), points, create_graph=True, materialize_grads=True)
        out.append(slope)
    return torch.stack(out, dim=1)


class Tabulator:
    """Makes the table of one radial network from what enters its layers.

    Args:
        inputs: (E,) A -> (E, n): functions without parameters, the network's input.
        cutoff: A, where the last knot stands; the first stands at 0.
        n_knots: of the table.
        n_learning: of the table in float32 while the weights are learned; None: n_knots. Its layers then run in
            float32, whose errors in the slopes grow with the number of knots.
    """

    def __init__(
        self, inputs: Callable[[Tensor], Tensor], cutoff: float, n_knots: int = 256, n_learning: int | None = None
    ):
        self.inputs, self.cutoff, self.n_knots, self.n_learning = inputs, cutoff, n_knots, n_learning or n_knots
        self._kept: tuple[tuple, RadialTable] | None = None
        self._inputs_at_knots: dict[tuple, Taylor] = {}

    def __call__(
        self, layers: Callable[[Taylor, list[Tensor]], Taylor], weights: Sequence[Tensor], lengths: Tensor | None = None
    ) -> RadialTable:
        """The function with its exact first and second derivatives at the knots; differentiable in the weights.

        Frozen weights (none requires a gradient) are tabulated once, until they change, and in float64: what the table
        is rounded to then is its only error. Slopes between knots divide differences of its values by the spacing,
        which makes errors of the layers in float32 fifty times larger.

        Args:
            layers: (Taylor tensor of the inputs, weights) -> Taylor tensor of the function.
            weights: every tensor that the function depends on, at least one; they also give the dtype of the table.
            lengths: (E,) A, the distances that the table will be used at. One that is made anew for each use spares the
                knots below the shortest; on the CPU, where looking at a number costs nothing.
        """
        if any(weight.requires_grad for weight in weights):
            return self._table(layers, [*weights], lengths)
        key = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False):  # what is kept must serve under autograd as well
                exact = self._table(layers, [weight.detach().double() for weight in weights])
                self._kept = key, exact._replace(values=exact.values.to(weights[0].dtype))
        return self._kept[1]

    def _table(
        self, layers: Callable[[Taylor, list[Tensor]], Taylor], weights: list[Tensor], lengths: Tensor | None = None
    ) -> RadialTable:
        n = self.n_learning if weights[0].dtype == torch.float32 else self.n_knots
        knots, spacing = self._knots(n, weights[0].dtype, weights[0].device), self.cutoff / (n - 1)
        if lengths is None or lengths.device.type != "cpu" or not is_symbolic(lengths) and not len(lengths):
            return RadialTable(layers(knots, weights), spacing, None, n)
        shortest = lengths.trace.shortest if is_symbolic(lengths) else float(lengths.detach().min())
        unused = max(0, min(int(shortest / spacing) - 1, n - 2))  # one for round-off
        first = lengths.trace.all_tables(-unused) if is_symbolic(lengths) else torch.full((len(lengths),), -unused)
        return RadialTable(layers(knots[unused:], weights), spacing, first, n)

    def _knots(self, n: int, dtype: torch.dtype, device: torch.device) -> Taylor:
        """The inputs and their derivatives at the knots, formed in float64; at the cutoff as seen from inside."""
        key = (n, dtype, device)
        if key not in self._inputs_at_knots:
            with torch.inference_mode(False), torch.enable_grad():
                steps = torch.arange(n, dtype=torch.float64, device=device).requires_grad_()
                values = self.inputs(steps / (n - 1) * self.cutoff)
                columns = [_series(column, steps) for column in values.unbind(1)]
            self._inputs_at_knots[key] = torch.stack(columns, dim=2).detach().to(dtype)
        return self._inputs_at_knots[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None, "_inputs_at_knots": {}}
