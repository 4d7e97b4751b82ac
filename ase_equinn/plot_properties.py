"""Figure of a crystal's properties: energy over volume, phonon bands, g(r); no pyplot state."""

from __future__ import annotations

from typing import Any

import numpy as np

from .plot_md import BLUE, GREEN, GREY, ORANGE
from .properties import Properties
from .properties_phonons import Phonons


def plot_properties(found: Properties) -> Any:
    """Energy and pressure over volume; the phonon bands and the g(r) of each run, where there are any.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure

    runs = [run for run in found.dynamics if run.rdf is not None]
    widths = [3.6] + [5.4] * bool(found.phonons) + [4.2] * bool(runs)
    figure = Figure(figsize=(sum(widths), 3.8), layout="constrained")
    axes = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    _volume(axes[0], found)
    if found.phonons:
        _bands(axes[1], found.phonons)
    if runs:
        _rdf(axes[-1], runs)
    figure.suptitle(found.name)
    return figure


def _volume(axis, found: Properties) -> None:
    eos, n = found.lattice.eos, len(found.lattice.atoms)
    axis.plot(eos.volumes / n, (eos.energies - eos.energy) * 1000 / n, "o-", ms=3, lw=1.2, color=BLUE)
    axis.axvline(found.lattice.volume, color=GREY, lw=0.8, ls="--")
    axis.set(xlabel="volume (Å³/atom)", title=f"B {found.lattice.bulk_modulus:.1f} GPa")
    axis.set_ylabel("energy − lowest (meV/atom)", color=BLUE)
    if eos.pressures is not None:
        twin = axis.twinx()
        twin.spines["top"].set_visible(False)
        twin.axhline(0, color=GREY, lw=0.5)
        twin.plot(eos.volumes / n, eos.pressures, "s-", ms=3, lw=1.2, color=ORANGE)
        twin.set_ylabel("pressure (GPa)", color=ORANGE)


def _bands(axis, waves: Phonons) -> None:
    axis.plot(waves.distances, waves.frequencies, color=BLUE, lw=1.2)
    names: dict[float, list[str]] = {}
    for place, name in waves.labels:
        names.setdefault(round(place, 9), []).append("Γ" if name == "G" else name)
    axis.set_xticks(list(names), ["|".join(dict.fromkeys(found)) for found in names.values()])
    axis.grid(axis="x", color="0.85", lw=0.8)
    axis.axhline(0, color=GREY, lw=0.8)
    ends = waves.distances[[0, -1]]
    axis.set(xlim=ends, ylabel="frequency (THz)", title=f"phonons, {waves.n_atoms} atoms")
    if not waves.imaginary:
        axis.set_ylim(bottom=0)
    else:
        axis.fill_between(ends, waves.frequencies.min(), 0, color=ORANGE, alpha=0.15, lw=0)


def _rdf(axis, runs) -> None:
    axis.axhline(1, color=GREY, lw=0.8, ls="--")
    for run, colour in zip(runs, (BLUE, ORANGE, GREEN) * len(runs), strict=False):
        r, g = run.rdf
        axis.plot(r, g, color=colour, lw=1.4, label=f"{run.state}, {run.temperature:g} K")
    axis.set(xlabel="r (Å)", ylabel="g(r)", xlim=(0, np.ceil(r[-1])), title="radial distribution")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
