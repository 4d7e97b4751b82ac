"""Convolution and symmetric product in the four passes of `tape.Tape`, by generated kernels."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from . import product_kernels
from .conv_fused import ConvJob, total
from .conv_variants import Variant
from .product_fused import ProductJob
from .symbols import Op
from .tape_operators import Operator


class Conv(Operator):
    """A_i = sum_j w(r_ij) CG(x_j (x) Y(r_ij)); x by atom, or one row for each species."""

    def __init__(self, tape, op: Op):
        super().__init__(tape, op)
        self.table, self.rows = op.fixed["table"], op.fixed["rows"]
        self.weights = [self.table.values, *(self.rows or [])]
        edges, first = tape.edges, self.table.first
        rows_of = None if self.rows is None else edges.species.index_select(0, edges.graph.edge_index[1])
        first = None if first is None else tape.rows_of_pairs(first.fixed)
        table = self.table._replace(values=self.table.values.detach().contiguous(), first=first)
        self.job = ConvJob(op.fixed["paths"], edges.graph, table, rows_of)
        self.t = table.values

    def _run(
        self,
        variant: Variant,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        rate: Sequence[Tensor] = (),
        parts=((),),
    ):
        inputs = [*self.tape.edges.columns, self.t, *self.features, *rate]
        self.job.run(variant._replace(vectors=True), [*inputs, *tensors, *out], parts)

    def _sums(self) -> list[Tensor]:
        return [torch.empty(self.tape.n_atoms, view.dim, view.n, dtype=self.t.dtype) for view in self.outputs]

    def values(self) -> None:
        given = [self.x(k) for k in range(len(self.inputs))] if self.rows is None else self.rows
        shapes = [(-1, 2 * l + 1, mul) for mul, l, _ in self.job.paths.irreps_in]
        self.features = [x.detach().contiguous().view(shape) for x, shape in zip(given, shapes)]
        self._put(self.tape.value, Variant(backward=False))

    def _put(self, columns, variant: Variant, rate: Sequence[Tensor] = ()) -> None:
        out = self._sums()
        self._run(variant, [], out, rate)
        for view, tensor in zip(self.outputs, out):
            columns.put(view, tensor)

    def gradient(self) -> None:
        moving = self.rows is None and any(view.buffer in self.tape.moves for view in self.inputs)
        variant = Variant(True, x_gradient=moving, add_vectors=True)
        self.g = [self._dense(self.slope(k), k) for k in range(len(self.outputs))]
        parts = self._zeros(self.features if moving else [])
        self._run(variant, self.g, self.tape.edge_slope, parts=parts)
        for k, slope in enumerate(total(parts)):
            self.add_slope(lambda slope=slope: slope, k)

    def tangents(self) -> None:
        rates = [None if self.rows is not None else self.rate(k) for k in range(len(self.features))]
        rates = [torch.zeros_like(x) if r is None else r.contiguous() for x, r in zip(self.features, rates)]
        self.rates = [*self.tape.edge_rate, *rates]
        self._put(self.tape.rate, Variant(backward=False, dual=True), self.rates)

    def learn(self) -> None:
        rises = [self.rise(k) for k in range(len(self.outputs))]
        rise = [self._dense(r, k) for k, r in enumerate(rises)]
        of_table, by_row = self.table.values.requires_grad, self.rows is not None
        of_x = (
            any(r.requires_grad for r in self.rows)
            if by_row
            else any(v.buffer in self.tape.learns for v in self.inputs)
        )
        variant = Variant(True, x_gradient=of_x, table_gradient=of_table, edge_gradient=False)
        parts = self._zeros([*([self.t] if of_table else []), *(self.features if of_x else [])])
        if self.tape.directed:
            self._run(variant._replace(dual=True, g_tangent=True), [*self.g, *rise], [], self.rates, parts)
        else:
            self._run(variant, rise, [], parts=parts)
        found = total(parts)
        if of_table:
            self.tape.taught(self.table.values, found.pop(0))
        for k, x_rise in enumerate(found):
            if not by_row:
                self.add_rise(lambda x_rise=x_rise: x_rise, k)
            elif self.rows[k].requires_grad:
                self.tape.taught(self.rows[k], x_rise.view_as(self.rows[k]))

    def _dense(self, g: Tensor | None, k: int) -> Tensor:
        view = self.outputs[k]
        return torch.zeros(self.tape.n_atoms, view.dim, view.n, dtype=self.t.dtype) if g is None else g.contiguous()

    def _zeros(self, like: Sequence[Tensor]) -> list[list[Tensor]]:
        return [[torch.zeros_like(tensor) for tensor in like] for _ in self.job.ranges]


class Product(Operator):
    """B_i = sum_k W_k[species_i] T_k(x_i)"""

    def __init__(self, tape, op: Op):
        super().__init__(tape, op)
        self.weights = list(op.fixed["weights"])
        self.w = [weight.detach().contiguous() for weight in self.weights]
        self.job = ProductJob(op.fixed["table"], tape.edges.species, self.w[0].dtype)

    def values(self) -> None:
        self.features = [self.x(k).contiguous() for k in range(len(self.inputs))]
        self._put(self.tape.value, product_kernels.Variant(backward=False), [*self.features, *self.w])

    def _put(self, columns, variant, arguments: Sequence[Tensor]) -> None:
        for view, tensor in zip(self.outputs, self.job.forward(variant, arguments)):
            columns.put(view, tensor)

    def gradient(self) -> None:
        self.g = [self._dense(self.slope(k), k) for k in range(len(self.outputs))]
        inputs = [*self.features, *self.w]
        found = self.job.backward(product_kernels.Variant(backward=True), [*inputs, *self.g], inputs)
        for k in range(len(self.inputs)):
            self.add_slope(lambda k=k: found[k], k)

    def tangents(self) -> None:
        rates = [self.rate(k) for k in range(len(self.inputs))]
        self.rates = [torch.zeros_like(x) if r is None else r.contiguous() for x, r in zip(self.features, rates)]
        variant = product_kernels.Variant(backward=False, dual=True)
        self._put(self.tape.rate, variant, [*self.features, *self.w, *self.rates])

    def learn(self) -> None:
        of_weights = any(weight.requires_grad for weight in self.weights)
        variant = product_kernels.Variant(backward=True, weight_gradient=of_weights)
        rise = [self._dense(self.rise(k), k) for k in range(len(self.outputs))]
        inputs, arguments = [*self.features, *self.w], rise
        if self.tape.directed and self.moving:
            variant, arguments = variant._replace(dual=True, g_tangent=True), [*self.rates, *self.g, *rise]
        found = self.job.backward(variant, [*inputs, *arguments], inputs)
        for k in range(len(self.inputs)):
            self.add_rise(lambda k=k: found[k], k)
        for weight, gradient in zip(self.weights, found[len(self.inputs) :]):
            if weight.requires_grad:
                self.tape.taught(weight, gradient)

    def _dense(self, g: Tensor | None, k: int) -> Tensor:
        view = self.outputs[k]
        return torch.zeros(self.tape.n_atoms, view.dim, view.n, dtype=self.w[0].dtype) if g is None else g.contiguous()


KERNELS = {"conv": Conv, "product": Product}
