"""Errors of predicted energies, forces and stresses: mean absolute and root mean square, in meV."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from .data import Frame

_SYMMETRIC = np.triu_indices(3)
SHOWN = 20  # kinds of structures in a table for people
OF_KIND = ("energy_bias", "energy_mae", "force_mae", "stress_mae")  # what it tells of each


class Prediction(NamedTuple):
    """What a potential says about one frame; units and signs as in Frame. `stress` is None unless fully periodic."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


def errors(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> dict:
    """Errors over all frames that carry the label; None where no frame does.

    Args:
        frames, predictions: of the same length and order.

    Returns:
        n_frames; energy_bias (meV/atom, the mean with its sign, predicted minus label), energy_mae, energy_rmse
        (meV/atom); energy_total_mae, energy_total_rmse (meV per structure); force_mae, force_rmse (meV/A, over Cartesian
        components); stress_mae, stress_rmse (meV/A^3, over the six independent components); per_species: {symbol:
        {n_atoms, force_mae, force_rmse}}; per_config_type: {config_type: all of the former}.

    Raises:
        ValueError: sequences of different lengths.
    """
    if len(frames) != len(predictions):
        raise ValueError(f"{len(frames)} frames but {len(predictions)} predictions")
    pairs = list(zip(frames, predictions))
    kinds: dict[str, list] = {}
    for frame, prediction in pairs:
        kinds.setdefault(frame.config_type, []).append((frame, prediction))
    labelled = [(f, p) for f, p in pairs if f.forces is not None]
    symbols = np.array([symbol for f, _ in labelled for symbol in f.atoms.symbols])
    forces = _forces(labelled)
    return {
        **_overall(pairs),
        "per_species": {
            str(symbol): {"n_atoms": int((symbols == symbol).sum()), **_pair("force", forces[symbols == symbol])}
            for symbol in sorted(set(symbols))
        },
        "per_config_type": {kind: _overall(kinds[kind]) for kind in sorted(kinds)},
    }


def by_kind(result: dict) -> dict[str, dict]:
    """What `errors` says of each config_type, where there are 2 to SHOWN of them; else nothing, as for files of before."""
    kinds = result.get("per_config_type", {})
    shown = sorted(kinds) if 1 < len(kinds) <= SHOWN else []
    return {kind or "no config_type": kinds[kind] for kind in shown}


def _overall(pairs: list[tuple[Frame, Prediction]]) -> dict:
    energy = [(p.energy - f.energy, len(f.atoms)) for f, p in pairs if f.energy is not None]
    total, n_atoms = np.array(energy, dtype=float).reshape(-1, 2).T
    stress = [(p.stress - f.stress)[_SYMMETRIC] for f, p in pairs if f.stress is not None and p.stress is not None]
    return {
        "n_frames": len(pairs),
        "energy_bias": 1000 * float((total / n_atoms).mean()) if len(total) else None,
        **_pair("energy", total / n_atoms),
        **_pair("energy_total", total),
        **_pair("force", _forces([(f, p) for f, p in pairs if f.forces is not None])),
        **_pair("stress", np.array(stress)),
    }


def _forces(pairs: list[tuple[Frame, Prediction]]) -> np.ndarray:
    """The errors of all forces, (n, 3)."""
    return np.concatenate([np.empty((0, 3)), *(p.forces - f.forces for f, p in pairs)])


def _pair(name: str, difference: np.ndarray) -> dict[str, float | None]:
    if not difference.size:
        return {f"{name}_mae": None, f"{name}_rmse": None}
    return {
        f"{name}_mae": 1000 * float(np.abs(difference).mean()),
        f"{name}_rmse": 1000 * float(np.sqrt((difference**2).mean())),
    }


def describe(result: dict) -> str:
    """One line: "E 3.1 meV/atom, F 85 meV/A, S 2.0 meV/A^3 (MAE)"; terms without labels are left out."""
    parts = [
        f"{symbol} {result[key]:.3g} {unit}"
        for symbol, key, unit in (
            ("E", "energy_mae", "meV/atom"),
            ("F", "force_mae", "meV/A"),
            ("S", "stress_mae", "meV/A^3"),
        )
        if result[key] is not None
    ]
    return ", ".join(parts) + " (MAE)"
