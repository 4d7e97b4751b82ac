"""Neighbour pairs under any periodic boundary conditions: r_ij = r_j - r_i + S @ cell with |r_ij| < cutoff.

Conventions: `edge_index[0]` = i is the centre, `edge_index[1]` = j the neighbour, S counts cell vectors (rows of
`cell`), every pair appears from both ends, no pair is ever dropped, an atom may neighbour its own images. Pairs come in
one canonical order, ascending in (i, j, S), so that no result depends on how or when the list was built.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ase_equinn.neighbors_search import torch_cluster_pairs, vesin_pairs

BACKENDS = {"vesin": vesin_pairs, "torch_cluster": torch_cluster_pairs}
_FLAT = 1e-8  # periodic cell vectors scaled to unit length that span less than this are degenerate
MAX_CELLS = 2**29  # atoms farther than this many cells from the origin would overflow the int32 shifts


class Pairs(NamedTuple):
    """Pairs sorted by (i, j, S); those of centre i are the columns `row_ptr[i]:row_ptr[i + 1]`."""

    edge_index: torch.Tensor  # (2, E) int64: centre, neighbour
    shift: torch.Tensor  # (E, 3) int32: S
    row_ptr: torch.Tensor  # (n + 1,) int64
    vectors: torch.Tensor  # (E, 3) float64, A: r_ij by which the pair was judged


class _Built(NamedTuple):
    """What the last build saw, and all pairs within cutoff + skin."""

    positions: torch.Tensor  # (n, 3) float64, a copy
    pbc: np.ndarray  # (3,) bool
    frame: np.ndarray  # (3, 3): complete_cell(cell, pbc)
    inverse: np.ndarray  # its inverse
    edge_index: torch.Tensor  # (2, E) int64
    shift: torch.Tensor  # (E, 3) int32
    counts: torch.Tensor  # (3, E) float64: shift transposed


class NeighborList:
    """A Verlet list gives exactly the pairs of a fresh one at every call; the skin decides only how often it is built.

    Pairs within cutoff + skin are found once and filtered by |r_ij| < cutoff at each call. With h0 F = h (cells at the
    build and now) and u = r F^-1 - r0 less its mean, the list is kept while

        smax(F^-1) cutoff + 2 max|u| <= cutoff + skin:

    v = r_j - r_i + S h gives v F^-1 = (r0_j - r0_i + S h0) + u_j - u_i, so for |v| < cutoff the distance at the build
    was |v F^-1 - u_j + u_i| <= smax(F^-1) cutoff + 2 max|u| <= cutoff + skin: the pair is in the list.

    So neither uniform drift nor a cell that strains with its atoms costs a rebuild before the skin is used up.

    Args:
        cutoff: A; pairs at exactly this distance are excluded.
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
            raise ValueError(f"the neighbour list back end must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.cutoff, self.skin, self.backend = float(cutoff), float(skin), backend
        self.n_builds = 0  # how often pairs were searched anew
        self._built: _Built | None = None

    def update(self, positions, cell, pbc) -> Pairs:
        """The pairs with |r_ij| < cutoff at these positions, on the device of the positions.

        Args:
            positions: (n, 3) A, torch or numpy; wrapped or not. Distances are formed in float64.
            cell: (3, 3) A, torch or numpy; rows without periodicity are ignored.
            pbc: bool or (3,) bool.
        Raises:
            ValueError: for a wrong shape, a position that is not finite (naming the atom), a degenerate periodic cell.
        """
        positions, cell, pbc = _inputs(positions, cell, pbc)
        if not self._is_valid(positions, cell, pbc):
            self._built = self._build(positions, cell, pbc)
            self.n_builds += 1
        built = self._built
        components = torch.stack(pair_components(positions, built.edge_index, built.counts, cell.tolist()))
        x, y, z = components
        keep = (x * x + y * y + z * z < self.cutoff**2).nonzero()[:, 0]
        i = built.edge_index[0].index_select(0, keep)
        edge_index = torch.stack([i, built.edge_index[1].index_select(0, keep)])
        row_ptr = torch.searchsorted(i, torch.arange(len(positions) + 1, device=i.device))
        vectors = components.index_select(1, keep).T.contiguous()
        return Pairs(edge_index, built.shift.index_select(0, keep), row_ptr, vectors)

    def _is_valid(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether the bound of the class docstring holds. False for input that `_build` will refuse."""
        built = self._built
        if built is None or positions.shape != built.positions.shape or positions.device != built.positions.device:
            return False
        if not np.array_equal(pbc, built.pbc) or not np.isfinite(cell).all():
            return False
        stretch, scaled = 1.0, positions
        change = cell[pbc] - built.frame[pbc]
        if change.any():
            deformation = np.eye(3) + built.inverse[:, pbc] @ change  # F = 1 where no direction is periodic
            smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
            if smallest * (self.cutoff + self.skin) < self.cutoff:
                return False
            stretch = 1.0 / smallest
            scaled = positions @ torch.from_numpy(np.linalg.inv(deformation)).to(positions.device)
        if not len(positions):
            return True
        moved = scaled - built.positions
        moved -= moved.mean(0)
        farthest = moved.square().sum(1).max().sqrt().item()  # NaN fails the comparison
        return stretch * self.cutoff + 2 * farthest <= self.cutoff + self.skin

    def _build(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> _Built:
        frame = complete_cell(cell, pbc)
        inverse = np.linalg.inv(frame)
        if not len(positions):
            nothing = torch.zeros((3, 0), dtype=torch.int32, device=positions.device)
            return _Built(positions, pbc, frame, inverse, nothing[:2].long(), nothing.T, nothing.double())
        bad = (~torch.isfinite(positions).all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"the position of atom {bad[0]} is not finite: {positions[bad[0]].tolist()}")
        wrapped, count = _wrap(positions, frame, inverse, pbc)
        # The margin covers round-off, so that no pair is lost to it far from the origin either.
        radius = self.cutoff + self.skin + 1e-9 + 1e-14 * positions.abs().max().item()
        edge_index, shift = BACKENDS[self.backend](wrapped, frame, pbc, radius)
        order = torch.argsort(canonical_key(edge_index, shift, len(positions)))
        edge_index, shift = edge_index.index_select(1, order), shift.index_select(0, order)
        shift = shift + (count.index_select(0, edge_index[0]) - count.index_select(0, edge_index[1]))
        counts = shift.T.to(torch.float64, memory_format=torch.contiguous_format)
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
        Pairs: edge_index (2, E) int64, shift S (E, 3) int32, row_ptr (n + 1,) int64, vectors (E, 3) float64, on the device
        of the positions.
    Raises:
        ValueError: see NeighborList.
    """
    return NeighborList(cutoff, backend=backend).update(positions, cell, pbc)


def complete_cell(cell, pbc) -> np.ndarray:
    """An invertible cell: periodic rows as given, the others replaced by unit vectors orthogonal to all other rows.

    Args:
        cell: (3, 3) A, rows are cell vectors.
        pbc: (3,) bool.
    Returns:
        (3, 3) float64.
    Raises:
        ValueError: for a cell that is not finite, or periodic vectors that span no length, area or volume.
    """
    cell, pbc = np.asarray(cell, dtype=np.float64), np.asarray(pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell is not finite: {cell.tolist()}")
    if not pbc.any():
        return np.eye(3)
    lengths = np.linalg.norm(cell[pbc], axis=1)
    if not lengths.all():
        direction = np.flatnonzero(pbc)[lengths == 0][0]
        raise ValueError(f"pbc is {pbc.tolist()}, but cell vector {direction} is zero: cell = {cell.tolist()}")
    frame = cell.copy()
    frame[pbc] /= lengths[:, None]
    if not pbc.all():
        frame[~pbc] = 0.0
        frame[~pbc] = np.linalg.svd(frame)[2][pbc.sum() :]  # the right singular vectors of singular value 0
    if not abs(np.linalg.det(frame)) > _FLAT:
        raise ValueError(f"pbc is {pbc.tolist()}, but the periodic cell vectors span no volume: cell = {cell.tolist()}")
    frame[pbc] = cell[pbc]
    return frame


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


def _inputs(positions, cell, pbc) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    if not isinstance(positions, torch.Tensor):
        positions = torch.from_numpy(np.array(positions, dtype=np.float64))
    positions = positions.detach().to(torch.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions must have the shape (n, 3), got {tuple(positions.shape)}")
    cell, pbc = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (cell, pbc))
    if cell.shape != (3, 3):
        raise ValueError(f"the cell must have the shape (3, 3), got {cell.shape}")
    if pbc.shape not in ((), (3,)):
        raise ValueError(f"pbc must be one bool or three, got {pbc.tolist()}")
    return positions, cell.astype(np.float64), np.zeros(3, dtype=bool) | pbc.astype(bool)


def _wrap(positions, frame, inverse, pbc) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions moved into the cell in its periodic directions, and how many cell vectors were taken off each atom."""
    device = positions.device
    scaled = positions @ torch.from_numpy(inverse).to(device)
    count = torch.floor(scaled) * torch.from_numpy(pbc).to(device)
    if count.abs().max().item() > MAX_CELLS:
        atom = count.abs().amax(1).argmax().item()
        raise ValueError(f"atom {atom} is too many cells away from the origin: {positions[atom].tolist()}")
    return positions - count @ torch.from_numpy(frame).to(device), count.to(torch.int64)


def canonical_key(edge_index: torch.Tensor, shift: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """One number a pair, ascending in (i, j, S); 63 bits are plenty for shifts between wrapped atoms."""
    key = edge_index[0] * n_atoms + edge_index[1]
    if len(shift):
        low = shift.amin(0)
        for axis, width in enumerate((shift.amax(0) - low + 1).tolist()):
            key = key * width + (shift[:, axis] - low[axis])
    return key
