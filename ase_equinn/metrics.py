"""Errors of predicted energies, forces and stresses: mean absolute and root mean square, in meV."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from .data import Frame

_SYMMETRIC = np.triu_indices(3)


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
        n_frames; energy_mae, energy_rmse (meV/atom); energy_total_mae, energy_total_rmse (meV per structure);
        force_mae, force_rmse (meV/A, over Cartesian components); stress_mae, stress_rmse (meV/A^3, over the six
        independent components); per_species: {symbol: {n_atoms, force_mae, force_rmse}}.

    Raises:
        ValueError: sequences of different lengths.
    """
    if len(frames) != len(predictions):
        raise ValueError(f"{len(frames)} frames but {len(predictions)} predictions")
    pairs = list(zip(frames, predictions))
    total = np.array([p.energy - f.energy for f, p in pairs if f.energy is not None])
    n_atoms = np.array([len(f.atoms) for f in frames if f.energy is not None])
    stress = [(p.stress - f.stress)[_SYMMETRIC] for f, p in pairs if f.stress is not None and p.stress is not None]
    forces = [p.forces - f.forces for f, p in pairs if f.forces is not None]
    symbols = [f.atoms.symbols for f in frames if f.forces is not None]
    forces = np.concatenate(forces) if forces else np.empty((0, 3))
    symbols = np.concatenate([np.array(list(s)) for s in symbols]) if symbols else np.empty(0, dtype=str)
    return {
        "n_frames": len(frames),
        **_pair("energy", total / n_atoms if len(total) else total),
        **_pair("energy_total", total),
        **_pair("force", forces),
        **_pair("stress", np.array(stress)),
        "per_species": {
            str(symbol): {"n_atoms": int((symbols == symbol).sum()), **_pair("force", forces[symbols == symbol])}
            for symbol in sorted(set(symbols))
        },
    }


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
