"""Given structures through i-PI: a server in one process asks a client, `equinn ipi`, in another over a UNIX socket.

What comes back has gone through the whole chain: i-PI's units and cell convention, the socket, the calculator.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.cell import Cell
from ase.stress import full_3x3_to_voigt_6_stress

from ase_equinn.neighbors import complete_cell
from ase_equinn.potential_find import find_potential
from ase_equinn.runfiles import RunError

INPUT = """
<simulation verbosity="quiet">
  <output prefix="ipi"/>
  <total_steps> 1 </total_steps>
  <ffsocket name="equinn" mode="unix" pbc="false"> <address> {address} </address> <latency> 1e-4 </latency> </ffsocket>
  <system>
    <initialize nbeads="1"> <file mode="xyz"> {start} </file> </initialize>
    <forces> <force forcefield="equinn"/> </forces>
    <ensemble/>
    <motion mode="dynamics"> <dynamics mode="nve"/> </motion>
  </system>
</simulation>
"""


def evaluate(
    potential: str | Path,
    frames: Sequence[Atoms],
    *,
    device: str = "auto",
    dtype: str = "float32",
    timeout: float = 120.0,
) -> list[dict]:
    """Energy, forces and stress as i-PI has them, in ASE's units, order and orientation.

    Args:
        potential: folder, file or shipped name.
        frames: any cells and boundary conditions; i-PI is started once for each composition among them.
        device, dtype: see `EquiCalculator`.
        timeout: seconds for each start of i-PI.
    Returns:
        dict(energy: eV, forces: (n, 3) eV/A, stress: (6,) eV/A^3 or None unless fully periodic) for each.
    Raises:
        ModuleNotFoundError: i-PI is not installed.
        RunError: server or client failed or took too long, with what it printed.
    """
    if importlib.util.find_spec("ipi") is None:
        raise ModuleNotFoundError("No module named 'ipi'", name="ipi")
    groups: dict[tuple, list[int]] = {}
    for k, atoms in enumerate(frames):
        groups.setdefault((tuple(atoms.numbers), tuple(atoms.pbc)), []).append(k)
    results: list[dict] = [{}] * len(frames)
    for indices in groups.values():
        group = _group(potential, [frames[k] for k in indices], device, dtype, timeout)
        for k, found in zip(indices, group, strict=True):
            results[k] = found
    return results


def _group(potential, frames: list[Atoms], device: str, dtype: str, timeout: float) -> list[dict]:
    """Frames with the same elements and periodicity."""
    upright = [_upright(atoms) for atoms in frames]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells, positions = np.array([cell for cell, _ in upright]), []
        for atoms, (_, turn) in zip(frames, upright, strict=True):
            positions.append(atoms.positions @ turn.T)
        np.savez(folder / "frames.npz", cells=cells, positions=np.array(positions))
        frames[0].copy().write(folder / "structure.xyz", format="extxyz")
        symbols = "".join(f"{symbol} 0.0 0.0 {k}.0\n" for k, symbol in enumerate(frames[0].symbols))
        header = "# CELL(abcABC): 50 50 50 90 90 90 cell{angstrom} positions{angstrom}"
        (folder / "start.xyz").write_text(f"{len(frames[0])}\n{header}\n{symbols}")
        address = f"equinn_{os.getpid()}_{folder.name}"
        server = [sys.executable, "-m", __name__, str(folder), address]
        client = [sys.executable, "-c", "from ase_equinn.cli import main; main()", "ipi", str(folder / "structure.xyz")]
        client += ["--potential", str(find_potential(potential).absolute()), "--socket", address]
        client += ["--device", device, "--dtype", dtype]
        _run_both(server, client + ["--wait", f"{timeout:g}"], folder, timeout)
        with np.load(folder / "results.npz") as file:
            found = dict(file)
    results = []
    for k, (atoms, (_, turn)) in enumerate(zip(frames, upright, strict=True)):
        virial = np.triu(found["virials"][k]) + np.triu(found["virials"][k], 1).T
        stress = turn.T @ (-virial) @ turn / abs(np.linalg.det(cells[k]))
        stress = full_3x3_to_voigt_6_stress(stress) if atoms.pbc.all() else None
        results.append(dict(energy=float(found["energies"][k]), forces=found["forces"][k] @ turn, stress=stress))
    return results


def _upright(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """The cell with its first vector along x and its second in the xy plane, as i-PI wants it, and the turn to it."""
    lower, turn = Cell(complete_cell(atoms.cell.array, atoms.pbc)).standard_form()
    return lower.array, turn


def _run_both(server: list[str], client: list[str], folder: Path, timeout: float) -> None:
    """Server and client until the server is done; neither survives this function."""
    end, running = time.monotonic() + timeout, {}
    log = {name: folder / f"{name}.log" for name in ("server", "client")}
    try:
        for name, command in (("server", server), ("client", client)):
            with open(log[name], "wb") as file:
                running[name] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
        while (status := running["server"].poll()) is None:
            failed = running["client"].poll()
            if failed or time.monotonic() > end:
                what = f"the client ended with status {failed}" if failed else f"no results within {timeout:g} s"
                raise RunError(f"i-PI: {what}: {_tail(log['client']) or _tail(log['server'])}")
            time.sleep(0.02)
        if status or not (folder / "results.npz").exists():
            raise RunError(f"i-PI ended with status {status}: {_tail(log['server'])}")
    finally:
        for process in running.values():
            process.kill()
            process.wait()
        Path(f"/tmp/ipi_{server[-1]}").unlink(missing_ok=True)


def _tail(path: Path) -> str:
    return path.read_text(errors="replace").strip()[-1000:]


def ask(folder: str, address: str) -> None:
    """The server's process: writes what i-PI gets for the frames in the folder."""
    from ipi.scripting.interactive import InteractiveSimulation
    from ipi.utils.depend import dstrip

    simulation = InteractiveSimulation(INPUT.format(address=address, start=Path(folder) / "start.xyz"))
    (system,) = simulation.syslist
    found: dict[str, list] = {"energies": [], "forces": [], "virials": []}
    with np.load(Path(folder) / "frames.npz") as file:
        for cell, positions in zip(file["cells"], file["positions"], strict=True):
            system.cell.h = cell.T / units.Bohr
            system.beads.q[0] = positions.ravel() / units.Bohr
            found["energies"].append(dstrip(system.forces.pots)[0] * units.Hartree)
            found["forces"].append(dstrip(system.forces.f)[0].reshape(-1, 3) * units.Hartree / units.Bohr)
            found["virials"].append(dstrip(system.forces.virs)[0] * units.Hartree)
    np.savez(Path(folder) / "results.npz", **found)
    simulation.stop()


if __name__ == "__main__":
    ask(*sys.argv[1:])
