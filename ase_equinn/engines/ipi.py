"""i-PI: a client that evaluates a potential for a server of path integrals, replica exchange or other dynamics.

The server sends cells and positions over a UNIX or TCP socket, never elements: those, in the same order, are the
structure's. As many clients as wished serve one run; i-PI spreads its beads over them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient, SocketClosed, actualunixsocketname

from ase_equinn.calculator import EquiCalculator
from ase_equinn.graph import check_atoms
from ase_equinn.runfiles import RunError, as_atoms

RETRY = 0.2  # s between attempts to connect


def serve(
    potential,
    structure: Atoms | str | Path,
    address: str,
    port: int | None = None,
    *,
    wait: float = 60.0,
    device: str = "auto",
    dtype: str = "float32",
    report: Callable[[str], None] | None = None,
) -> int:
    """Evaluates what a server asks for until it says EXIT, and returns how many times.

    A connection that is lost, as when the server is killed (ASE's own server also hangs up without EXIT), is made again
    for `wait` seconds. Where the structure is
    not periodic in all three directions the virial that is sent is zero: no constant pressure there.

    Args:
        potential, device, dtype: see `EquiCalculator`.
        structure: Atoms (left unchanged) or a file that ASE reads: elements and periodicity, in the server's order.
        address: as in i-PI's <address>: the name of the UNIX socket /tmp/ipi_NAME or, with a port, the host.
        port: as in i-PI's <port>; None means a UNIX socket.
        wait: seconds for which a server is waited for.
        report: told in a line what happens to the connection.
    Raises:
        RunError: no server, another number of atoms, positions that cannot be evaluated.
        ValueError: an element that the potential does not know, a port or a time that are none.
    """
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"the port must be a number from 1 to 65535, got {port!r}")
    if not wait >= 0:
        raise ValueError(f"wait must be a number of seconds, got {wait!r}")
    atoms = as_atoms(structure)
    calculator = EquiCalculator(potential, device=device, dtype=dtype)
    species = set.intersection(*(set(p.species) for p in calculator.potentials))
    check_atoms(atoms, sorted(species))
    atoms.calc = calculator
    report = report or (lambda text: None)
    place = _place(address, port)
    count = 0
    while True:
        client = _connect(address, port, wait, count)
        report(f"connected to {place}")
        served, finished = _session(client, atoms, place)
        count += served
        if finished:
            return count
        report(f"lost {place} after {count} evaluations; waiting {wait:g} s for a server")


class _Protocol(IPIProtocol):
    """ASE's protocol, which remembers whether the server said goodbye and checks what it sends."""

    def __init__(self, socket, n_atoms: int):
        super().__init__(socket)
        self.n_atoms, self.last = n_atoms, ""

    def recvmsg(self) -> str:
        self.last = ""
        self.last = super().recvmsg()
        return self.last

    def recvposdata(self):
        try:
            cell, inverse, positions = super().recvposdata()
        except AssertionError:
            raise RunError("the server sent a cell or positions that are not finite") from None
        if len(positions) != self.n_atoms:
            raise RunError(f"the server sent {len(positions)} atoms, the structure has {self.n_atoms}")
        return cell, inverse, positions


def _place(address: str, port: int | None) -> str:
    return f"UNIX socket {actualunixsocketname(address)}" if port is None else f"{address}:{port}"


def _connect(address: str, port: int | None, wait: float, count: int) -> SocketClient:
    """A client of the server, once there is one."""
    end = time.monotonic() + wait
    while True:
        try:
            if port is None:
                return SocketClient(unixsocket=address)
            return SocketClient(host=address, port=port)
        except OSError as error:
            if time.monotonic() < end:
                time.sleep(RETRY)
                continue
            before = f" after {count} evaluations" if count else ""
            raise RunError(f"{_advice(address, port, error)} ({error}; waited {wait:g} s{before})") from None


def _advice(address: str, port: int | None, error: OSError) -> str:
    place = _place(address, port)
    if isinstance(error, ConnectionRefusedError) and port is None:
        path = actualunixsocketname(address)
        return f"nobody listens at {place}: a server that was killed left the file; remove {path} and start i-pi"
    names = "<address> and <port>" if port else "<address>"
    return f"no server at {place}: start i-pi first, and compare with {names} in its input"


def _session(client: SocketClient, atoms: Atoms, place: str) -> tuple[int, bool]:
    """Serves one connection; how many evaluations, and whether the server said EXIT."""
    client.protocol = protocol = _Protocol(client.protocol.socket, len(atoms))
    count = 0
    try:
        for _ in client.irun(atoms, use_stress=bool(atoms.pbc.all())):
            count += 1
    except (SocketClosed, ConnectionError):
        return count, False
    except (ValueError, RuntimeError, KeyError) as error:
        raise RunError(f"evaluation {count + 1} for {place} failed: {error}") from error
    finally:
        client.close()
    return count, protocol.last == "EXIT"
