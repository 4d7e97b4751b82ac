"""What EquiCalculator makes of its arguments: potentials, a device, indices; anything else is refused by value."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ase_equinn.potential import Potential


def load_models(model) -> tuple[list[Potential], str | list[str]]:
    """The calculator's own potentials, on the CPU, and the text (for a list: texts) that names them.

    Args:
        model: folder, file, shipped name, Potential, or a list of these.
    Raises:
        PotentialFileError: see `Potential.load`.
        TypeError, ValueError: for anything else, or an empty list.
    """
    several = isinstance(model, list | tuple)
    stored, texts = [], []
    for one in model if several else [model]:
        if isinstance(one, Potential):
            names = "+".join(type(m).__name__ for m in one.models)
            stored.append(copy.deepcopy(one).cpu())
            texts.append(f"<Potential {names} for Z = {', '.join(map(str, one.species))}>")
        elif isinstance(one, str | Path):
            stored.append(Potential.load(one))
            texts.append(str(one))
        else:
            raise TypeError(f"model must be a path, a shipped name, a Potential or a list of these, got {one!r}")
    if not stored:
        raise ValueError(f"a committee needs at least one potential, got {model!r}")
    return stored, texts if several else texts[0]


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
