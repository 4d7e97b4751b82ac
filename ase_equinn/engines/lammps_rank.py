"""What each MPI rank does for `run_script` and `evaluate`: python -m ase_equinn.engines.lammps_rank TASK.json."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

MARK = re.compile(r"^[ \t]*pair_style[ \t]+equinn\b(.*)$", re.MULTILINE)


def main(task: Path) -> None:
    """Runs the task that the file describes; an error on any rank ends all of them."""
    from mpi4py import MPI

    from .lammps_abort import ending_all_ranks

    with ending_all_ranks(MPI.COMM_WORLD):
        options = json.loads(task.read_text())
        {"script": script, "evaluate": evaluate}[options.pop("task")](**options)


def script(script: str, potential: str, elements: list[str] | None, device: str, dtype: str) -> None:
    """A LAMMPS input whose line `pair_style equinn` stands for the potential.

    Raises:
        ValueError: there is no such line, or more than one.
    """
    from mpi4py import MPI

    head, tail = split(Path(script).read_text(), script)
    from lammps import lammps

    from .lammps_attach import attach

    lmp = lammps()
    with tempfile.TemporaryDirectory() as folder:  # LAMMPS reads on the first rank, and tells the others
        lmp.file(_part(MPI.COMM_WORLD, folder, "head.lmp", head))
        attached = attach(lmp, potential, elements, device=device, dtype=dtype)
        if MPI.COMM_WORLD.rank == 0:
            print(attached.summary(), flush=True)
        lmp.file(_part(MPI.COMM_WORLD, folder, "tail.lmp", tail))
    lmp.close()


def split(text: str, name: str) -> tuple[str, str]:
    """What comes before and after the line `pair_style equinn`."""
    found = list(MARK.finditer(text))
    if len(found) != 1:
        raise ValueError(f"{name} must have one line `pair_style equinn`, it has {len(found)}")
    rest = found[0].group(1).split("#")[0].strip()
    if rest:
        raise ValueError(f"{name}: `pair_style equinn` stands alone, found {rest!r} after it")
    return text[: found[0].start()], text[found[0].end() :]


def _part(comm, folder: str, name: str, text: str) -> str:
    path = Path(comm.bcast(folder)) / name
    if comm.rank == 0:
        path.write_text(text + "\n")
    return str(path)


def evaluate(folder: str, potential: str, dtype: str) -> None:
    """Energy, forces and virial stress of the box that `launch.evaluate` has put into structure.npz."""
    from mpi4py import MPI

    from lammps import lammps

    from .lammps_attach import attach

    with np.load(Path(folder) / "structure.npz") as file:
        box, numbers, positions, symbols = file["box"], file["numbers"], file["positions"], file["symbols"].tolist()
        pbc = file["pbc"]
    types = sorted(set(numbers.tolist()))
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    lmp.commands_string(f"""
        units metal
        atom_modify map array
        boundary {" ".join("p" if periodic else "f" for periodic in pbc)}
        region box prism {" ".join(map(repr, box.tolist()))}
        create_box {len(types)} box
        mass * 1.0
    """)
    kinds = [types.index(number) + 1 for number in numbers.tolist()]
    lmp.create_atoms(len(numbers), list(range(1, len(numbers) + 1)), kinds, positions.ravel().tolist())
    if lmp.get_natoms() != len(numbers):
        raise RuntimeError(f"LAMMPS took {lmp.get_natoms()} of {len(numbers)} atoms into its box")
    attach(lmp, potential, symbols, device="cpu", dtype=dtype)
    lmp.commands_string("compute virial all pressure NULL virial\ncompute each all pe/atom fix\nthermo_style custom step pe c_virial[*]\nrun 0")
    pressure = np.array(lmp.numpy.extract_compute("virial", 0, 1))
    results = {
        "energy": lmp.get_thermo("pe"),
        "forces": np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3),
        "positions": np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3),
        "stress": -pressure / lmp.extract_global("nktv2p"),
        "energies": np.array(lmp.gather("c_each", 1, 1)),
        "ghosts": MPI.COMM_WORLD.allreduce(lmp.extract_setting("nghost")),
    }
    if MPI.COMM_WORLD.rank == 0:
        np.savez(Path(folder) / "results.npz", **results)
    lmp.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
