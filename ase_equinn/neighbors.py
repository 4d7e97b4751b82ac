"""Neighbour pairs under any periodic boundary conditions: r_ij = r_j - r_i + S @ cell with |r_ij| < cutoff.

Conventions: `edge_index[0]` = i is the centre, `edge_index[1]` = j the neighbour, S counts cell vectors (rows of `cell`),
every pair appears from both ends, no pair is ever dropped, an atom may neighbour its own images. Pairs come in one
canonical order, ascending in (i, j, S), so that no result depends on how or when the list was built.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ase_equinn import neighbor_backends

BACKENDS = {"vesin": neighbor_backends.vesin_pairs, "torch_cluster": neighbor_backends.torch_cluster_pairs}
_FLAT = 1e-8  # periodic vectors whose volume is below this fraction of the product of their lengths are degenerate


class Pairs(NamedTuple):
    """Pairs sorted by (i, j, S); those of centre i are the columns `row_ptr[i]:row_ptr[i + 1]`."""

    edge_index: torch.Tensor  # (2, E) int64: centre, neighbour
    shift: torch.Tensor  # (E, 3) int32: S
    row_ptr: torch.Tensor  # (n + 1,) int64


class _Built(NamedTuple):
    """What the last build saw (reference positions, frame) and found (all pairs within cutoff + skin)."""

    positions: torch.Tensor  # (n, 3) float64, a copy
    pbc: np.ndarray  # (3,) bool
    frame: np.ndarray  # (3, 3): complete_cell(cell, pbc)
    inverse: np.ndarray  # its inverse
    edge_index: torch.Tensor  # (2, E) int64
    shift: torch.Tensor  # (E, 3) int32
    counts: torch.Tensor  # (3, E) float64: the transpose of shift


def complete_cell(cell, pbc) -> np.ndarray:
    """The non-periodic rows of a cell do not matter: they come back as unit vectors orthogonal to all other rows.

    Args:
        cell: (3, 3) A, rows are cell vectors; rows without periodicity may be anything finite.
        pbc: (3,) bool.
    Returns:
        (3, 3) float64, invertible.
    Raises:
        ValueError: for a cell that is not finite, or periodic vectors without length, area or volume.
    """
    cell, pbc = np.asarray(cell, dtype=np.float64), np.asarray(pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell is not finite: {cell.tolist()}")
    periodic = cell[pbc]
    lengths = np.linalg.norm(periodic, axis=1)
    if not lengths.all():
        direction = np.flatnonzero(pbc)[lengths == 0][0]
        raise ValueError(f"pbc is {pbc.tolist()}, but cell vector {direction} is zero: cell = {cell.tolist()}")
    frame = cell.copy()
    if not pbc.all():
        frame[~pbc] = np.linalg.svd(np.concatenate([periodic, np.zeros((1, 3))]))[2][len(periodic) :]
    with np.errstate(over="ignore"):
        volume = abs(np.linalg.det(frame)) / np.prod(lengths)
    if not volume > _FLAT:
        raise ValueError(f"pbc is {pbc.tolist()}, but the periodic cell vectors span no volume: cell = {cell.tolist()}")
    return frame


class NeighborList:
    """A Verlet list gives exactly the pairs of a fresh one at every call; the skin decides only how often it is rebuilt.

    Pairs within cutoff + skin are found once and filtered by |r_ij| < cutoff at each call. With h0 F = h (cells at the
    build and now) and u = r F^-1 - r0 less its mean, the list is kept while smax(F^-1) cutoff + 2 max|u| <= cutoff + skin:
    v = r_j - r_i + S h gives v F^-1 = (r0_j - r0_i + S h0) + u_j - u_i, so |v| < cutoff implies that the
    distance at the build was |v F^-1 - u_j + u_i| <= smax(F^-1) cutoff + 2 max|u|, that is, the pair is in the list.

    Uniform drift and a straining cell with the atoms moving along therefore cost no rebuild.

    Args:
        cutoff: A, pairs at exactly this distance are excluded.
        skin: A, >= 0.
        backend: "vesin", or "torch_cluster" (an optional package).
    Raises:
        ValueError: for a cutoff, skin or back end that is none of these.
    """

    def __init__(self, cutoff: float, skin: float = 0.0, backend: str = "vesin"):
        if not (np.isfinite(cutoff) and cutoff > 0):
            raise ValueError(f"cutoff must be a positive number of A, got {cutoff!r}")
        if not (np.isfinite(skin) and skin >= 0):
            raise ValueError(f"skin must be zero or a positive number of A, got {skin!r}")
        if backend not in BACKENDS:
            raise ValueError(f"neighbour list back end must be one of {sorted(BACKENDS)}, got {backend!r}")
        self.cutoff, self.skin, self.backend = float(cutoff), float(skin), backend
        self.n_builds = 0  # how often the list was built, for timings
        self._built: _Built | None = None

    def update(self, positions, cell, pbc) -> Pairs:
        """The pairs with |r_ij| < cutoff at these positions, on the device of the positions.

        Args:
            positions: (n, 3) A, torch or numpy; wrapped or not. Distances are formed in float64.
            cell: (3, 3) A, torch or numpy.
            pbc: bool or (3,) bool.
        Raises:
            ValueError: for a wrong shape, a position that is not finite (naming the atom), a degenerate periodic cell.
        """
        positions, cell, pbc = _inputs(positions, cell, pbc)
        if not self._is_valid(positions, cell, pbc):
            self._built = None
            self._built = self._build(positions, cell, pbc)
            self.n_builds += 1
        built = self._built
        vectors = pair_vectors(positions, built.edge_index, built.counts, cell.tolist())
        keep = (vectors.square().sum(0) < self.cutoff**2).nonzero()[:, 0]
        i = built.edge_index[0].index_select(0, keep)
        edge_index = torch.stack([i, built.edge_index[1].index_select(0, keep)])
        row_ptr = torch.searchsorted(i, torch.arange(len(positions) + 1, device=i.device))
        return Pairs(edge_index, built.shift.index_select(0, keep), row_ptr)

    def _is_valid(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> bool:
        built = self._built
        if built is None or len(positions) != len(built.positions) or positions.device != built.positions.device:
            return False
        if not np.array_equal(pbc, built.pbc) or not np.isfinite(cell).all():
            return False
        stretch, scaled = 1.0, positions
        if not np.array_equal(cell[pbc], built.frame[pbc]):
            deformation = np.eye(3) + built.inverse[:, pbc] @ (cell[pbc] - built.frame[pbc])
            smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
            if smallest * (self.cutoff + self.skin) < self.cutoff:
                return False
            stretch = 1.0 / smallest
            scaled = positions @ torch.from_numpy(np.linalg.inv(deformation)).to(positions.device)
        if len(positions) == 0:
            return True
        moved = scaled - built.positions
        moved -= moved.mean(0)
        farthest = moved.square().sum(1).max().sqrt().item()  # NaN positions fail the comparison and reach _build
        return stretch * self.cutoff + 2 * farthest <= self.cutoff + self.skin

    def _build(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> _Built:
        frame = complete_cell(cell, pbc)
        inverse = np.linalg.inv(frame)
        bad = (~torch.isfinite(positions).all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"the position of atom {bad[0]} is not finite: {positions[bad[0]].tolist()}")
        wrapped, count = _wrap(positions, frame, inverse, pbc)
        size = positions.abs().max().item() if len(positions) else 0.0
        radius = self.cutoff + self.skin + 1e-9 + 1e-14 * size  # round-off, also of far-away positions, loses no pair
        edge_index, shift = BACKENDS[self.backend](wrapped, frame, pbc, radius)
        order = torch.argsort(_canonical_key(edge_index, shift, len(positions)))
        edge_index, shift = edge_index.index_select(1, order), shift.index_select(0, order)
        shift = shift + (count.index_select(0, edge_index[0]) - count.index_select(0, edge_index[1]))
        counts = shift.to(torch.float64).T.contiguous()
        return _Built(positions.clone(), pbc, frame, inverse, edge_index, shift.to(torch.int32), counts)


def neighbor_list(positions, cell, pbc, cutoff: float, *, backend: str = "vesin") -> Pairs:
    """All pairs with |r_j - r_i + S @ cell| < cutoff, from both ends, sorted by (i, j, S).

    Args:
        positions: (n, 3) A, torch (any device) or numpy.
        cell: (3, 3) A, rows are cell vectors; rows without periodicity are ignored.
        pbc: bool or (3,) bool.
        cutoff: A; may exceed the cell. Atoms at the same place are a pair with d = 0.
        backend: "vesin" or "torch_cluster".
    Returns:
        Pairs: edge_index (2, E) int64, shift S (E, 3) int32, row_ptr (n + 1,) int64, on the device of the positions.
    Raises:
        ValueError: see NeighborList.
    """
    return NeighborList(cutoff, backend=backend).update(positions, cell, pbc)


def pair_vectors(positions: torch.Tensor, edge_index: torch.Tensor, counts: torch.Tensor, cell) -> torch.Tensor:
    """r_j - r_i + S @ cell, component by component, so that a pair's vector never depends on the other pairs.

    Args:
        positions: (n, 3) float64. edge_index: (2, E). counts: (3, E) float64, S transposed.
        cell: cell[a][x], numbers or (E,) tensors.
    Returns:
        (3, E) float64.
    """
    difference = positions.index_select(0, edge_index[1]) - positions.index_select(0, edge_index[0])
    shifts = [counts[0] * cell[0][x] + counts[1] * cell[1][x] + counts[2] * cell[2][x] for x in range(3)]
    return difference.T + torch.stack(shifts)


def _inputs(positions, cell, pbc) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    positions = torch.as_tensor(positions).detach().to(torch.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions must have the shape (n, 3), got {tuple(positions.shape)}")
    cell, pbc = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.array(x) for x in (cell, pbc))
    if cell.shape != (3, 3):
        raise ValueError(f"the cell must have the shape (3, 3), got {cell.shape}")
    if pbc.shape not in ((), (1,), (3,)):
        raise ValueError(f"pbc must be one bool or three, got {pbc.tolist()}")
    return positions, cell.astype(np.float64), np.broadcast_to(pbc.astype(bool), 3)


def _wrap(positions, frame, inverse, pbc) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions moved into the cell (to begin at 0 in non-periodic directions) and the whole cells taken off each."""
    device = positions.device
    count = torch.floor(positions @ torch.from_numpy(inverse).to(device)) * torch.from_numpy(pbc.copy()).to(device)
    if len(count) and count.abs().max().item() > 2**29:
        atom = count.abs().amax(1).argmax().item()
        raise ValueError(f"atom {atom} is too many cells away from the origin: {positions[atom].tolist()}")
    wrapped = positions - count @ torch.from_numpy(frame).to(device)
    return wrapped, count.to(torch.int64)


def _canonical_key(edge_index: torch.Tensor, shift: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """One int64 per pair, ascending in (i, j, S). (Shifts of wrapped atoms are small; any list that fits into memory fits.)"""
    key = edge_index[0] * n_atoms + edge_index[1]
    if key.numel() == 0:
        return key
    low, high = shift.amin(0).tolist(), shift.amax(0).tolist()
    for axis in range(3):
        key = key * (high[axis] - low[axis] + 1) + (shift[:, axis] - low[axis])
    return key
