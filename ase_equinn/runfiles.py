"""Files of a run that survive a kill: a log and a trajectory that only grow, a restart file that is replaced whole.

A restart file holds every double exactly (npz) together with the lengths in bytes that the log and the trajectory had
when it was written. Resuming cuts both back to these lengths, so no row is written twice and none is missing.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.io.extxyz import write_extxyz
from ase.io.jsonio import decode, encode

from .potential_file import write_atomic

FORMAT = 1
EXISTING = ("refuse", "resume", "overwrite")


class RunError(RuntimeError):
    """A run that cannot go on: a failed calculator, numbers that are not finite, atoms that fly apart."""


class RunFileError(ValueError):
    """A run file that is missing, damaged, in the way, or of another run."""


class Restart(NamedTuple):
    """What a restart file holds; `state` has the arrays of the integrator or optimizer, `sizes` the bytes per file."""

    atoms: Atoms
    step: int
    settings: dict[str, Any]
    state: dict[str, np.ndarray]
    rng: dict[str, Any] | None
    sizes: dict[str, int]


def as_atoms(structure: Atoms | str | Path) -> Atoms:
    """A copy of the given atoms, or the last structure of any file that ASE reads."""
    if isinstance(structure, Atoms):
        return structure.copy()
    if not Path(structure).is_file():
        raise FileNotFoundError(f"no structure file {str(structure)!r}")
    try:
        return read(structure)
    except Exception as error:
        raise RunFileError(f"ASE cannot read a structure from {str(structure)!r}: {error}") from error


def stress_or_none(atoms: Atoms, **kwargs) -> np.ndarray | None:
    """The stress (3, 3) in eV/A^3, or None where the cell is not periodic or the calculator has none."""
    if not atoms.pbc.all():
        return None
    try:
        return atoms.get_stress(voigt=False, **kwargs)
    except (PropertyNotImplementedError, NotImplementedError):
        return None


def frame_text(atoms: Atoms, **info) -> str:
    """One extxyz frame with energy, forces and (where there is one) stress, `info` on its comment line."""
    frame = atoms.copy()
    frame.info.update(info)
    results = {"forces": atoms.get_forces(apply_constraint=False), "energy": atoms.get_potential_energy()}
    stress = stress_or_none(atoms, apply_constraint=False)
    if stress is not None:
        results["stress"] = stress
    frame.calc = SinglePointCalculator(frame, **results)
    text = io.StringIO()
    write_extxyz(text, [frame])
    return text.getvalue()


def check_finite(atoms: Atoms, when: str) -> None:
    """Raises RunError naming the first atom whose position, momentum or force is not a finite number."""
    for name, values in (
        ("force", atoms.get_forces(apply_constraint=False)),
        ("position", atoms.positions),
        ("momentum", atoms.get_momenta()),
    ):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            i = bad[0]
            raise RunError(f"{name} of atom {i} ({atoms.symbols[i]}) is {values[i]} {when}")
    energy = atoms.get_potential_energy()
    if not np.isfinite(energy):
        raise RunError(f"the energy is {energy} {when}")


def get_memory(owner: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of dotted attributes of an integrator or optimizer."""
    state = {}
    for name in names:
        value = owner
        for part in name.split("."):
            value = getattr(value, part)
        state[name] = value
    return state


def set_memory(owner: Any, state: dict[str, np.ndarray]) -> None:
    """Puts the values of get_memory back; one that the owner does not have is an AttributeError."""
    for name, value in state.items():
        *path, last = name.split(".")
        target = owner
        for part in path:
            target = getattr(target, part)
        getattr(target, last)
        setattr(target, last, value.item() if value.ndim == 0 else value.copy())


class RunFolder:
    """The log `NAME.csv`, trajectory `NAME.xyz` and restart file `NAME.restart.npz` of one run in one folder."""

    def __init__(self, folder: str | Path, name: str, columns: tuple[str, ...], existing: str = "refuse"):
        if existing not in EXISTING:
            raise ValueError(f"existing must be one of {', '.join(EXISTING)}; received {existing!r}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.columns = columns
        self.paths = {"log": self.folder / f"{name}.csv", "trajectory": self.folder / f"{name}.xyz"}
        self.restart_path = self.folder / f"{name}.restart.npz"
        self._files: dict[str, Any] = {}
        found = [path for path in (*self.paths.values(), self.restart_path) if path.exists()]
        if found and existing == "refuse":
            raise RunFileError(f"{found[0]} exists; resume or overwrite that run, or choose another folder")
        self.restart = None
        if existing == "resume" and self.restart_path.exists():
            self.restart = load_restart(self.restart_path)

    def open(self) -> None:
        """Opens log and trajectory: cut back to the restart file's lengths, or empty where there is none."""
        if self.restart is None:
            self.restart_path.unlink(missing_ok=True)
        for key, path in self.paths.items():
            size = self.restart.sizes[key] if self.restart else 0
            if self.restart:
                have = path.stat().st_size if path.exists() else 0
                if have < size:
                    raise RunFileError(f"{path} has {have} bytes, but {self.restart_path} was written after {size}")
                os.truncate(path, size)
            self._files[key] = open(path, "ab" if self.restart else "wb")
        if self.restart is None:
            self._append("log", ",".join(self.columns) + "\n")

    def _append(self, key: str, text: str) -> None:
        self._files[key].write(text.encode())

    def row(self, values: dict[str, float | int | None]) -> None:
        """One line of the log; floats with all their digits, None as an empty field."""
        cells = ["" if values[name] is None else repr(np.asarray(values[name]).item()) for name in self.columns]
        self._append("log", ",".join(cells) + "\n")
        self._files["log"].flush()

    def frame(self, atoms: Atoms, step: int, **info) -> None:
        """One frame of the trajectory."""
        self._append("trajectory", frame_text(atoms, step=step, **info))
        self._files["trajectory"].flush()

    def save(self, atoms: Atoms, step: int, settings: dict, state: dict[str, Any], rng: dict | None = None) -> None:
        """Makes log and trajectory durable, then replaces the restart file in one stroke."""
        sizes = {}
        for key, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[key] = file.tell()
        save_restart(self.restart_path, Restart(atoms, step, settings, state, rng, sizes))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def check_same_atoms(structure: Atoms, folder: RunFolder) -> None:
    """Raises RunFileError unless the structure has the elements of the run to resume, in the same order."""
    stored = folder.restart.atoms
    if not np.array_equal(structure.numbers, stored.numbers):
        raise RunFileError(f"{folder.restart_path} holds {stored.symbols}, the structure is {structure.symbols}")


def save_restart(path: str | Path, restart: Restart) -> None:
    """Writes a restart file in one stroke: the one before it stays whole until this one is complete."""
    atoms = restart.atoms
    header = {
        "format": FORMAT,
        "step": restart.step,
        "settings": restart.settings,
        "rng": restart.rng,
        "sizes": restart.sizes,
        "constraints": [constraint.todict() for constraint in atoms.constraints],
        "info": atoms.info,
    }
    try:
        text = encode(header)
    except (TypeError, ValueError) as error:
        raise RunFileError(f"a restart file cannot hold the structure's info or constraints: {error}") from error
    arrays = {f"atoms.{name}": values for name, values in atoms.arrays.items()}
    arrays |= {f"state.{name}": np.asarray(value) for name, value in restart.state.items()}
    arrays |= {"cell": np.array(atoms.cell), "pbc": atoms.pbc, "celldisp": atoms.get_celldisp()}
    objects = [name for name, values in arrays.items() if values.dtype == object]
    if objects:
        raise RunFileError(f"the array {objects[0]} holds Python objects; a restart file holds numbers and text only")
    content = io.BytesIO()
    np.savez(content, header=np.array(text), **arrays)
    write_atomic(Path(path), content.getvalue())


def load_restart(path: str | Path) -> Restart:
    """Reads a restart file to the last bit; nothing in it is executed.

    Raises:
        RunFileError: the file is missing, damaged, or of a newer format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = decode(str(arrays.pop("header")), always_array=False)
        version = header["format"]
        if version != FORMAT:
            raise RunFileError(f"restart file {path} has format {version}; this version reads {FORMAT}")
        return _restart(header, arrays)
    except (OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise RunFileError(f"cannot read restart file {path}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        if isinstance(error, RunFileError):
            raise
        raise RunFileError(f"cannot read restart file {path}: {error}") from error


def _restart(header: dict, arrays: dict[str, np.ndarray]) -> Restart:
    from ase.constraints import dict2constraint

    atoms = Atoms(
        numbers=arrays["atoms.numbers"],
        positions=arrays["atoms.positions"],
        cell=arrays["cell"],
        pbc=arrays["pbc"],
        celldisp=arrays["celldisp"],
        info=header["info"],
    )
    state = {}
    for name, values in arrays.items():
        kind, _, key = name.partition(".")
        if kind == "atoms" and key not in ("numbers", "positions"):
            atoms.set_array(key, values)
        elif kind == "state":
            state[key] = values
    atoms.set_constraint([dict2constraint(item) for item in header["constraints"]])
    return Restart(atoms, header["step"], header["settings"], state, header["rng"], header["sizes"])
