"""Radial functions of pairs of elements: which pairs a graph has, and their tables as one."""

from __future__ import annotations

import weakref
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .graph import Graph
from .ops.radial_table import RadialTable
from .ops.symbols import is_symbolic


class Pairs(NamedTuple):
    """The pairs of species in a graph: for each edge which one it is. With one function for all, `edge` is None."""

    species: tuple[tuple[int, int], ...]
    edge: Tensor | None


_kept: tuple[weakref.ref, int, tuple[int, ...], list[int]] | None = None


def find_pairs(by_element: bool, graph: Graph, species: Tensor, elements: tuple[int, ...]) -> Pairs:
    """The pairs whose elements are both present, or one for all edges if it is not `by_element`.

    `elements`: the atomic numbers that `species` counts.
    """
    if not by_element or not is_symbolic(species) and not len(species):
        return Pairs(((0, 0),), None)
    present = species.trace.present_species() if is_symbolic(species) else _present(graph.numbers, species, elements)
    pairs = tuple((a, b) for k, a in enumerate(present) for b in present[k:])
    if is_symbolic(species):
        number = torch.zeros(present[-1] + 1, present[-1] + 1, dtype=torch.int64)
        for k, (a, b) in enumerate(pairs):
            number[a, b] = number[b, a] = k
        return Pairs(pairs, species.trace.tables(number))
    place = torch.zeros(present[-1] + 1, dtype=torch.int64, device=species.device)  # among those present
    for k, a in enumerate(present):
        place[a : a + 1].fill_(k)
    ends = [place.index_select(0, species).index_select(0, atoms) for atoms in graph.edge_index]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return Pairs(pairs, low * (2 * len(present) - low - 1) // 2 + high)


def _present(numbers: Tensor, species: Tensor, elements: tuple[int, ...]) -> list[int]:
    """Which species occur. Kept while the numbers are the same tensor: to learn it is to wait for the device."""
    global _kept
    if numbers.is_inference():  # they do not count their changes
        return torch.unique(species).tolist()
    if _kept is None or _kept[0]() is not numbers or _kept[1:3] != (numbers._version, elements):
        _kept = weakref.ref(numbers), numbers._version, elements, torch.unique(species).tolist()
    return _kept[3]


def joined(pairs: Pairs, tables: Sequence[RadialTable]) -> RadialTable:
    """The tables of all pairs as `conv` wants them."""
    if pairs.edge is None:
        return tables[0]
    values, first = torch.cat([table.values for table in tables]), pairs.edge * tables[0].values.shape[0]
    if tables[0].first is not None:
        first = first + tables[0].first
    return RadialTable(values, tables[0].spacing, first, tables[0].n_knots)
