"""Verlet lists of many small structures at once: what costs Python time for each structure is done for all together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ase_equinn.neighbors import BACKENDS, MAX_CELLS, Pairs, canonical_key, complete_cell

_FEW_CELLS = 1e4  # of the size of the cutoff; vesin takes ten times as many


class _Built(NamedTuple):
    """What each structure's last build saw, and all pairs within cutoff + skin, in the indices of the whole batch."""

    positions: torch.Tensor  # (n, 3) float64, a copy
    pbc: torch.Tensor  # (g, 3) bool
    frame: torch.Tensor  # (g, 3, 3): complete_cell of each
    inverse: torch.Tensor  # (g, 3, 3)
    first: torch.Tensor  # (g + 1,) int64: where the atoms of each structure begin
    edge_index: torch.Tensor  # (2, E) int64
    shift: torch.Tensor  # (E, 3) int32
    n_edges: torch.Tensor  # (g,) int64


class BatchNeighborList:
    """The pairs of g structures, each to the bit as `NeighborList` finds them; only those that moved are searched anew.

    A structure's list is kept as long as the bound in `NeighborList` holds for it: a different structure at the same
    place, or another number of atoms, breaks it and costs a search, never a pair.

    Args:
        cutoff: A; pairs at exactly this distance are excluded.
        skin: A, >= 0.
    """

    def __init__(self, cutoff: float, skin: float = 0.0):
        if not (np.isfinite(cutoff) and cutoff > 0):
            raise ValueError(f"cutoff must be a positive number of A, got {cutoff!r}")
        if not (np.isfinite(skin) and skin >= 0):
            raise ValueError(f"skin must be zero or a positive number of A, got {skin!r}")
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.n_builds = 0  # structures searched anew
        self._built: _Built | None = None
        self._offset: tuple[torch.Tensor, torch.Tensor] | None = None  # the cells, and S @ cell of each pair

    def update(self, positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, sizes: Sequence[int]) -> Pairs:
        """The pairs with |r_ij| < cutoff, structure after structure, atoms counted through the whole batch.

        Args:
            positions: (n, 3) float64, A. cell: (g, 3, 3) float64, A, rows. pbc: (g, 3) bool. All on one device.
            sizes: atoms of each structure.
        Raises:
            ValueError: a position that is not finite or a degenerate periodic cell, with the structure's number.
        """
        first = torch.tensor([0, *np.cumsum(sizes).tolist()])
        if positions.shape != (int(first[-1]), 3) or cell.shape != (len(sizes), 3, 3) or pbc.shape != (len(sizes), 3):
            shapes = tuple(positions.shape), tuple(cell.shape), tuple(pbc.shape)
            raise ValueError(f"positions, cell and pbc of {len(sizes)} structures have the shapes {shapes}")
        first = first.to(positions.device)
        stale = self._stale(positions, cell, pbc, first)
        if stale.any():
            self._built = self._rebuild(positions, cell, pbc, first, stale)
            self._offset = None
            self.n_builds += int(stale.sum())
        built = self._built
        if self._offset is None or not torch.equal(self._offset[0], cell):
            counts = built.shift.T.to(torch.float64)
            rows = torch.repeat_interleave(cell, built.n_edges, dim=0).permute(1, 2, 0)
            a, b, c = counts
            offset = torch.stack([a * rows[0, x] + b * rows[1, x] + c * rows[2, x] for x in range(3)])
            self._offset = cell.clone(), offset
        columns = positions.T.contiguous()
        vectors = columns.index_select(1, built.edge_index[1]) - columns.index_select(1, built.edge_index[0])
        vectors += self._offset[1]
        x, y, z = vectors
        keep = (x * x + y * y + z * z < self.cutoff**2).nonzero()[:, 0]
        edge_index = built.edge_index.index_select(1, keep)
        row_ptr = torch.searchsorted(edge_index[0].contiguous(), torch.arange(len(positions) + 1, device=keep.device))
        vectors = vectors.index_select(1, keep).T.contiguous()
        return Pairs(edge_index, built.shift.index_select(0, keep), row_ptr, vectors)

    def _stale(self, positions, cell, pbc, first) -> torch.Tensor:
        """(g,) bool: structures whose list may miss a pair by now; also those whose input will be refused."""
        built, everything = self._built, torch.ones(len(cell), dtype=torch.bool, device=positions.device)
        if built is None or built.positions.device != positions.device or not torch.equal(built.first, first):
            return everything
        if not torch.isfinite(cell).all():
            return everything
        change = torch.where(pbc[:, :, None], cell - built.frame, 0.0)
        batch = torch.repeat_interleave(first.diff())
        stretch, scaled = torch.ones_like(change[:, 0, 0]), positions
        if change.any():
            deformation = torch.eye(3, dtype=change.dtype, device=change.device) + built.inverse @ change
            stretch = 1.0 / torch.linalg.svdvals(deformation)[:, -1]
            inverse, failed = torch.linalg.inv_ex(deformation)
            stretch = torch.where(failed > 0, torch.inf, stretch)
            scaled = (positions[:, None, :] @ inverse[batch])[:, 0]
        moved = scaled - built.positions
        zeros = torch.zeros_like(stretch)
        mean = torch.zeros_like(change[:, 0]).index_add_(0, batch, moved) / first.diff().clamp(min=1)[:, None]
        square = (moved - mean[batch]).square().sum(1)
        farthest = zeros.scatter_reduce(0, batch, square, "amax").sqrt()  # nan stays and fails the comparison
        kept = (pbc == built.pbc).all(1) & (stretch * self.cutoff + 2 * farthest <= self.cutoff + self.skin)
        return ~kept

    def _rebuild(self, positions, cell, pbc, first, stale: torch.Tensor) -> _Built:
        """The lists of the stale structures searched anew, on the CPU, the others taken over."""
        device, old = positions.device, self._built
        positions, cell, pbc, first, stale = (x.detach().cpu() for x in (positions, cell, pbc, first, stale))
        sizes = first.diff()
        fresh = torch.repeat_interleave(stale, sizes)  # atoms
        new = self._search(positions[fresh], cell[stale], pbc[stale], stale.nonzero()[:, 0].tolist(), sizes[stale])
        frame, inverse, edge_index, shift, found = new
        edge_index = fresh.nonzero()[:, 0][edge_index]
        n_edges = torch.zeros(len(stale), dtype=torch.int64).masked_scatter(stale, found)
        if not stale.all():
            old = _Built(*(x.cpu() for x in old))
            kept = torch.repeat_interleave(~stale, old.n_edges)
            edge_index = torch.cat([old.edge_index[:, kept], edge_index], dim=1)
            shift = torch.cat([old.shift[kept], shift])
            order = torch.argsort(edge_index[0], stable=True)  # the pairs of an atom are in order already
            edge_index, shift = edge_index.index_select(1, order), shift.index_select(0, order)
            n_edges = torch.where(stale, n_edges, old.n_edges)
            positions = torch.where(fresh[:, None], positions, old.positions)
            frame = old.frame.masked_scatter(stale[:, None, None], frame)
            inverse = old.inverse.masked_scatter(stale[:, None, None], inverse)
        built = (positions.clone(), pbc.clone(), frame, inverse, first, edge_index, shift, n_edges)
        return _Built(*(x.to(device) for x in built))

    def _search(self, positions, cell, pbc, names: list[int], sizes):
        """Completed cells, their inverses, and all pairs within cutoff + skin of the structures called `names`."""
        first = [0, *sizes.cumsum(0).tolist()]
        bad = (~torch.isfinite(positions).all(1)).nonzero()[:, 0].tolist()
        if bad:
            k = int(np.searchsorted(first, bad[0], side="right")) - 1
            place = positions[bad[0]].tolist()
            raise ValueError(f"structure {names[k]}: the position of atom {bad[0] - first[k]} is not finite: {place}")
        frame = _completed(cell, pbc, names)
        inverse = torch.linalg.inv(frame)
        wrapped, count = _wrap(positions, frame, inverse, pbc, sizes)
        farthest = positions.abs().max().item() if len(positions) else 0.0
        radius = self.cutoff + self.skin + 1e-9 + 1e-14 * farthest  # the margin is for round-off, as in NeighborList
        edge_index, shift, n_edges = _pairs(wrapped, frame, inverse, pbc, first, radius)
        order = torch.argsort(canonical_key(edge_index, shift, len(positions)))
        edge_index, shift = edge_index.index_select(1, order), shift.index_select(0, order)
        shift = shift + count.index_select(0, edge_index[0]) - count.index_select(0, edge_index[1])
        return frame, inverse, edge_index, shift.to(torch.int32), n_edges


def _pairs(wrapped, frame, inverse, pbc, first: list[int], radius: float):
    """All pairs within the radius, (2, E), their shifts and how many each structure has; in any order.

    Periodic cells that are neither huge nor flat go to vesin directly, which is most of the time for small ones; the
    others through the search that `NeighborList` uses.
    """
    from vesin import NeighborList as Vesin

    cells = torch.clamp(torch.trunc(1.0 / inverse.norm(dim=1) / radius), min=1.0).prod(1)
    plain = (pbc.all(1) & (cells <= _FEW_CELLS)).tolist()
    search, everywhere = Vesin(cutoff=radius, full_list=True), np.ones(3, dtype=bool)
    points, boxes = wrapped.numpy(), frame.numpy()
    edges, shifts, n_edges = [np.zeros((0, 2), dtype=np.int64)], [np.zeros((0, 3), dtype=np.int64)], []
    for k, (i, j) in enumerate(zip(first[:-1], first[1:], strict=True)):
        if i == j:
            n_edges.append(0)
            continue
        if plain[k]:
            pair, shift = search.compute(points[i:j], boxes[k], everywhere, "PS")
        else:
            found, shift = BACKENDS["vesin"](wrapped[i:j], boxes[k], pbc[k].numpy(), radius)
            pair, shift = found.numpy().T, shift.numpy()
        edges.append(pair.astype(np.int64) + i)
        shifts.append(shift)
        n_edges.append(len(shift))
    edge_index = torch.from_numpy(np.ascontiguousarray(np.concatenate(edges).T))
    return (
        edge_index,
        torch.from_numpy(np.concatenate(shifts, dtype=np.int64)),
        torch.tensor(n_edges, dtype=torch.int64),
    )


def _completed(cell, pbc, names: list[int]) -> torch.Tensor:
    """`complete_cell` of each structure, at once for those that are periodic in all directions."""
    unit = cell / cell.norm(dim=2, keepdim=True)
    sound = pbc.all(1) & (torch.linalg.det(unit).abs() > 1e-6)  # false for nan
    frame = cell.clone()
    for k in (~sound).nonzero()[:, 0].tolist():
        try:
            frame[k] = torch.from_numpy(complete_cell(cell[k].numpy(), pbc[k].numpy()))
        except ValueError as error:
            raise ValueError(f"structure {names[k]}: {error}") from None
    return frame


def _wrap(positions, frame, inverse, pbc, sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions moved into their cells in the periodic directions, and the cell vectors taken off each atom."""
    batch = torch.repeat_interleave(sizes)
    scaled = (positions[:, None, :] @ inverse[batch])[:, 0]
    count = torch.floor(scaled) * pbc[batch]
    if len(count) and count.abs().max().item() > MAX_CELLS:
        atom = count.abs().amax(1).argmax().item()
        raise ValueError(f"atom {atom} of the batch is too many cells away from the origin: {positions[atom].tolist()}")
    return positions - (count[:, None, :] @ frame[batch])[:, 0], count.to(torch.int64)
