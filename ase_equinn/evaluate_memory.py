"""Work on consecutive items in groups that fit into memory: a group that does not is halved, and the work goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class Budget:
    """How many edges a group may have; less after each time that memory ran out, for all groups to come.

    Raises:
        ValueError: max_edges below 1.
    """

    def __init__(self, max_edges: int):
        if not max_edges >= 1:
            raise ValueError(f"max_edges must be at least 1, got {max_edges!r}")
        self.max_edges = max_edges


def in_groups(
    edges: Sequence[int], budget: Budget, compute: Callable[[int, int], Result]
) -> Iterator[tuple[int, int, Result]]:
    """(first, last, compute(first, last)) over consecutive groups of items with at most the budget's edges, or of one.

    Where `compute` runs out of memory, the budget becomes half of the group's edges and its items are tried again in
    smaller groups.

    Args:
        edges: of each item.
    Raises:
        MemoryError: a single item that does not fit, with its number and edges.
    """
    first = 0
    while first < len(edges):
        last, total = first + 1, edges[first]
        while last < len(edges) and total + edges[last] <= budget.max_edges:
            total += edges[last]
            last += 1
        fault = None
        try:
            result = compute(first, last)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        if fault is None:  # outside the handler, whose traceback holds on to the tensors of the failed attempt
            yield first, last, result
            first = last
            continue
        gc.collect()  # frames of the failed attempt that refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if last - first == 1:
            raise MemoryError(f"structure {first} with {total} edges does not fit into memory: {fault}")
        budget.max_edges = max(1, total // 2)
        _log.warning("out of memory with %d edges: going on with at most %d", total, budget.max_edges)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's MemoryError, CUDA's, or that of torch's allocator on the CPU."""
    text = str(error).lower()
    named = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or named
