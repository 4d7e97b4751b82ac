"""What EquiCalculator makes of its arguments: potentials, a device, indices; anything else is refused by value."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ase_equinn.potential import Potential
from ase_equinn.potential_committee import Committee, read_potentials
from ase_equinn.uncertainty_spread import Spread


def load_models(model) -> tuple[list[Potential], Spread | None, str | list[str]]:
    """The calculator's own potentials, on the CPU; a committee's calibration; the text (for a list: texts) for `model`.

    Args:
        model: folder, file or shipped name, Potential, or a list of these; a committee's folder or file, or a Committee.
    Raises:
        PotentialFileError: see `Potential.load`.
        TypeError, ValueError: for anything else, an empty list, or a committee in a list.
    """
    if not isinstance(model, list | tuple):
        return _load(model)
    stored, texts = [], []
    for one in model:
        found, spread, text = _load(one)
        if spread is not None:
            raise ValueError(f"a list holds single potentials, and {text} is a committee: give it alone")
        stored += found
        texts.append(text)
    if not stored:
        raise ValueError(f"a committee needs at least one potential, got {model!r}")
    return stored, None, texts


def _load(model) -> tuple[list[Potential], Spread | None, str]:
    if isinstance(model, Potential):
        return [copy.deepcopy(model).cpu()], None, _text(model)
    if isinstance(model, Committee):
        members = [copy.deepcopy(member).cpu() for member in model.members]
        return members, model.spread, f"<Committee of {len(members)}: {', '.join(map(_text, members))}>"
    if isinstance(model, str | Path):
        return *read_potentials(model), str(model)
    raise TypeError(f"model must be a path, a shipped name, a Potential, a list of these or a Committee, got {model!r}")


def _text(potential: Potential) -> str:
    names = "+".join(type(model).__name__ for model in potential.models)
    return f"<Potential {names} for Z = {', '.join(map(str, potential.species))}>"


def one_of(name: str, value, known: Iterable[str]) -> str:
    """`value`, if it is among the known ones."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" means CUDA if there is any, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, asked for {name!r}")
    return device


def atom_indices(indices, n: int) -> np.ndarray:
    """`indices` (negative ones count from the end) or a mask as distinct atoms 0 ... n - 1; None means all."""
    if indices is None:
        return np.arange(n)
    given = np.asarray(indices)
    if given.dtype == bool and given.shape == (n,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"indices must be a list of atoms or a mask of length {n}, got {indices!r}")
    bad = given[(given < -n) | (given >= n)]
    if len(bad):
        raise ValueError(f"index {bad[0]} is not an atom: there are {n}")
    given = given.astype(np.int64) % max(n, 1)
    if len(set(given.tolist())) < len(given):
        raise ValueError(f"an atom is given twice in indices {indices!r}")
    return given
