"""Figures of a training run: predictions against labels, and errors over epochs. Figure objects, no pyplot state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from .data import Frame
from .metrics import Prediction, errors
from .potential_file import write_atomic

_SYMMETRIC = np.triu_indices(3)


def plot_parity(sets: dict[str, tuple[Sequence[Frame], Sequence[Prediction]]]) -> Any:
    """Predicted against reference energies per atom, force components and stress components, one colour a set.

    Args:
        sets: (frames, predictions) by name; a panel without labels is left out.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure

    panels = [panel for panel in _panels(sets) if any(len(reference) for _, reference, _ in panel[2])]
    figure = Figure(figsize=(4.6 * max(len(panels), 1), 4.4), layout="constrained")
    found = {name: errors(*pair) for name, pair in sets.items()}
    for k, (quantity, unit, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1)
        every = np.concatenate([values for _, *pair in points for values in pair])
        low, high = every.min(), every.max()
        margin = 0.04 * (high - low) or 1.0
        axes.axline((low, low), slope=1, color="0.6", lw=0.8)
        for name, reference, predicted in points:
            if len(reference):
                mae = found[name][f"{quantity}_mae"]
                axes.plot(reference, predicted, ".", ms=3, alpha=0.6, label=f"{name}: MAE {mae:.3g} m{unit}", rasterized=True)
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
        axes.set_xlabel(f"reference {quantity} ({unit})")
        axes.set_ylabel(f"predicted {quantity} ({unit})")
        axes.legend(fontsize=8)
    return figure


def _panels(sets):
    """(quantity, unit, [(set, reference, predicted)]) of energy per atom, forces and stress."""
    energy, force, stress = [], [], []
    for name, (frames, predictions) in sets.items():
        pairs = list(zip(frames, predictions, strict=True))
        rows = [(f.energy / len(f.atoms), p.energy / len(f.atoms)) for f, p in pairs if f.energy is not None]
        energy.append((name, *np.array(rows).reshape(-1, 2).T))
        rows = [(f.forces.ravel(), p.forces.ravel()) for f, p in pairs if f.forces is not None]
        force.append((name, *(np.concatenate(column) if column else np.empty(0) for column in list(zip(*rows)) or ([], []))))
        rows = [
            (f.stress[_SYMMETRIC], p.stress[_SYMMETRIC])
            for f, p in pairs
            if f.stress is not None and p.stress is not None
        ]
        stress.append((name, *(np.concatenate(column) if column else np.empty(0) for column in list(zip(*rows)) or ([], []))))
    return [("energy", "eV/atom", energy), ("force", "eV/A", force), ("stress", "eV/A^3", stress)]


def plot_learning_curve(rows: Sequence[dict]) -> Any:
    """Validation errors, loss and learning rate over epochs, logarithmic, as a matplotlib Figure; `rows` as in log.csv."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes, losses = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    curves = {
        "valid_energy_mae": "energy (meV/atom)",
        "valid_force_mae": "forces (meV/A)",
        "valid_stress_mae": "stress (meV/A^3)",
    }
    for key, label in curves.items():
        if any(row[key] is not None for row in rows):
            axes.semilogy(epochs, [row[key] for row in rows], label=label)
    axes.set(xlabel="epoch", ylabel="validation MAE")
    axes.legend(fontsize=8)
    losses.semilogy(epochs, [row["train_loss"] for row in rows], label="training (weights of the step)")
    losses.semilogy(epochs, [row["valid_loss"] for row in rows], label="validation (averaged weights)")
    best = min(rows, key=lambda row: row["valid_loss"])
    losses.plot(best["epoch"], best["valid_loss"], "o", mfc="none", color="k", label=f"best: epoch {best['epoch']}")
    losses.set(xlabel="epoch", ylabel="loss")
    rates = losses.twinx()
    rates.semilogy(epochs, [row["learning_rate"] for row in rows], color="0.7", lw=0.8)
    rates.set_ylabel("learning rate", color="0.5")
    losses.legend(fontsize=8)
    return figure


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a PNG, PDF or SVG (by suffix) in one stroke."""
    path = Path(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower() or "png", dpi=140)
    write_atomic(path, content.getvalue())
    return path
