"""Neighbour pairs under any periodic boundary conditions: r_ij = r_j - r_i + S @ cell with |r_ij| < cutoff.

Conventions: `edge_index[0]` = i is the centre, `edge_index[1]` = j the neighbour, S counts cell vectors (rows of
`cell`), every pair appears from both ends, no pair is ever dropped, an atom may neighbour its own images. Pairs come in
one canonical order, ascending in (i, j, S), so that no result depends on how or when the list was built.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ase_equinn.neighbors_filter import Memory, NativeFilter, Pairs, TorchFilter, filter_of
from ase_equinn.neighbors_search import torch_cluster_pairs, vesin_pairs

BACKENDS = {"vesin": vesin_pairs, "torch_cluster": torch_cluster_pairs}
_FLAT = 1e-8  # periodic cell vectors scaled to unit length that span less than this are degenerate
MAX_CELLS = 2**29  # atoms farther than this many cells from the origin would overflow the int32 shifts


class _Built(NamedTuple):
    """What the last build saw, and all pairs within cutoff + skin."""

    pbc: np.ndarray  # (3,) bool
    cell: bytes  # the cell as it was given
    frame: np.ndarray  # (3, 3): complete_cell(cell, pbc)
    inverse: np.ndarray  # its inverse
    pairs: TorchFilter | NativeFilter


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
    Attributes:
        n_builds: how often pairs were searched anew.
        nearest: no pair of the last update is shorter than this, A; None where that is not known.
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
        self.n_builds, self.nearest = 0, None
        self._built: _Built | None = None
        self._memory = Memory()

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
        pairs, self.nearest = self._built.pairs.within(self.cutoff, positions, cell, self._memory)
        return pairs

    def _is_valid(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether the bound of the class docstring holds. False for input that `_build` will refuse."""
        built = self._built
        if built is None:
            return False
        origin = built.pairs.origin
        if positions.shape != origin.shape or positions.device != origin.device:
            return False
        if pbc.tolist() != built.pbc.tolist():
            return False
        stretch, transform = 1.0, None
        if cell.tobytes() != built.cell:
            if not np.isfinite(cell).all():
                return False
            change = cell[pbc] - built.frame[pbc]
            if change.any():
                deformation = np.eye(3) + built.inverse[:, pbc] @ change  # F = 1 where no direction is periodic
                smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
                if smallest * (self.cutoff + self.skin) < self.cutoff:
                    return False
                stretch, transform = 1.0 / smallest, np.linalg.inv(deformation)
        if not len(positions):
            return True
        farthest = built.pairs.farthest_move(positions, transform)  # NaN fails the comparison
        return stretch * self.cutoff + 2 * farthest <= self.cutoff + self.skin

    def _build(self, positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray) -> _Built:
        frame = complete_cell(cell, pbc)
        inverse = np.linalg.inv(frame)
        if not len(positions):
            nothing = torch.zeros((3, 0), dtype=torch.int64, device=positions.device)
            return _Built(pbc, cell.tobytes(), frame, inverse, filter_of(nothing[:2], nothing.T, positions))
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
        pairs = filter_of(edge_index, shift, positions.clone())
        return _Built(pbc, cell.tobytes(), frame, inverse, pairs)


def neighbor_list(positions, cell, pbc, cutoff: float, *, backend: str = "vesin") -> Pairs:
    """All pairs with |r_j - r_i + S @ cell| < cutoff, from both ends, sorted by (i, j, S).

    Args:
        positions: (n, 3) A, torch (any device) or numpy.
        cell: (3, 3) A, rows are cell vectors; rows without periodicity are ignored.
        pbc: bool or (3,) bool.
        cutoff: A; may exceed the cell. Atoms at the same place are a pair with d = 0.
        backend: "vesin" or "torch_cluster".
    Returns:
        Pairs: edge_index (2, E) int64, shift S (E, 3) int32, row_ptr (n + 1,) int64, vectors (E, 3) float64, on the
        device of the positions.
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
    return _complete(cell.tobytes(), pbc.tobytes()).copy()


@lru_cache(maxsize=16)
def _complete(cell: bytes, pbc: bytes) -> np.ndarray:
    """Remembered: in most simulations the cell is the same at every step."""
    cell, pbc = np.frombuffer(cell).reshape(3, 3), np.frombuffer(pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell is not finite: {cell.tolist()}")
    periodic = cell[pbc].tolist()
    lengths = [math.hypot(*row) for row in periodic]
    if not all(lengths):
        direction = np.flatnonzero(pbc)[lengths.index(0.0)]
        raise ValueError(f"pbc is {pbc.tolist()}, but cell vector {direction} is zero: cell = {cell.tolist()}")
    if not periodic:
        return np.eye(3)
    frame = cell.copy()
    directions = [[x / length for x in row] for row, length in zip(periodic, lengths, strict=True)]
    if len(periodic) < 3:
        frame[pbc], frame[~pbc] = directions, 0.0
        frame[~pbc] = np.linalg.svd(frame)[2][len(periodic) :]  # the right singular vectors of singular value 0
        directions = frame.tolist()
        frame[pbc] = periodic
    if not abs(_determinant(*directions)) > _FLAT:
        raise ValueError(f"pbc is {pbc.tolist()}, but the periodic cell vectors span no volume: cell = {cell.tolist()}")
    return frame


def _determinant(a: list[float], b: list[float], c: list[float]) -> float:
    """Of three rows; numpy takes several times as long for so few numbers."""
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


def _inputs(positions, cell, pbc) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Checked: contiguous float64 positions, float64 cell, and three bools of the list's own."""
    if not isinstance(positions, torch.Tensor):
        positions = torch.from_numpy(np.array(positions, dtype=np.float64))
    if positions.requires_grad or positions.dtype is not torch.float64:
        positions = positions.detach().to(torch.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions must have the shape (n, 3), got {tuple(positions.shape)}")
    cell, pbc = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (cell, pbc))
    cell, pbc = np.asarray(cell, dtype=np.float64), np.array(pbc, dtype=bool)
    if cell.shape != (3, 3):
        raise ValueError(f"the cell must have the shape (3, 3), got {cell.shape}")
    if pbc.shape not in ((), (3,)):
        raise ValueError(f"pbc must be one bool or three, got {pbc.tolist()}")
    return positions.contiguous(), cell, pbc if pbc.ndim else pbc.repeat(3)


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
