"""Which values of one trace are those of another trace of the same model.

A model's energy and its descriptors come from the same operators, but from two functions. Both are traced; what the second
one computes is looked up among the operators of the first, which a program runs in any case.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .symbols import Op, Symbol, Trace, Untraceable, View


def twins(trace: Trace, other: Trace, views: Sequence[View]) -> tuple[View, ...]:
    """The views of `trace` that hold the numbers which `views` hold in `other`.

    Raises:
        Untraceable: `other` has an operator that `trace` lacks, or has in another order.
    """
    buffers: dict[int, int] = {}
    rest = iter(trace.ops)
    for op in other.ops:
        inputs = tuple(_moved(view, buffers) for view in op.inputs)
        twin = next((one for one in rest if _alike(one, op, inputs)), None)
        if twin is None:
            raise Untraceable(f"descriptors by an operator that the energy does not need: {op.kind}")
        buffers.update((view.buffer, same.buffer) for view, same in zip(op.outputs, twin.outputs))
    return tuple(_moved(view, buffers) for view in views)


def _moved(view: View, buffers: dict[int, int]) -> View:
    return view._replace(buffer=buffers[view.buffer])


def _alike(one: Op, op: Op, inputs: tuple[View, ...]) -> bool:
    shapes = [[view._replace(buffer=0) for view in outputs] for outputs in (one.outputs, op.outputs)]
    return one.kind == op.kind and one.inputs == inputs and shapes[0] == shapes[1] and _same(one.fixed, op.fixed)


def _same(a, b) -> bool:
    """By value; weights that were computed twice have the same bits."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Symbol):
        return a.kind == b.kind and _same(a.fixed, b.fixed)
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
