"""Searches that find all pairs within a radius, in any order; `neighbors` prepares their input and sorts the pairs.

Each takes atoms that lie inside the cell in its periodic directions, and an invertible cell whose non-periodic rows are
unit vectors orthogonal to all other rows, and returns edge_index (2, E) and S (E, 3), int64, on the atoms' device.
Pairs at a distance of zero count, an atom with itself (S = 0) does not.
"""

from __future__ import annotations

import numpy as np
import torch

Found = tuple[torch.Tensor, torch.Tensor]

_VESIN_CELLS = 1e5  # vesin's bound on the number of its cells
_CHUNK = 2**24  # torch-cluster allocates queries x candidates integers at once on CUDA


def vesin_pairs(positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray, radius: float) -> Found:
    """Pairs by vesin's cell lists, O(n) also where atoms are lost in vacuum.

    vesin 0.6 searches all cells along a direction without periodicity beside a periodic one, and crashes on very flat
    boxes. So directions without periodicity become periodic ones with enough vacuum, and boxes that are too flat or too
    empty even then go to `tree_pairs`, as do more pairs than vesin allocates memory for on CUDA.

    Source: https://github.com/luthaf/vesin
    """
    from vesin import NeighborList as Vesin

    padded, box = _pad(positions, cell, pbc, radius)
    if _too_sparse(box, len(positions), radius):
        return tree_pairs(positions, cell, pbc, radius)
    search, periodic = Vesin(cutoff=radius, full_list=True), np.ones(3, dtype=bool)
    if positions.device.type == "cpu":
        pairs, shift = search.compute(padded.numpy(), box, periodic, "PS")
        return torch.from_numpy(pairs.T.astype(np.int64, order="C")), torch.from_numpy(shift).to(torch.int64)
    box, periodic = torch.from_numpy(box).to(padded.device), torch.from_numpy(periodic).to(padded.device)
    try:
        pairs, shift = search.compute(padded, box, periodic, "PS")
    except RuntimeError as error:
        if "MAX_PAIRS" not in str(error):
            raise
        return tree_pairs(positions, cell, pbc, radius)
    return pairs.view(torch.int64).T.contiguous(), shift.to(torch.int64)


def tree_pairs(positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray, radius: float) -> Found:
    """Pairs by scipy's k-d tree among explicit images: slower than cells, on the CPU, for any distribution of atoms."""
    from scipy.spatial import cKDTree

    points, atom, image = _images(positions, cell, pbc, radius)
    centres, candidates = cKDTree(positions.cpu().numpy()), cKDTree(points.cpu().numpy())
    found = centres.sparse_distance_matrix(candidates, radius, output_type="ndarray")
    i, point = (torch.from_numpy(found[name].astype(np.int64)).to(positions.device) for name in ("i", "j"))
    return _edges(i, atom[point], image[point])


def torch_cluster_pairs(positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray, radius: float) -> Found:
    """Pairs by torch_cluster.radius among explicit images, bounded by their number, so none is dropped.

    Raises:
        ImportError: where torch-cluster is not installed; says how to get it.

    Source: https://github.com/rusty1s/pytorch_cluster
    """
    try:
        from torch_cluster import radius as within
    except ImportError as error:
        raise ImportError(
            'neighbors="torch_cluster" needs the torch-cluster package, compiled in minutes once torch is there: '
            'pip install torch-cluster --no-build-isolation. The default, "vesin", needs nothing more.'
        ) from error
    points, atom, image = _images(positions, cell, pbc, radius)
    chunk = len(positions) if positions.device.type == "cpu" else max(1, _CHUNK // len(points))
    found = []
    for start in range(0, len(positions), chunk):
        i, point = within(points, positions[start : start + chunk], radius, max_num_neighbors=len(points))
        found.append(torch.stack([i + start, point]))
    i, point = torch.cat(found, dim=1)
    return _edges(i, atom[point], image[point])


def _pad(positions, cell, pbc, radius: float) -> tuple[torch.Tensor, np.ndarray]:
    """The same pairs in a fully periodic box: vacuum all around, no gap between atoms much wider than the radius."""
    if pbc.all():
        return positions, cell
    axes = torch.from_numpy(cell[~pbc]).to(positions.device)
    height, order = (positions @ axes.T).sort(dim=0)
    excess = (height.diff(dim=0) - (radius + 1.0)).clamp(min=0.0).cumsum(0)
    excess = torch.cat([height[:1], height[:1] + excess])
    extent = (height[-1] - excess[-1]).cpu().numpy()
    box = cell.copy()
    box[~pbc] *= (extent + radius + 1.0)[:, None]
    return positions - torch.zeros_like(excess).scatter(0, order, excess) @ axes, box


def _too_sparse(box: np.ndarray, n_atoms: int, radius: float) -> bool:
    """Whether vesin would reach its bound on cells with few atoms, or in a box so flat that no cell is left in it."""
    x, y, z = np.maximum(np.trunc(1.0 / np.linalg.norm(np.linalg.inv(box), axis=0) / radius), 1.0)
    total = x * y * z
    if total <= _VESIN_CELLS:
        return False
    z_taken = np.trunc(z * np.cbrt(_VESIN_CELLS / total))
    y_taken = np.trunc(y / z * z_taken)
    x_taken = np.trunc(x / y * y_taken)
    return total > n_atoms or x_taken * y_taken * z_taken < 1.0


def _images(positions, cell, pbc, radius: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All images that can lie within a radius of an atom: place (m, 3), atom (m,) and shift S (m, 3) of each."""
    device = positions.device
    inverse = np.linalg.inv(cell)
    reach = radius * np.linalg.norm(inverse, axis=0)  # the radius in units of the cell's heights
    ranges = [torch.arange(-m, m + 1, device=device) for m in np.where(pbc, np.floor(reach + 1), 0).astype(int)]
    shifts = torch.cartesian_prod(*ranges)
    scaled = positions @ torch.from_numpy(inverse).to(device)
    reach = torch.from_numpy(reach).to(device)
    low, high = scaled.amin(0) - reach, scaled.amax(0) + reach
    inside = torch.ones((len(shifts), len(positions)), dtype=torch.bool, device=device)
    for axis in range(3):
        place = scaled[:, axis] + shifts[:, axis, None]
        inside &= (low[axis] <= place) & (place <= high[axis])
    which, atom = inside.nonzero().unbind(1)
    points = positions[atom] + shifts[which].to(torch.float64) @ torch.from_numpy(cell).to(device)
    return points, atom, shifts[which]


def _edges(i, j, shift) -> Found:
    keep = (i != j) | shift.any(1)
    return torch.stack([i[keep], j[keep]]), shift[keep]
