"""Unsorted pairs within a radius, by vesin or by torch-cluster; `neighbors` calls these and puts the pairs in order.

Both take atoms that lie inside the cell in its periodic directions and an invertible cell whose non-periodic rows are
unit vectors orthogonal to all other rows; both return edge_index (2, E) int64 and shift (E, 3) int64.
"""

from __future__ import annotations

import numpy as np
import torch


def vesin_pairs(
    positions: torch.Tensor, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs within a radius by cell lists; O(n), on the device of the positions.

    Source: the vesin library, https://github.com/luthaf/vesin.
    """
    from vesin import NeighborList

    device = positions.device
    box = cell.copy()
    if not pbc.all() and len(positions):  # a box around the atoms in the non-periodic directions
        heights = positions @ torch.from_numpy(cell[~pbc].T).to(device)
        low, high = heights.amin(0), heights.amax(0)
        positions = positions - low @ torch.from_numpy(cell[~pbc]).to(device)
        box[~pbc] *= np.maximum((high - low).cpu().numpy(), 1.0)[:, None]
    search = NeighborList(cutoff=radius, full_list=True)
    if device.type == "cpu":
        pairs, shift = search.compute(positions.numpy(), box, pbc.copy(), "PS")
        pairs, shift = torch.from_numpy(pairs.astype(np.int64)), torch.from_numpy(shift)
    else:
        periodic = torch.from_numpy(pbc.copy()).to(device)
        pairs, shift = search.compute(positions, torch.from_numpy(box).to(device), periodic, "PS")
        pairs = pairs.view(torch.int64)
    return pairs.T.contiguous(), shift.to(torch.int64)


def torch_cluster_pairs(positions, cell, pbc, radius):
    """All pairs within a radius by torch_cluster.radius among the atoms and their periodic images."""
    raise NotImplementedError
