"""Training data: structures with energies, forces and stresses from extxyz files.

Labels are eV, eV/A and eV/A^3; stress has ASE's sign (dE/dstrain / V: positive under tension). A virial label has the
opposite sign, virial = -V * stress (eV), as quantum-chemistry and fitting codes write it, and is turned into a stress.
A frame that lacks a label has None there and takes no part in that term of the loss or of the errors.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from .potential_file import write_atomic


class Keys(NamedTuple):
    """Names of the labels in a file. Defaults: REF_energy, REF_forces, REF_stress, REF_virial or REF_virials.

    Where no frame of a file has the default name, the plain names that ASE's reader understands (energy, forces,
    stress, virial) are taken instead; a name given by the user is looked up as it is.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


DEFAULT_NAMES = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
    "virial": ("REF_virial", "REF_virials", "virial", "virials"),
}


class Frame(NamedTuple):
    """One labelled structure.

    `atoms` carries geometry and species only. `energy` eV, `forces` (n, 3) eV/A, `stress` (3, 3) eV/A^3 in ASE's sign,
    None where the file has no label. `weight` multiplies the frame's terms in the loss. `origin` is "file.xyz:index".
    """

    atoms: Atoms
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    config_type: str = ""
    weight: float = 1.0
    origin: str = ""


class FrameSet(NamedTuple):
    """The frames of some files, the label names that were found ({file: {term: name}}) and remarks for the user."""

    frames: list[Frame]
    names: dict[str, dict[str, str]]
    notes: list[str]


def read_frames(
    files: str | Path | Sequence[str | Path], keys: Keys = Keys(), weights: dict[str, float] | None = None
) -> FrameSet:
    """Every frame of one or more ASE-readable files, in file order, with its labels checked.

    Args:
        files: a file or several; extended XYZ or anything that ase.io reads.
        keys: names of the labels.
        weights: factor per config_type (info["config_type"]), 1 where not given.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: a file without structures or labels, a label with a wrong shape or a non-finite value, with
            file, frame and value; a weight that is negative or names a config_type that no frame has.
    """
    paths = [files] if isinstance(files, (str, Path)) else list(files)
    frames, names, notes = [], {}, []
    for path in map(Path, paths):
        found = read_structures(path)
        names[str(path)] = chosen = _choose_names(path, found, keys, notes)
        frames += [_frame(atoms, chosen, f"{path}:{i}", notes) for i, atoms in enumerate(found)]
    return FrameSet(apply_weights(frames, weights or {}), names, notes)


def apply_weights(frames: list[Frame], weights: dict[str, float]) -> list[Frame]:
    """The frames with the weight of their config_type (1 where `weights` has none)."""
    for name, weight in weights.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"config_type_weights: weight of {name!r} must be finite and >= 0, got {weight}")
    return [frame._replace(weight=float(weights.get(frame.config_type, 1.0))) for frame in frames]


def read_structures(path: Path) -> list[Atoms]:
    """Every frame of a file as ASE reads it, labelled or not.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: a file that ASE cannot read, or without structures.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist")
    try:
        found = read(path, ":")
    except Exception as error:  # ase.io raises many types; the file's name is what the user needs
        raise ValueError(f"{path}: ASE cannot read this file: {type(error).__name__}: {error}") from error
    if not found:
        raise ValueError(f"{path}: the file holds no structure")
    return found


def _label(atoms: Atoms, name: str):
    """The value called `name`: from info, arrays, or the calculator to which ASE's reader moves the plain names."""
    for store in (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc else {}):
        if name in store:
            return store[name]
    return None


def _choose_names(path: Path, found: list[Atoms], keys: Keys, notes: list[str]) -> dict[str, str]:
    chosen = {}
    for term, own in zip(Keys._fields, keys):
        candidates = (own,) if own else DEFAULT_NAMES[term]
        present = [name for name in candidates if any(_label(atoms, name) is not None for atoms in found)]
        if present:
            chosen[term] = present[0]
        elif own:
            raise ValueError(f"{path}: no frame has the {term} key {own!r}; {_available(found)}")
        if len(present) > 1:
            notes.append(f"{path}: both {present[0]!r} and {present[1]!r} are present; {present[0]!r} is used")
    if "energy" not in chosen and "forces" not in chosen:
        raise ValueError(
            f"{path}: no frame has energies or forces under 'REF_energy', 'REF_forces', 'energy' or 'forces'; "
            f"{_available(found)}. Name them in the config: data: {{keys: {{energy: ..., forces: ...}}}}"
        )
    if "stress" in chosen and "virial" in chosen:
        notes.append(f"{path}: both {chosen['stress']!r} and {chosen['virial']!r} are present; the stress is used")
    plain = [name for name in chosen.values() if name in Keys._fields]
    if plain and not any(keys):
        notes.append(f"{path}: no REF_ label; the plain names {', '.join(plain)} are taken as the reference labels")
    return chosen


def _available(found: list[Atoms]) -> str:
    info = sorted({key for atoms in found for key in atoms.info})
    arrays = sorted({key for atoms in found for key in atoms.arrays} - {"numbers", "positions"})
    results = sorted({key for atoms in found if atoms.calc for key in atoms.calc.results})
    return f"the file has, per frame: {info + results}, per atom: {arrays}"


def _frame(atoms: Atoms, names: dict[str, str], origin: str, notes: list[str]) -> Frame:
    values = {term: _label(atoms, name) for term, name in names.items()}
    energy, forces, stress = values.get("energy"), values.get("forces"), values.get("stress")
    if not len(atoms):
        raise ValueError(f"{origin}: the frame holds no atoms")
    if energy is not None:
        energy = float(_checked(energy, (), names["energy"], origin))
    if forces is not None:
        forces = _checked(forces, (len(atoms), 3), names["forces"], origin)
    if stress is not None:
        stress = _tensor(stress, names["stress"], origin)
    elif values.get("virial") is not None:
        if not atoms.cell.volume > 0:
            raise ValueError(f"{origin}: a virial needs a cell with a volume, got {atoms.cell.volume} A^3")
        stress = -_tensor(values["virial"], names["virial"], origin) / atoms.cell.volume
    if stress is not None and not atoms.pbc.all():
        notes.append(f"{origin}: the stress of a structure that is not periodic in all directions is left out")
        stress = None
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return Frame(bare, energy, forces, stress, str(atoms.info.get("config_type", "")), 1.0, origin)


def _array(value, name: str, origin: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{origin}: {name} must be numbers, got {value!r}") from None


def _checked(value, shape: tuple, name: str, origin: str) -> np.ndarray:
    array = _array(value, name, origin)
    if shape == () and array.size == 1:
        array = array.reshape(())
    if array.shape != shape:
        raise ValueError(f"{origin}: {name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{origin}: {name} holds {array[~np.isfinite(array)].flat[0]}; drop the label or the frame")
    return array


def _tensor(value, name: str, origin: str) -> np.ndarray:
    """A symmetric 3x3 tensor from 3x3, 9 or 6 (Voigt: xx yy zz yz xz xy) numbers."""
    array = _array(value, name, origin)
    if array.shape == (6,):
        array = voigt_6_to_full_3x3_stress(array)
    array = _checked(array.reshape(3, 3) if array.size == 9 else array, (3, 3), name, origin)
    if np.abs(array - array.T).max() > 1e-3 * np.abs(array).max() + 1e-8:
        raise ValueError(f"{origin}: {name} must be a symmetric tensor, got {array.tolist()}")
    return 0.5 * (array + array.T)


def is_isolated_atom(frame: Frame) -> bool:
    """True for a frame that gives an isolated-atom energy: one atom, no periodicity or config_type IsolatedAtom."""
    if len(frame.atoms) != 1 or frame.energy is None:
        return False
    return not frame.atoms.pbc.any() or frame.config_type.lower().replace("_", "") == "isolatedatom"


def split(frames: list[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """(train, valid): a random fraction, at least one frame, chosen by `seed`; file order is kept in both parts."""
    n_valid = max(1, round(fraction * len(frames)))
    if n_valid >= len(frames):
        raise ValueError(f"data.valid_fraction: {fraction} of {len(frames)} frames leaves none to train on")
    chosen = set(np.random.default_rng(seed).permutation(len(frames))[:n_valid].tolist())
    return (
        [frame for i, frame in enumerate(frames) if i not in chosen],
        [frame for i, frame in enumerate(frames) if i in chosen],
    )


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def write_frames(path: str | Path, frames: Sequence[Frame], predictions: Sequence | None = None) -> None:
    """Writes extxyz: labels as REF_energy, REF_forces, REF_stress; predictions as energy, forces, stress.

    Args:
        path: the file, replaced as a whole.
        frames: structures with their labels.
        predictions: one per frame, with `energy`, `forces` and `stress` (3, 3) or None, units as in Frame.
    """
    images = []
    for i, frame in enumerate(frames):
        atoms = frame.atoms.copy()
        if frame.config_type:
            atoms.info["config_type"] = frame.config_type
        if frame.energy is not None:
            atoms.info["REF_energy"] = frame.energy
        if frame.stress is not None:
            atoms.info["REF_stress"] = frame.stress.tolist()
        if frame.forces is not None:
            atoms.arrays["REF_forces"] = frame.forces
        if predictions is not None:
            results = {"energy": float(predictions[i].energy), "forces": np.asarray(predictions[i].forces)}
            if predictions[i].stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(predictions[i].stress))
            atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    text = io.StringIO()
    write(text, images, format="extxyz")
    write_atomic(Path(path), text.getvalue().encode())
