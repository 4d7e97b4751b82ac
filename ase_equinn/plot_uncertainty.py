"""Whether uncertainties can be trusted: predicted against actual errors of forces, as a matplotlib Figure."""

from __future__ import annotations

from typing import Any


def plot_reliability(judged: dict[str, dict]) -> Any:
    """Two panels: root mean square errors in bins by sigma, and the part of errors within so many sigma.

    Args:
        judged: {name of a set: what uncertainty_fit.judge says of it}.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    bins, coverage = figure.subplots(1, 2)
    every = [row[key] for found in judged.values() for row in found["bins"] for key in ("sigma", "error") if row[key] > 0]
    least = max(min(every), 1e-4 * max(every))  # by symmetry errors may vanish
    for name, found in judged.items():
        correlation = found["rank_correlation"]
        label = name if correlation is None else f"{name}: rank correlation {correlation:.2f}"
        x, y = ([max(row[key], least) for row in found["bins"]] for key in ("sigma", "error"))
        bins.loglog(x, y, "o-", label=label)
        sigmas, fractions = ([row[key] for row in found["coverage"]] for key in ("sigmas", "fraction"))
        coverage.plot(sigmas, fractions, "o-", label=name)
    bins.axline((least, least), (max(every), max(every)), color="0.6", lw=0.8)
    bins.set(xlabel="predicted rms force error (eV/A)", ylabel="actual rms force error (eV/A)")
    rows = next(iter(judged.values()))["coverage"]
    coverage.plot([row["sigmas"] for row in rows], [row["normal"] for row in rows], "k_", ms=16, label="normal errors")
    coverage.set(xlabel="k", ylabel="force errors within k sigma", ylim=(0, 1.03), xticks=[row["sigmas"] for row in rows])
    bins.legend(fontsize=8)
    coverage.legend(fontsize=8)
    return figure
