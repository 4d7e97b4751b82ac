"""Figures of relaxations and dynamics: convergence, conserved energy, temperature, g(r); no pyplot state."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

BLUE, ORANGE, GREEN, GREY = "#2060a0", "#d06010", "#308040", "0.55"


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a log of `md` or `relax`, float64; an empty field is nan."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def radial_distribution(frames: Sequence[Atoms], cutoff: float = 7.0, bins: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """The density of atoms at distance r from an atom over the mean density: 1 for an ideal gas.

        g(r) = V / N^2 <number of ordered pairs with distance in [r, r + dr)> / (4 pi r^2 dr)

    Args:
        frames: periodic structures; images count, so the cutoff may exceed the cell.
        cutoff: A.
        bins: number of intervals.
    Returns:
        Middles of the intervals (bins,) in A, and g (bins,).
    """
    if not len(frames) or not all(frame.pbc.all() and len(frame) for frame in frames):
        raise ValueError(f"g(r) needs at least one structure, periodic in three directions; received {len(frames)}")
    edges = np.linspace(0, cutoff, bins + 1)
    total = np.zeros(bins)
    for frame in frames:
        counts, _ = np.histogram(neighbor_list("d", frame, cutoff), edges)
        total += counts * frame.get_volume() / len(frame) ** 2
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    return (edges[1:] + edges[:-1]) / 2, total / len(frames) / shells


def _figure(rows: int, columns: int, size: tuple[float, float], **kwargs) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", lw=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def plot_relaxation(logs: dict[str, str | Path]) -> Any:
    """Energy above the last one, largest force and largest stress over the steps, one colour a relaxation.

    Args:
        logs: `relax.csv` by name.
    Returns:
        A matplotlib Figure.
    """
    figure, axes = _figure(1, 3, (10.5, 3.5))
    columns = (("energy", "energy above the last (eV)"), ("max_force", "largest force (eV/Å)"))
    columns += (("max_stress_GPa", "largest stress (GPa)"),)
    for (name, path), colour in zip(logs.items(), (BLUE, ORANGE, GREEN, GREY) * len(logs), strict=False):
        log = read_log(path)
        for axis, (column, label) in zip(axes[0], columns, strict=True):
            values = log[column] - log[column][-1] if column == "energy" else log[column]
            shown = values > 0
            axis.semilogy(log["step"][shown], values[shown], color=colour, lw=1.4, marker=".", ms=3, label=name)
            axis.set(xlabel="step", ylabel=label)
    axes[0, 0].legend(frameon=False)
    return figure


def plot_energy(path: str | Path, n_atoms: int) -> Any:
    """Exchange of potential and kinetic energy above, the conserved energy with its drift below, in meV/atom.

    Args:
        path: `md.csv` of a run that conserves energy.
        n_atoms: by which energies are divided.
    Returns:
        A matplotlib Figure.
    """
    log = read_log(path)
    time, scale = log["time_fs"] / 1000, 1000 / n_atoms
    conserved = (log["conserved_energy"] - log["conserved_energy"].mean()) * scale
    if len(time) < 3 or not np.isfinite(conserved).all():
        raise ValueError(f"{path} has no conserved energy to plot ({len(time)} rows)")
    slope, offset = np.polyfit(time, conserved, 1)
    figure, axes = _figure(2, 1, (7, 5.4), sharex=True, height_ratios=[3, 2])
    top, bottom = axes[:, 0]
    for name, colour in (("potential", BLUE), ("kinetic", ORANGE)):
        values = log[f"{name}_energy"] * scale
        top.plot(time, values - values[0], color=colour, lw=1.2, label=name)
    top.plot(time, conserved - conserved[0], color="black", lw=1.2, label="conserved")
    top.set_ylabel("change since start (meV/atom)")
    top.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    bottom.plot(time, conserved, color="black", lw=0.8)
    bottom.plot(time, offset + slope * time, color=ORANGE, lw=1.6, label=f"slope {slope:+.2g} meV/atom/ps")
    bottom.set(xlabel="time (ps)", ylabel="conserved energy\n− mean (meV/atom)")
    bottom.margins(x=0.01, y=0.15)
    bottom.legend(frameon=False, loc="upper right")
    return figure


def plot_temperature(logs: dict[str, str | Path], target: float | None = None) -> Any:
    """Temperature over time, one colour a run, with its mean over the second half.

    Args:
        logs: `md.csv` by name.
        target: K, drawn as a line.
    Returns:
        A matplotlib Figure.
    """
    figure, axes = _figure(1, 1, (7, 3.6))
    axis = axes[0, 0]
    if target is not None:
        axis.axhline(target, color=GREY, lw=1, ls="--", label=f"{target:g} K", zorder=1)
    for (name, path), colour in zip(logs.items(), (BLUE, ORANGE, GREEN, GREY) * len(logs), strict=False):
        log = read_log(path)
        mean = log["temperature"][len(log["step"]) // 2 :].mean()
        label = f"{name}, {mean:.0f} K in the second half"
        axis.plot(log["time_fs"] / 1000, log["temperature"], color=colour, lw=1.2, label=label)
    axis.set(xlabel="time (ps)", ylabel="temperature (K)")
    axis.margins(x=0.01)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def plot_rdf(runs: dict[str, Sequence[Atoms]], reference: Atoms | None = None, cutoff: float = 7.0) -> Any:
    """g(r) of each run, with the neighbour shells of a reference crystal as marks.

    Args:
        runs: frames by name.
        reference: perfect crystal.
        cutoff: A.
    Returns:
        A matplotlib Figure.
    """
    figure, axes = _figure(1, 1, (7, 3.6))
    axis = axes[0, 0]
    axis.axhline(1, color=GREY, lw=0.8, ls="--", zorder=1)
    for (name, frames), colour in zip(runs.items(), (BLUE, ORANGE, GREEN, GREY) * len(runs), strict=False):
        r, g = radial_distribution(frames, cutoff)
        axis.plot(r, g, color=colour, lw=1.4, label=name)
    if reference is not None:
        shells = np.unique(neighbor_list("d", reference, cutoff).round(3))
        label = "crystal at rest"
        axis.vlines(shells, 0, axis.get_ylim()[1], color="black", lw=0.9, ls=":", label=label, zorder=1)
    axis.set(xlabel="r (Å)", ylabel="g(r)", xlim=(0, cutoff))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
