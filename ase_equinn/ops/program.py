"""A program evaluates one model with native kernels only: energies, forces and virials, without torch or autograd.

It is a plan (what is computed, and where numbers are kept) with memory and compiled kernels. Nothing is allocated while the
numbers of atoms and edges stay within what has been reserved.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from .arena import arena
from .calls import ARRAYS, Array, Call, Fixed, PartStride, Private, Scratch, calls_of
from .driver import Steps, drive
from .plan import Plan

_MIN_EDGES = 500  # per thread: less is not worth waking one
_BLOCK_BYTES = 1 << 19  # of a block's own buffers: they stay in a core's second cache
_BLOCK_ATOMS = 64
_SMALL = 10_000  # atoms: memory for so many is kept in any case


class Evaluation(NamedTuple):
    """node_energy (n_counted,) in the program's dtype; with gradients forces (n, 3), node_virial (n, 3, 3), float64."""

    node_energy: Tensor
    forces: Tensor | None
    node_virial: Tensor | None


class Parts(NamedTuple):
    """The calls of a program, and how to run them for some atoms: to measure what each of them takes.

    calls: in their order.
    whole: runs all.
    alone: (k, times), runs call k so many times on what it finds in memory; what it adds to grows.
    """

    calls: list[Call]
    whole: Callable[[], None]
    alone: Callable[[int, int], None]


class _Memory:
    """Arrays for up to so many atoms, edges and threads, and the driver's steps that point to them."""

    def __init__(self, program: "Program", n_atoms: int, n_edges: int, n_threads: int):
        self.sizes = n_atoms, n_edges, n_threads
        dtype, plan = program.dtype, program.plan
        calls, arrays, scratch = program.calls(n_threads)
        self.shared = {b: torch.zeros(n_atoms * plan.rows[b], dtype=dtype) for b in sorted(plan.shared)}
        self.private = {b: torch.zeros(n_threads, n_atoms * plan.rows[b], dtype=dtype) for b in sorted(plan.private)}
        self.arena = torch.zeros(n_threads, program.arena_row * program.block, dtype=dtype)
        self.scratch = torch.zeros(n_threads, scratch, dtype=dtype)
        lengths = {"atom": n_atoms, "edge": n_edges}
        self.arrays = {
            name: torch.zeros(lengths[of] * n, dtype=dtype if kind is None else kind)
            for name, (of, n, kind) in arrays.items()
        }
        self.arrays["forces"] = torch.zeros(n_threads, n_atoms * 3, dtype=torch.float64)
        self.arrays["node_virial"] = torch.zeros(n_atoms * 9, dtype=torch.float64)
        # numpy's views of what every evaluation touches: it takes a tenth of the time of torch for so little
        self.seed, self.energy = (self.shared[view.buffer].numpy() for view in (plan.seed, plan.energy))
        self.forces, self.node_virial = self.arrays["forces"].numpy(), self.arrays["node_virial"].numpy().reshape(-1, 3, 3)
        self.with_gradient = self._steps(program, calls, dtype.itemsize)
        self.energy_only = self._steps(program, [call for call in calls if not call.backward], dtype.itemsize)

    def steps(self, inputs: dict[str, Tensor], gradient: bool) -> Steps:
        """The driver's steps for these inputs."""
        steps, external = self.with_gradient if gradient else self.energy_only
        for name, places in external.items():
            steps.base[places] = inputs[name].data_ptr()
        return steps

    def clear(self, row_ptr: Tensor, first: int, last: int) -> None:
        """Zero for atoms, and their edges, that some stages leave out and others add to; no more if there are none."""
        if first < last:
            for tensor in self.shared.values():
                tensor.view(self.sizes[0], -1)[first:last] = 0.0
            for axis in "xyz":
                self.arrays[f"g{axis}"][int(row_ptr[first]) : int(row_ptr[last])] = 0.0

    def _steps(self, program: "Program", calls: Sequence[Call], size: int) -> tuple[Steps, dict[str, np.ndarray]]:
        """The driver's arrays, and for everything that changes from run to run the arguments that hold its address."""
        steps, base, per_thread, per_row, external = [], [], [], [], {}
        for call in calls:
            steps.append([call.function, len(base), len(call.arguments)])
            for argument in call.arguments:
                if isinstance(argument, Array) and argument.name in ARRAYS:
                    external.setdefault(argument.name, []).append(len(base))
                place = (argument, 0, 0) if isinstance(argument, int) else self._place(program, argument, size)
                for column, number in zip((base, per_thread, per_row), place):
                    column.append(number)
        stages = np.searchsorted([call.stage for call in calls], np.arange(program.plan.n_stages + 1))
        columns = [np.array(column, dtype=np.int64) for column in (stages, base, per_thread, per_row)]
        named = {name: np.array(places) for name, places in external.items()}
        return Steps(np.array(steps, dtype=np.int64).reshape(-1, 3), *columns), named

    def _place(self, program: "Program", argument, size: int) -> tuple[int, int, int]:
        """Address, its step from thread to thread, and from row to row of what only a block has."""
        if isinstance(argument, Fixed):
            return argument.tensor.data_ptr(), 0, 0
        if isinstance(argument, PartStride):
            return self.private[argument.view.buffer].stride(0), 0, 0
        if isinstance(argument, Scratch):
            return self.scratch.data_ptr(), self.scratch.stride(0) * size, 0
        if isinstance(argument, Array):
            array = self.arrays.get(argument.name)
            if array is None:
                return 0, 0, 0
            return array.data_ptr(), array.stride(0) * array.itemsize if argument.name == "forces" else 0, 0
        view = argument.view
        offset = view.offset * size
        if isinstance(argument, Private):
            parts = self.private[view.buffer]
            return parts.data_ptr() + offset, 0 if argument.all_threads else parts.stride(0) * size, 0
        if view.buffer in self.shared:
            return self.shared[view.buffer].data_ptr() + offset, 0, 0
        start, row = program.places[view.buffer] * program.block * size, program.plan.rows[view.buffer] * size
        return self.arena.data_ptr() + start + offset, self.arena.stride(0) * size, row


class Program:
    """One model for atoms of given elements.

    Args:
        plan: see there.
        dtype: float32 or float64.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype):
        self.plan, self.dtype = plan, dtype
        self.places, self.arena_row = arena(plan)
        self.arena_row = max(self.arena_row, 1)
        self.block = max(1, min(_BLOCK_ATOMS, _BLOCK_BYTES // (self.arena_row * dtype.itemsize)))
        self._memory: _Memory | None = None
        self._calls: dict[int, tuple] = {}  # with the weights that the steps point to

    def __call__(
        self,
        species: Tensor,
        row_ptr: Tensor,
        neighbour: Tensor,
        vectors: Tensor,
        gradient: bool = True,
        n_counted: int | None = None,
    ) -> Evaluation:
        """Energies, and with `gradient` forces and virials of their sum; the caller owns what is returned.

        Args:
            species: (n,) int64, rows of the model's species.
            row_ptr: (n + 1,) int64, first edge of each centre.
            neighbour: (E,) int64.
            vectors: (E, 3) float64, A.
            n_counted: the energies of the first n_counted atoms are summed and returned; None: all. Nothing is done for
                atoms that they do not depend on, if atoms are ordered by the step in which they are met.
        """
        n_atoms, n_edges = len(species), len(neighbour)
        inputs = _contiguous(species, row_ptr, neighbour, vectors)
        counted, n_threads = n_atoms if n_counted is None else n_counted, _n_threads(n_edges)
        rows = _rows(inputs["row_ptr"], inputs["neighbour"], counted, self.plan.n_stages // 2)
        ranges = {n: _ranges(inputs["row_ptr"], n, n_threads) for n in set(rows)}
        memory = self._reserve(n_atoms, n_edges, n_threads)
        steps = memory.steps(inputs, gradient)
        memory.clear(inputs["row_ptr"], counted, rows[-1])
        memory.seed[:counted] = 1.0
        forces = memory.forces[:n_threads, : 3 * n_atoms]
        if gradient:
            forces.fill(0.0)
        drive(steps, ranges[counted] if len(ranges) == 1 else [ranges[n] for n in (*rows[::-1], *rows[1:])], self.block)
        node_energy = torch.from_numpy(memory.energy[:counted].copy())
        if not gradient:
            return Evaluation(node_energy, None, None)
        virial = memory.node_virial[:n_atoms].copy()
        virial[rows[-1] :] = 0.0
        return Evaluation(node_energy, torch.from_numpy(forces.sum(0).reshape(n_atoms, 3)), torch.from_numpy(virial))

    def parts(self, species: Tensor, row_ptr: Tensor, neighbour: Tensor, vectors: Tensor) -> "Parts":
        """What an evaluation with gradients is made of, on one thread; arguments as of a call."""
        inputs, ranges = _contiguous(species, row_ptr, neighbour, vectors), [(0, len(species))]
        memory = _Memory(self, len(species), len(neighbour), 1)
        memory.seed[:] = 1.0
        steps = memory.steps(inputs, True)

        def run(steps: Steps, kept=(memory, inputs)) -> None:
            drive(steps, ranges, self.block)

        def alone(k: int, times: int) -> None:
            run(Steps(np.repeat(steps.steps[k : k + 1], times, axis=0), np.arange(times + 1), *steps[2:]))

        run(steps)
        return Parts(self.calls(1)[0], partial(run, steps), alone)

    def descriptors(self, n_atoms: int) -> Tensor:
        """Those of the plan for the n_atoms atoms of the latest evaluation, (n_atoms, k); the next one may change them."""
        parts = [
            self._memory.shared[view.buffer].as_strided((n_atoms, view.n), (view.row, 1), view.offset)
            for view in self.plan.descriptors
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def calls(self, n_threads: int) -> tuple[list[Call], dict[str, tuple], int]:
        """See `calls_of`; made once."""
        if n_threads not in self._calls:
            self._calls[n_threads] = calls_of(self.plan, self.dtype, n_threads)
        return self._calls[n_threads]

    def _reserve(self, n_atoms: int, n_edges: int, n_threads: int) -> _Memory:
        """Memory that is large enough, and not more than four times too large where that matters."""
        wanted = n_atoms, n_edges, n_threads
        have = self._memory.sizes if self._memory else (-1, -1, -1)
        too_large = have[0] > max(4 * n_atoms, _SMALL)
        if too_large or any(want > has for want, has in zip(wanted, have)):
            self._memory = None
            if not too_large:
                wanted = tuple(max(want, has) for want, has in zip(wanted, have))
            self._memory = _Memory(self, wanted[0], wanted[1] + wanted[1] // 8, wanted[2])
        return self._memory


def _contiguous(*inputs: Tensor) -> dict[str, Tensor]:
    """By the names that calls know them by."""
    return {name: tensor.contiguous() for name, tensor in zip(ARRAYS, inputs)}


def _rows(row_ptr: Tensor, neighbour: Tensor, n_counted: int, n_steps: int) -> list[int]:
    """How many of the first atoms matter 0, 1, ... steps before the end: those counted, their neighbours, and so on."""
    rows = [n_counted]
    for _ in range(n_steps):
        n = rows[-1]
        seen = neighbour[: int(row_ptr[n])] if n < len(row_ptr) - 1 else ()
        rows.append(max(n, int(seen.max()) + 1) if len(seen) else n)
    return rows


def _n_threads(n_edges: int) -> int:
    return max(1, min(torch.get_num_threads(), n_edges // _MIN_EDGES))


def _ranges(row_ptr: Tensor, n_atoms: int, n_threads: int) -> list[tuple[int, int]]:
    """Contiguous parts of the first n_atoms for each thread, with about equally many edges."""
    if n_threads == 1:
        return [(0, n_atoms)]
    n_edges = int(row_ptr[n_atoms])
    targets = [n_edges * k // n_threads for k in range(1, n_threads)]
    cuts = [0, *np.searchsorted(row_ptr[: n_atoms + 1].numpy(), targets).tolist(), n_atoms]
    return list(zip(cuts, cuts[1:]))
