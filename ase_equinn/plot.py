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

    found = {name: errors(*pair) for name, pair in sets.items()}
    panels = {quantity: {name: _points(quantity, *pair) for name, pair in sets.items()} for quantity in _QUANTITIES}
    panels = {quantity: points for quantity, points in panels.items() if any(x.size for x in points.values())}
    figure = Figure(figsize=(4.6 * max(len(panels), 1), 4.4), layout="constrained")
    for k, (quantity, points) in enumerate(panels.items()):
        unit = _QUANTITIES[quantity][1]
        axes = figure.add_subplot(1, len(panels), k + 1)
        low, high = _extent(points)
        axes.axline((low, low), slope=1, color="0.6", lw=0.8)
        for name, (reference, predicted) in points.items():
            if len(reference):
                label = f"{name}: MAE {found[name][f'{quantity}_mae']:.3g} m{unit}"
                axes.plot(reference, predicted, ".", ms=3, alpha=0.6, label=label, rasterized=True)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel=f"reference {quantity} ({unit})", ylabel=f"predicted {quantity} ({unit})")
        axes.legend(fontsize=8)
    return figure


_QUANTITIES = {  # name: (attribute of Frame and Prediction, unit, the numbers shown)
    "energy": ("energy", "eV/atom", lambda x, n: [x.energy / n]),
    "force": ("forces", "eV/A", lambda x, n: x.forces.ravel()),
    "stress": ("stress", "eV/A^3", lambda x, n: x.stress[_SYMMETRIC]),
}


def _points(quantity: str, frames: Sequence[Frame], predictions: Sequence[Prediction]) -> np.ndarray:
    """(2, k): reference and predicted numbers of the frames that have both."""
    attribute, _, numbers = _QUANTITIES[quantity]
    columns = [
        [numbers(frame, len(frame.atoms)), numbers(prediction, len(frame.atoms))]
        for frame, prediction in zip(frames, predictions, strict=True)
        if getattr(frame, attribute) is not None and getattr(prediction, attribute) is not None
    ]
    return np.concatenate(columns, axis=1) if columns else np.empty((2, 0))


def _extent(points: dict[str, np.ndarray]) -> tuple[float, float]:
    every = np.concatenate([x.ravel() for x in points.values()])
    margin = 0.04 * float(np.ptp(every)) or 1.0
    return float(every.min()) - margin, float(every.max()) + margin


def plot_learning_curve(rows: Sequence[dict]) -> Any:
    """Validation errors, loss and learning rate over epochs, as a matplotlib Figure; `rows` as in log.csv."""
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
