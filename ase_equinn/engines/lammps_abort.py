"""One rank's failure ends all: otherwise the others would wait for it for ever."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ending_all_ranks(comm, where: str = "") -> Iterator[None]:
    """An exception on any rank is printed, with the rank, and ends the processes of all ranks with status 1.

    Args:
        comm: an mpi4py communicator.
        where: what the message says besides.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        place = f"rank {comm.rank} of {comm.size}" + (f", {where}" if where else "")
        message = (getattr(error, "message", None) or str(error)).strip() or type(error).__name__
        if message.startswith("ERROR"):  # LAMMPS's own: what it adds to its first line stands in its log
            message = message.splitlines()[0].partition(": ")[2]
        sys.stdout.flush()
        print(f"error: {message} ({place})", file=sys.stderr, flush=True)
        comm.Abort(1)
