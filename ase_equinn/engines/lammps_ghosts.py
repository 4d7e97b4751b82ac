"""What belongs to ghosts is sent to the ranks that own the atoms, and added there.

LAMMPS tells each rank the IDs of its own atoms and of its ghosts, not who owns the ghosts. So each ID has a rank where
one can ask, ID modulo the number of ranks: every rank reports its own atoms there and asks for its ghosts. That is done
anew when LAMMPS has exchanged atoms; in between, numbers go from the ghosts straight to their owners.
"""

from __future__ import annotations

import numpy as np


class Ghosts:
    """Where the ghosts of this rank are at home.

    Args:
        comm: an mpi4py communicator; all its ranks make this object, and call its methods, together.
        own, ghosts: int64, IDs of the atoms of this rank and of its ghosts; an ID may have several ghosts.

    Raises:
        RuntimeError: a ghost that nobody owns.
    """

    def __init__(self, comm, own: np.ndarray, ghosts: np.ndarray):
        self.comm, self.n_own = comm, len(own)
        asked, self._which = np.unique(ghosts, return_inverse=True)
        ranks, places = self._find(own, asked)
        lost = asked[ranks < 0]
        if len(lost):
            raise RuntimeError(f"atom {lost[0]} is a ghost here, but no rank owns it")
        self._order = np.argsort(ranks, kind="stable")
        self._sent = np.bincount(ranks, minlength=comm.size)
        self._places, self._received = self._scatter(places[self._order], self._sent)

    def _find(self, own: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rank of each asked ID, -1 if unknown, and its place among that rank's own atoms."""
        size = self.comm.size
        order = np.argsort(own % size, kind="stable")
        known, counts = self._scatter(
            np.stack([own, np.arange(len(own))], 1)[order], np.bincount(own % size, minlength=size)
        )
        owner = np.repeat(np.arange(size), counts)
        by_id = np.argsort(known[:, 0], kind="stable")
        known, owner = known[by_id], owner[by_id]
        order = np.argsort(asked % size, kind="stable")
        wanted, counts = self._scatter(asked[order], np.bincount(asked % size, minlength=size))
        at = np.searchsorted(known[:, 0], wanted)
        found = np.full((len(wanted), 2), -1)
        hit = at < len(known)
        hit[hit] = known[at[hit], 0] == wanted[hit]
        found[hit] = np.stack([owner[at[hit]], known[at[hit], 1]], 1)
        answer, _ = self._scatter(found, counts)
        ranks, places = np.empty(len(asked), dtype=np.int64), np.empty(len(asked), dtype=np.int64)
        ranks[order], places[order] = answer[:, 0], answer[:, 1]
        return ranks, places

    def _scatter(self, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first counts[0] rows go to rank 0, the next to rank 1, ...; what comes, and how much from each rank."""
        received = np.empty_like(counts)
        self.comm.Alltoall(counts, received)
        return self._exchange(rows, counts, received), received

    def _exchange(self, rows: np.ndarray, sent: np.ndarray, received: np.ndarray) -> np.ndarray:
        width = int(np.prod(rows.shape[1:]))
        out = np.empty((int(received.sum()), *rows.shape[1:]), dtype=rows.dtype)
        self.comm.Alltoallv((np.ascontiguousarray(rows), sent * width), (out, received * width))
        return out

    def send_home(self, values: np.ndarray) -> np.ndarray:
        """The values (n_own, k) of the own atoms, with those of all their ghosts on any rank added in a fixed order.

        Args:
            values: (n_own + number of ghosts, k) float64; left unchanged.
        """
        summed = np.zeros((len(self._order), values.shape[1]))
        np.add.at(summed, self._which, values[self.n_own :])
        came = self._exchange(summed[self._order], self._sent, self._received)
        total = values[: self.n_own].copy()
        np.add.at(total, self._places, came)
        return total
