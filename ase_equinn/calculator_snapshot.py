"""What a structure was when it was evaluated: an Atoms object only if somebody asks for one, as that takes its time."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import equal


class Snapshot:
    """Copies of everything that `atoms.copy()` copies.

    Args:
        atoms: left unchanged.
        arrays, info: entries of `atoms.arrays` and `atoms.info` that results depend on, beside cell and pbc.
    """

    def __init__(self, atoms: Atoms, arrays: Iterable[str] = (), info: Iterable[str] = ()):
        self._arrays = {name: values.copy() for name, values in atoms.arrays.items()}
        self._cell, self._pbc, self._displacement = atoms.cell.array.copy(), atoms.pbc.copy(), atoms.get_celldisp()
        self._constraints = copy.deepcopy(atoms.constraints) if atoms.constraints else []
        self._names = tuple(arrays), tuple(info)
        self._info = self._copied(atoms.info)
        self._atoms = None if type(atoms) is Atoms else atoms.copy()  # a class of its own may hold more

    def atoms(self) -> Atoms:
        """The structure, the same object at every call; neither the original nor the snapshot changes with it."""
        if self._atoms is None:
            info = self._copied(self._info)
            self._atoms = Atoms(cell=self._cell, pbc=self._pbc, info=info, celldisp=self._displacement)
            self._atoms.arrays = {name: values.copy() for name, values in self._arrays.items()}
            self._atoms.constraints = self._constraints
        return self._atoms

    def changes(self, atoms: Atoms) -> list[str]:
        """What results depend on and differs in other atoms, compared by value, to the bit."""
        then = self._key(self._arrays, self._info, self._cell, self._pbc)
        now = self._key(atoms.arrays, atoms.info, atoms.cell.array, atoms.pbc)
        return [name for name in then | now if not (name in then and name in now and _same(then[name], now[name]))]

    def _copied(self, info: dict) -> dict:
        return info | {name: copy.deepcopy(info[name]) for name in self._names[1] if name in info}

    def _key(self, arrays: dict, info: dict, cell: np.ndarray, pbc: np.ndarray) -> dict:
        in_arrays, in_info = self._names
        key = {name: arrays[name] for name in in_arrays if name in arrays}
        key |= {f"info[{name!r}]": info[name] for name in in_info if name in info}
        return key | {"cell": cell, "pbc": pbc}


def _same(a, b) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool((a == b).all())
    try:
        return bool(equal(a, b))
    except (ValueError, TypeError):  # values that cannot be compared count as changed
        return False
