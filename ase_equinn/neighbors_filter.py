"""What a Verlet list does at every step: how far have atoms moved, which kept pairs are shorter than the cutoff.

By kernels on the CPU, by torch elsewhere and where kernels cannot be had: the same bits.
"""

from __future__ import annotations

import itertools
import logging
import math
import weakref
from array import array
from functools import lru_cache
from typing import Callable, NamedTuple

import numpy as np
import torch

_ONE = array("d", np.eye(3).ravel())
_log = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """Pairs sorted by (i, j, S); those of centre i are the columns `row_ptr[i]:row_ptr[i + 1]`."""

    edge_index: torch.Tensor  # (2, E) int64: centre, neighbour
    shift: torch.Tensor  # (E, 3) int32: S
    row_ptr: torch.Tensor  # (n + 1,) int64
    vectors: torch.Tensor  # (E, 3) float64, A: r_ij by which the pair was judged


class TorchFilter:
    """Sorted pairs that are kept for a while, on any device.

    Args:
        edge_index, shift: (2, K), (K, 3).
        origin: (n, 3) float64, the positions at which they were found; left as they are.
    """

    def __init__(self, edge_index: torch.Tensor, shift: torch.Tensor, origin: torch.Tensor):
        self.edge_index, self.shift, self.origin = edge_index, shift.to(torch.int32), origin
        self.counts = shift.T.to(torch.float64, memory_format=torch.contiguous_format)

    def farthest_move(self, positions: torch.Tensor, transform: np.ndarray | None) -> float:
        """max |u - mean of u| with u = r T - r0 for n >= 1 atoms; nan or infinite where a position is not finite."""
        scaled = positions if transform is None else positions @ torch.from_numpy(transform).to(positions.device)
        moved = scaled - self.origin
        moved -= moved.mean(0)
        return moved.square().sum(1).max().sqrt().item()

    def within(self, cutoff: float, positions: torch.Tensor, cell: np.ndarray, memory: Memory) -> tuple[Pairs, None]:
        """The pairs with |r_ij| < cutoff in the same order, as new tensors."""
        components = torch.stack(pair_components(positions, self.edge_index, self.counts, cell.tolist()))
        x, y, z = components
        keep = (x * x + y * y + z * z < cutoff**2).nonzero()[:, 0]
        i = self.edge_index[0].index_select(0, keep)
        edge_index = torch.stack([i, self.edge_index[1].index_select(0, keep)])
        row_ptr = torch.searchsorted(i, torch.arange(len(positions) + 1, device=i.device))
        vectors = components.index_select(1, keep).T.contiguous()
        return Pairs(edge_index, self.shift.index_select(0, keep), row_ptr, vectors), None


class NativeFilter:
    """`TorchFilter` on the CPU by compiled kernels; contiguous positions."""

    def __init__(self, edge_index: torch.Tensor, shift: torch.Tensor, origin: torch.Tensor):
        n, k = self.n_atoms, self.n_pairs = len(origin), len(shift)
        self.origin, self.starts = origin, torch.from_numpy(np.searchsorted(edge_index[0].numpy(), np.arange(n + 1)))
        self.kept = torch.empty((k, 4), dtype=torch.int32)
        self.kept[:, :3], self.kept[:, 3] = shift, edge_index[1]
        sizes = 16 * k, 24 * k + 8, 8 * n + 8, 8, 32 * n, 12 * k + 4  # bytes; each part begins at a multiple of 8
        *self.parts, self.size = itertools.accumulate(sizes, initial=0)

    def farthest_move(self, positions: torch.Tensor, transform: np.ndarray | None) -> float:
        """See TorchFilter."""
        square, matrix = array("d", [0.0]), _ONE if transform is None else array("d", transform.ravel().tolist())
        places = positions.data_ptr(), self.origin.data_ptr(), matrix.buffer_info()[0], square.buffer_info()[0]
        _compiled().farthest(*places, 0, self.n_atoms)
        return math.sqrt(square[0])

    def within(self, cutoff: float, positions: torch.Tensor, cell: np.ndarray, memory: Memory) -> tuple[Pairs, float]:
        """The pairs, and the shortest distance among them (beyond the cutoff: of a pair that is kept, or inf).

        The tensors lie in `memory`, which is not used again while anything refers to one of them.
        """
        n, k, (loan, start) = self.n_atoms, self.n_pairs, memory.take(self.size)
        a, b, c = cell.tolist()
        constants = array("d", [*a, 0.0, *b, 0.0, *c, 0.0, cutoff**2])
        index, vectors, row_ptr, nearest, padded, shift = self.parts
        inputs = positions.data_ptr(), constants.buffer_info()[0], self.starts.data_ptr(), self.kept.data_ptr()
        outputs = [start + part for part in (padded, index, shift, vectors, row_ptr, nearest)]
        _compiled().filter(*inputs, *outputs, 0, n, k)
        row_ptr = np.ndarray((n + 1,), np.int64, loan, row_ptr)
        e = int(row_ptr[n])
        found = Pairs(
            torch.from_numpy(np.ndarray((2, e), np.int64, loan, index + 8 * (k - e))),
            torch.from_numpy(np.ndarray((e, 3), np.int32, loan, shift)),
            torch.from_numpy(row_ptr),
            torch.from_numpy(np.ndarray((e, 3), np.float64, loan, vectors)),
        )
        return found, math.sqrt(np.ndarray((1,), np.float64, loan, nearest)[0])


class Memory:
    """Memory that is lent, and lent again once nothing refers to it: fresh memory costs a page fault every 4 kB."""

    def __init__(self):
        # Two blocks, for a caller who holds the last result while the next one is found; and what was lent of each.
        self._blocks: list[tuple[torch.Tensor, weakref.ref]] = []

    def __reduce__(self):
        return Memory, ()

    def take(self, size: int) -> tuple[np.ndarray, int]:
        """At least so many bytes, uint8, and their address; lent while this array or one made from it exists."""
        free = [k for k, (block, loan) in enumerate(self._blocks) if loan() is None and block.numel() >= size]
        block = self._blocks.pop(free[0])[0] if free else torch.empty(size + size // 8, dtype=torch.uint8)
        loan = block.numpy()  # owns nothing: what is made from it refers to it, not to the block
        self._blocks = [*self._blocks[-1:], (block, weakref.ref(loan))]
        return loan, block.data_ptr()


def filter_of(edge_index: torch.Tensor, shift: torch.Tensor, origin: torch.Tensor) -> TorchFilter | NativeFilter:
    """The filter for pairs on this device."""
    native = origin.device.type == "cpu" and has_kernels()
    return (NativeFilter if native else TorchFilter)(edge_index, shift, origin)


def pair_components(positions, edge_index, counts, cell) -> list[torch.Tensor]:
    """x, y and z of r_j - r_i + S @ cell, formed elementwise so that a pair's numbers never depend on the other pairs.

    Args:
        positions: (n, 3) float64. edge_index: (2, E) int64. counts: (3, E) float64, S transposed.
        cell: cell[a][x], each a number or (E,) float64.
    Returns:
        three (E,) float64.
    """
    difference = positions.index_select(0, edge_index[1]) - positions.index_select(0, edge_index[0])
    a, b, c = counts
    return [difference[:, x] + (a * cell[0][x] + b * cell[1][x] + c * cell[2][x]) for x in range(3)]


class _Kernels(NamedTuple):
    """Compiled functions; see `FilterKernel` and `MovedKernel` for their arguments."""

    filter: Callable
    farthest: Callable


@lru_cache(maxsize=None)
def _compiled() -> _Kernels:
    from ase_equinn.ops.jit import compile_function
    from ase_equinn.ops.neighbor_kernels import FilterKernel, MovedKernel

    made = FilterKernel(), MovedKernel()
    return _Kernels(*(compile_function(k.name, k.source(), k.n_pointers, k.n_integers) for k in made))


@lru_cache(maxsize=None)
def has_kernels() -> bool:
    """Whether the kernels could be compiled and give torch's bits for a few pairs; if not, the reason is logged."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand((5, 3), generator=generator, dtype=torch.float64)
    edge_index = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    shift = torch.arange(75).reshape(25, 3) % 4 - 1
    cell, found = np.eye(3) + 0.1, []
    try:
        memory = Memory()
        memory.take(1 << 16)[0].fill(0xA5)  # fresh memory may hold an earlier result, as if a kernel had written it
        for filter_pairs in (TorchFilter, NativeFilter):
            found.append(filter_pairs(edge_index, shift, positions).within(1.3, positions, cell, memory)[0])
        problem = None if all(map(torch.equal, *found)) else "kernels compiled for this CPU give other numbers"
        loan, _ = Memory().take(8)
        if np.ndarray((1,), np.float64, loan).base is not loan:
            problem = f"numpy {np.__version__} does not say which arrays refer to lent memory"
    except Exception as error:  # whatever a machine's compiler may say
        problem = f"{type(error).__name__}: {error}"
    if problem:
        _log.warning("neighbour lists are filtered by torch: %s", problem)
    return problem is None
