"""From the operators of a model to steps that a driver can run: backward pass, stages, and where numbers are kept.

A stage is gone through block by block of atoms; what only one stage needs is kept for the block alone. A convolution reads
features of neighbours, so that a new stage begins before it; its backward pass adds to gradients of neighbours, so that a new
stage begins after it. The last stage of the forward pass is the first of the backward pass: stage s is turned back in 2 L - s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .symbols import Op, Trace, Untraceable, Value, View


class Step(NamedTuple):
    """One kernel call on a block of atoms. `kind` and `fixed` say which kernel; views are in the kernel's order."""

    kind: str
    stage: int
    backward: bool
    reads: tuple[View, ...]
    writes: tuple[View, ...]
    fixed: dict[str, Any]


class Plan(NamedTuple):
    """Steps in order, and their buffers.

    rows: numbers per atom of each buffer.
    shared: buffers that exist for all atoms at once; the others exist for a block.
    private: buffers that every thread has its own copy of, for all atoms; they are zero between evaluations.
    n_stages: of forward and backward pass together.
    energy: per atom.
    seed: what the derivative of each energy is multiplied by: to be filled before the steps run.
    descriptors: per atom, parts of shared buffers, there after the forward pass; none unless asked for.
    """

    steps: list[Step]
    rows: list[int]
    shared: set[int]
    private: set[int]
    n_stages: int
    energy: View
    seed: View
    descriptors: tuple[View, ...] = ()


def make_plan(trace: Trace, energy: Value, descriptors: tuple[View, ...] = ()) -> Plan:
    """The forward pass and the derivative of sum_i seed * energy_i with respect to the vectors.

    Args:
        descriptors: values on the way to the energy that shall still be there when all is done.

    Raises:
        Untraceable: no such program; or the energy does not depend on one of the descriptors.
    """
    kept = {view.buffer for view in descriptors}
    ops = merged(alive(trace.ops, energy.view), kept)
    if not kept.issubset(view.buffer for op in ops for view in op.outputs):
        raise Untraceable("descriptors that the energy does not depend on")
    stages = _stages(ops)
    last = max(stages, default=0)
    builder = _Builder(trace, last)
    for op, stage in zip(ops, stages):
        builder.forward(op, stage)
    seed = builder.seed(energy.view)
    turned = list(zip(ops, stages))[::-1]
    for stage in range(last, -1, -1):
        builder.start(2 * last - stage)
        for op in (op for op, of_op in turned if of_op == stage):
            builder.backward(op)
    steps = sorted(builder.steps, key=lambda step: step.stage)  # stable: of one stage forward steps first
    shared = (_shared(steps) | {energy.view.buffer, seed.buffer} | kept) - builder.private
    return Plan(steps, builder.rows, shared, builder.private, 2 * last + 1, energy.view, seed, tuple(descriptors))


def alive(ops: list[Op], energy: View) -> list[Op]:
    """The operators that the energy depends on."""
    needed, kept = {energy.buffer}, []
    for op in reversed(ops):
        if needed.intersection(view.buffer for view in op.outputs):
            needed.update(view.buffer for view in op.inputs)
            kept.append(op)
    return kept[::-1]


def merged(ops: list[Op], kept: set[int]) -> list[Op]:
    """Factors and chains of linear maps between which nothing else reads become one linear map.

    Buffers that are kept have a reader more.
    """
    readers: dict[int, int] = dict.fromkeys(kept, 1)
    for op in ops:
        for view in op.inputs:
            readers[view.buffer] = readers.get(view.buffer, 0) + 1
    out: list[Op] = []
    for op in ops:
        before = next((k for k, other in enumerate(out) if op.inputs and op.inputs[0] in other.outputs), None)
        if before is not None and readers[op.inputs[0].buffer] == 1:
            joined = _scaled(out[before], op) or _composed(out[before], op)
            if joined is not None:
                out[before] = joined
                continue
        out.append(op)
    return out


def _scaled(before: Op, op: Op) -> Op | None:
    if op.kind != "unary" or op.fixed["function"] != "scale":
        return None
    factor = op.fixed["scale"]
    if before.kind == "linear":
        bias = before.fixed["bias"]
        scaled = {"weight": before.fixed["weight"] * factor, "bias": None if bias is None else bias * factor}
        return before._replace(outputs=op.outputs, fixed=before.fixed | scaled)
    if before.kind == "unary" and before.fixed["function"] != "add":
        return before._replace(outputs=op.outputs, fixed=before.fixed | {"scale": before.fixed["scale"] * factor})
    return None


def _composed(before: Op, op: Op) -> Op | None:
    """A factor or a linear map, then a linear map, as one, if that is not more work and the first one adds nothing."""
    if op.kind == "linear" and before.kind == "unary" and before.fixed["function"] == "scale":
        return op._replace(inputs=before.inputs, fixed=op.fixed | {"weight": op.fixed["weight"] * before.fixed["scale"]})
    if op.kind != "linear" or before.kind != "linear" or before.fixed["bias"] is not None:
        return None
    first, second = before.fixed["weight"], op.fixed["weight"]
    n_in, n_between, n_out = first.shape[-2], first.shape[-1], second.shape[-1]
    if n_in * n_out > n_in * n_between + n_between * n_out:
        return None
    weight = (first.double() @ second.double()).to(first.dtype)
    by_species = before.fixed["by_species"] or op.fixed["by_species"]
    return before._replace(outputs=op.outputs, fixed=dict(weight=weight, bias=op.fixed["bias"], by_species=by_species))


def _stages(ops: list[Op]) -> list[int]:
    """As late as possible: the features that a convolution reads one stage before it, the rest where it is used."""
    depth: dict[int, int] = {}
    for op in ops:
        inputs = [depth[view.buffer] for view in op.inputs]
        stage = max(inputs, default=0) + (op.kind == "conv" and bool(op.inputs))
        depth.update({view.buffer: stage for view in op.outputs})
    last = max(depth.values(), default=0)
    latest: dict[int, int] = {}
    stages = []
    for op in reversed(ops):
        stage = min((latest.get(view.buffer, last) for view in op.outputs), default=last)
        stages.append(stage)
        before = stage - (op.kind == "conv")
        for view in op.inputs:
            latest[view.buffer] = min(latest.get(view.buffer, last), before)
    return stages[::-1]


def _shared(steps: list[Step]) -> set[int]:
    """Buffers that more than one stage uses, or whose rows are read by other atoms."""
    used: dict[int, set[int]] = {}
    shared = set()
    for step in steps:
        for view in (*step.reads, *step.writes):
            used.setdefault(view.buffer, set()).add(step.stage)
        shared |= {view.buffer for view in step.fixed.get("of_neighbours", ())}
    return shared | {buffer for buffer, stages in used.items() if len(stages) > 1}


class _Builder:
    """Collects steps; knows the gradient buffers and which of their numbers have been written."""

    def __init__(self, trace: Trace, last: int):
        self.rows, self.last = list(trace.rows), last
        self.steps: list[Step] = []
        self.private: set[int] = set()
        self.gradient_of: dict[int, int] = {}
        self.written: dict[int, np.ndarray] = {}
        self.depends: set[int] = set()  # buffers that change with the vectors
        self.first_edge_gradient = True
        self.stage = last
        self.sums: list[tuple[View, View]] = []  # of the stage before: what threads added up for a value's gradient

    def forward(self, op: Op, stage: int) -> None:
        if op.kind == "conv" and not all(view.size == view.row for view in op.inputs):
            raise Untraceable("a convolution of a part of the features")
        if op.kind in ("conv", "zbl") or self.depends.intersection(view.buffer for view in op.inputs):
            self.depends.update(view.buffer for view in op.outputs)
        fixed = dict(op.fixed)
        if op.kind == "conv":
            fixed["of_neighbours"] = op.inputs
        self.steps.append(Step(op.kind, stage, False, op.inputs, op.outputs, fixed))

    def seed(self, energy: View) -> View:
        view = self._gradient(energy)
        self.written[view.buffer][:] = True
        return view

    def start(self, stage: int) -> None:
        """Begins a stage: gradients that arrived from neighbours are added up over the threads."""
        self.stage, sums, self.sums = stage, self.sums, []
        for view, total in sums:
            target, accumulate = self._write(view)
            self._step("total", (total,), (target,), accumulate=accumulate)

    def backward(self, op: Op) -> None:
        if not self.depends.intersection(view.buffer for view in op.outputs):
            return
        gradients = [self._read(view) for view in op.outputs]
        getattr(self, f"_{op.kind}")(op, gradients)

    # gradient buffers

    def _new(self, n: int) -> int:
        self.rows.append(n)
        return len(self.rows) - 1

    def _gradient(self, view: View) -> View:
        if view.buffer not in self.gradient_of:
            self.gradient_of[view.buffer] = self._new(self.rows[view.buffer])
            self.written[self.gradient_of[view.buffer]] = np.zeros(self.rows[view.buffer], dtype=bool)
        return view._replace(buffer=self.gradient_of[view.buffer])

    def _read(self, view: View) -> View:
        """The finished gradient of a value; zero where nothing depends on it."""
        gradient = self._gradient(view)
        part = self.written[gradient.buffer][_numbers(gradient)]
        if not part.any():
            self._write(view)
            self._step("clear", (), (gradient,))
        elif not part.all():
            raise Untraceable("features of which the energy depends on a part only")
        return gradient

    def _write(self, view: View) -> tuple[View, bool] | None:
        """Where to put a contribution to a gradient, and whether to add; None if none is wanted."""
        if view.buffer not in self.depends:
            return None
        gradient = self._gradient(view)
        numbers = _numbers(gradient)
        part = self.written[gradient.buffer][numbers]
        if part.any() and not part.all():
            raise Untraceable("gradients of overlapping parts")
        self.written[gradient.buffer][numbers] = True
        return gradient, bool(part.any())

    def _step(self, kind: str, reads: tuple[View, ...], writes: tuple[View, ...], **fixed) -> None:
        self.steps.append(Step(kind, self.stage, True, reads, writes, fixed))

    # backward passes

    def _gather(self, op: Op, g: list[View]) -> None:
        pass

    def _linear(self, op: Op, g: list[View]) -> None:
        weight = op.fixed["weight"].transpose(-1, -2)
        target = self._write(op.inputs[0])
        if target:
            fixed = dict(weight=weight, bias=None, by_species=op.fixed["by_species"], accumulate=target[1])
            self._step("linear", (g[0],), (target[0],), **fixed)

    def _unary(self, op: Op, g: list[View]) -> None:
        target = self._write(op.inputs[0])
        if target and op.fixed["function"] == "add":
            self._step("copy", (g[0],), (target[0],), accumulate=target[1], factor=1.0)
        elif target and op.fixed["function"] == "scale":
            self._step("copy", (g[0],), (target[0],), accumulate=target[1], factor=op.fixed["scale"])
        elif target:
            self._step("unary backward", (op.inputs[0], g[0]), (target[0],), accumulate=target[1], **op.fixed)

    def _add(self, op: Op, g: list[View]) -> None:
        for view in op.inputs:
            target = self._write(view)
            if target:
                self._step("copy", (g[0],), (target[0],), accumulate=target[1], factor=1.0)

    def _gate(self, op: Op, g: list[View]) -> None:
        targets = [self._write(view) for view in op.inputs]
        writes = tuple(target[0] for target in targets if target)
        accumulate = tuple(target[1] if target else None for target in targets)
        self._step("gate backward", (*op.inputs, g[0]), writes, accumulate=accumulate)

    def _divide(self, op: Op, g: list[View]) -> None:
        targets = [self._write(view) for view in op.inputs]
        writes = tuple(target[0] for target in targets if target)
        accumulate = tuple(target[1] if target else None for target in targets)
        self._step("divide backward", (op.inputs[1], op.outputs[0], g[0]), writes, accumulate=accumulate)

    def _product(self, op: Op, g: list[View]) -> None:
        """The kernel overwrites dx: the product must be the first that adds to these gradients."""
        targets = [self._write(view) for view in op.inputs]
        if any(target is None or target[1] for target in targets):
            raise Untraceable("features that a product shares with something later")
        self._step("product backward", (*op.inputs, *g), tuple(target[0] for target in targets), **op.fixed)

    def _conv(self, op: Op, g: list[View]) -> None:
        """Gradients of neighbours' features go to buffers of each thread, which are added up one stage later."""
        own = [view.buffer in self.depends for view in op.inputs]
        if any(own) and not all(own):
            raise Untraceable("a convolution of features of which some are constant")
        sums = []
        for view in op.inputs if all(own) else ():
            sums.append(View(self._new(view.dim * view.n), 0, view.dim, view.n, view.n))
        self.private.update(view.buffer for view in sums)
        self.sums += zip(op.inputs, sums)
        fixed = op.fixed | {"of_neighbours": (*op.inputs, *sums), "first": self.first_edge_gradient}
        self._step("conv backward", (*op.inputs, *g), tuple(sums), **fixed)
        self.first_edge_gradient = False

    def _zbl(self, op: Op, g: list[View]) -> None:
        self._step("zbl backward", (g[0],), (), first=self.first_edge_gradient, **op.fixed)
        self.first_edge_gradient = False


def _numbers(view: View) -> np.ndarray:
    """Positions in a row of the buffer."""
    return (view.offset + view.stride * np.arange(view.dim)[:, None] + np.arange(view.n)).ravel()
