"""LAMMPS under MPI, started from one process: a script for a user, one structure for a comparison."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..neighbors import complete_cell

_RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # set by mpirun


class LammpsError(RuntimeError):
    """A LAMMPS run that failed; the message is what its ranks printed."""


def run_script(
    script: str | Path,
    potential: str | Path,
    elements: Sequence[str] | None = None,
    *,
    n_ranks: int = 1,
    device: str = "auto",
    dtype: str = "float32",
) -> int:
    """Runs a LAMMPS input whose line `pair_style equinn` stands for the potential; returns the exit status.

    Args:
        script: an input in `units metal`. The line comes after the box exists; `neighbor`, `neigh_modify` and
            `comm_modify` come after it, or not at all.
        potential: folder, file or shipped name.
        elements: of the atom types 1, 2, ...; None: those whose masses the types have.
        n_ranks: processes to start. Under mpirun this process is one of them: 1.
        device, dtype: see `attach`.

    Raises:
        ValueError: no such script or potential, a script without the line; ranks to be started by a rank.
        ModuleNotFoundError: lammps or mpi4py is not installed.
    """
    from ..potential_find import find_potential
    from .lammps_rank import main, split

    check_installed()
    if not Path(script).is_file():
        raise FileNotFoundError(f"no LAMMPS input {str(script)!r}")
    split(Path(script).read_text(), str(script))
    find_potential(potential)
    under_mpi = any(name in os.environ for name in _RANK)
    if under_mpi and n_ranks > 1:
        raise ValueError(f"this is a rank of mpirun already, it cannot start {n_ranks} more: leave out the number")
    elements = None if elements is None else list(elements)
    task = dict(
        task="script", script=str(script), potential=str(potential), elements=elements, device=device, dtype=dtype
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        if under_mpi:
            main(path)
            return 0
        return subprocess.run(mpi_command(n_ranks, path), env=environment(n_ranks), check=False).returncode


def evaluate(
    potential: str | Path, atoms, n_ranks: int = 1, *, dtype: str = "float64", timeout: float | None = None
) -> dict:
    """Energy, forces and virial stress as LAMMPS has them on this many ranks, in ASE's units, order and orientation.

    Args:
        potential: folder, file or shipped name.
        atoms: ase.Atoms with any cell and pbc.
        n_ranks: MPI processes.
        dtype: of the network.
        timeout: seconds; None waits for ever.

    Returns:
        dict(energy: eV, energies: (n,) eV, forces: (n, 3) eV/A, stress: (6,) eV/A^3 (None unless the structure is
        periodic in all directions), positions: (n, 3) A, where LAMMPS had the atoms).

    Raises:
        LammpsError: the run failed or took too long, with what it printed.
    """
    check_installed()
    from ..potential_find import find_potential

    rotation, box, positions, origin = _lammps_box(atoms)
    with tempfile.TemporaryDirectory() as folder:
        numbers = np.asarray(atoms.numbers)
        symbols = [atoms.symbols[int(np.flatnonzero(numbers == z)[0])] for z in sorted(set(numbers.tolist()))]
        path = Path(folder) / "task.json"
        np.savez(Path(folder) / "structure.npz", box=box, numbers=numbers, positions=positions, symbols=symbols, pbc=atoms.pbc)
        path.write_text(
            json.dumps(dict(task="evaluate", folder=folder, potential=str(find_potential(potential)), dtype=dtype))
        )
        _run(mpi_command(n_ranks, path), n_ranks, timeout)
        with np.load(Path(folder) / "results.npz") as file:
            found = {name: file[name] for name in file.files}
    stress = _rotated_back(found["stress"], rotation) if atoms.pbc.all() else None
    return dict(
        energy=float(found["energy"]),
        energies=found["energies"],
        forces=found["forces"] @ rotation.T,
        stress=stress,
        positions=(found["positions"] + origin) @ rotation.T,
    )


def check_installed() -> None:
    """Raises ModuleNotFoundError unless lammps and mpi4py are there; neither is imported."""
    for name in ("lammps", "mpi4py"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def mpi_command(n_ranks: int, task: Path) -> list[str]:
    """The mpiexec of this environment (the one that fits the wheel), else the one on the path."""
    own = Path(sys.executable).parent / "mpiexec"
    launcher = str(own) if own.exists() else shutil.which("mpiexec")
    if launcher is None:
        raise FileNotFoundError(f"no mpiexec beside {sys.executable} or on the path: pip install mpich")
    return [launcher, "-n", str(n_ranks), sys.executable, "-m", "ase_equinn.engines.lammps_rank", str(task)]


def environment(n_ranks: int) -> dict[str, str]:
    """This process's environment, where ranks share the cores instead of each taking all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {"OMP_NUM_THREADS": str(max(1, cores // n_ranks)), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**shared, **os.environ}


def _run(command: list[str], n_ranks: int, timeout: float | None) -> None:
    try:
        done = subprocess.run(
            command, env=environment(n_ranks), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise LammpsError(f"LAMMPS on {n_ranks} ranks took longer than {timeout} s") from None
    if done.returncode:
        raise LammpsError(f"LAMMPS on {n_ranks} ranks failed: {(done.stderr or done.stdout).strip()}")


def _lammps_box(atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The structure as LAMMPS wants it: a lower triangular cell that starts at the origin.

    Returns:
        rotation (3, 3), which takes positions into LAMMPS's frame from the right; xlo xhi ylo yhi zlo zhi xy xz yz;
        positions in the box; and what was taken off them after the rotation. A direction without periodicity is as long
        as its atoms need.
    """
    cell = complete_cell(atoms.cell.array, atoms.pbc)
    rotation, upper = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(upper))
    rotation, lower = rotation * signs, (upper * signs[:, None]).T
    positions = atoms.positions @ rotation
    scaled = positions @ np.linalg.inv(lower)
    free = ~np.asarray(atoms.pbc, dtype=bool)
    low = np.where(free, scaled.min(0) - 1.0, 0.0)
    lower[free] *= (np.ptp(scaled, axis=0) + 2.0)[free, None]
    origin = low @ (cell @ rotation)
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = lower
    return rotation, np.array([0, xx, 0, yy, 0, zz, xy, xz, yz]), positions - origin, origin


def _rotated_back(stress: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """xx yy zz xy xz yz in LAMMPS's frame to xx yy zz yz xz xy in the structure's."""
    xx, yy, zz, xy, xz, yz = stress
    full = rotation @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ rotation.T
    return full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
