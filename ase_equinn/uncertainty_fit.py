"""Centres for a training set, what makes distances or a committee's spread errors of forces, and how good that is."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import chi2, spearmanr
from torch import Tensor

from .uncertainty import Scale
from .uncertainty_spread import Spread

FLOOR = 0.02  # of the validation set's root mean square error: smaller errors, as by symmetry, are not resolved
_STARTS = (0.02, 0.1, 0.4)  # for the floor, in the same unit
_NARROWEST = 1e-2  # the least width of a descriptor, in root mean squares of all widths: no division by almost nothing
_ROUNDS = 20  # of k-means
_MOST_ATOMS = 50_000  # of an element, that centres are made from: a random part of larger sets
_FEWEST = 50  # atoms of an element for a factor of its own
_POWERS = (0.5, 4.0)


def cluster(x: Tensor, n_centres: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """At most n_centres centres (n_centres, k) of the atoms x (n, k) by k-means, and their standard deviations (k,).

    Raises:
        ValueError: no atoms.
    """
    if not len(x):
        raise ValueError("no atoms to make centres from")
    rng = np.random.default_rng(seed)
    x = x.double()
    if len(x) > _MOST_ATOMS:
        x = x[torch.from_numpy(np.sort(rng.permutation(len(x))[:_MOST_ATOMS]))]
    widths = x.std(0, correction=0)
    widths = widths.clamp(min=max(_NARROWEST * widths.square().mean().sqrt().item(), 1e-6))
    middle = x.mean(0)
    y = (x - middle) / widths
    centres = y[torch.from_numpy(np.sort(rng.permutation(len(y))[:n_centres]))]
    for _ in range(_ROUNDS):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in y.split(4096)])
        count = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, y)
        centres = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], centres)
    return middle + centres * widths, widths


def fit_scale(numbers: np.ndarray, distances: np.ndarray, errors: np.ndarray, species: tuple[int, ...]) -> Scale:
    """The scale of greatest likelihood for errors of three normal components with sigma_i^2 / 3 each.

    Floor and power are those of all atoms; so is the factor of an element with few atoms in the validation set.

    Args:
        numbers: (n,).
        distances: (n,).
        errors: (n,) |F_i - F_i(reference)|, eV/A.
        species: that shall have a factor.

    Raises:
        ValueError: no errors, or none but zeros.
    """
    rms = math.sqrt((errors**2).mean()) if len(errors) else 0.0
    if not rms > 0:
        raise ValueError(f"a scale cannot be fitted to {len(errors)} errors with the root mean square {rms} eV/A")
    logs = np.log(np.maximum(distances, 1e-9))
    middle, least = 0.5 * math.log((distances**2).mean() + 1e-18), FLOOR * rms  # where sigma is the level

    def loss(level: float, power: float, log_floor: float, some=slice(None)) -> float:
        variance = np.exp(2 * log_floor) + np.exp(2 * (level + power * (logs[some] - middle)))
        return float((1.5 * np.log(variance) + 1.5 * (errors[some] ** 2 + least**2) / variance).mean())

    levels = math.log(least) - 10, math.log(rms) + 10
    bounds = [levels, _POWERS, (math.log(least), math.log(rms))]
    tries = [
        minimize(lambda p: loss(*p), [math.log(rms), power, math.log(start * rms)], method="Nelder-Mead", bounds=bounds)
        for start in _STARTS
        for power in (0.8, 1.5)
    ]
    level, power, log_floor = min(tries, key=lambda found: found.fun).x
    factors = dict.fromkeys(species, math.exp(level - power * middle))
    for z in species:
        some = np.flatnonzero(numbers == z)
        if _FEWEST <= len(some) < len(numbers):
            own = minimize_scalar(lambda f: loss(f, power, log_floor, some), bounds=levels, method="bounded")
            factors[z] = math.exp(own.x - power * middle)
    return Scale(math.exp(log_floor), float(power), max(float(distances.max()), 1e-9), factors)


def fit_spread(
    numbers: np.ndarray, spread: np.ndarray, errors: np.ndarray, species: tuple[int, ...], n_members: int
) -> Spread:
    """The calibration of greatest likelihood for errors of three normal components with sigma_i^2 / 3 each.

    No factor is below 1 / sqrt(n_members), that of members which err independently: where a validation set is so
    uniform that a constant would do, sigma still grows with the spread outside of it. The floor is that of all atoms;
    so is the factor of an element with few atoms in the validation set.

    Args:
        numbers: (n,).
        spread: (n,) of the members' forces, eV/A.
        errors: (n,) |F_i - F_i(reference)| of their mean, eV/A.
        species: that shall have a factor.

    Returns:
        `largest` is that of these atoms.

    Raises:
        ValueError: no errors, or none but zeros; members that agree on every force.
    """
    rms, usual = (_rms(x) if len(x) else 0.0 for x in (errors, spread))
    if not rms > 0 or not usual > 0:
        raise ValueError(f"{len(errors)} forces calibrate nothing: their errors are {rms}, the spread is {usual} eV/A")
    least, smallest = FLOOR * rms, 0.5 * math.log(1 / n_members)

    def loss(log_factor: float, log_floor: float, some=slice(None)) -> float:
        variance = np.exp(2 * log_floor) + np.exp(2 * log_factor) * spread[some] ** 2
        return float((1.5 * np.log(variance) + 1.5 * (errors[some] ** 2 + least**2) / variance).mean())

    usual = max(smallest, math.log(rms / usual))
    range_of_factors = smallest, usual + 5
    bounds = [range_of_factors, (math.log(least), math.log(rms))]
    tries = [
        minimize(lambda p: loss(*p), [usual, math.log(start * rms)], method="L-BFGS-B", bounds=bounds)
        for start in _STARTS
    ]
    log_factor, log_floor = min(tries, key=lambda found: found.fun).x
    factors = dict.fromkeys(species, math.exp(log_factor))
    for z in species:
        some = np.flatnonzero(numbers == z)
        if _FEWEST <= len(some) < len(numbers):
            own = minimize_scalar(lambda f: loss(f, log_floor, some), bounds=range_of_factors, method="bounded")
            factors[z] = math.exp(own.x)
    floor = math.exp(log_floor)
    return Spread(factors, floor, Spread(factors, floor, 1.0).sigma(numbers, spread).max())


def judge(errors: np.ndarray, sigma: np.ndarray, n_bins: int = 10) -> dict:
    """How well sigma (n,) predicts the errors (n,) of forces, both eV/A.

    Returns:
        n_atoms; rank_correlation (Spearman's); error_rms, sigma_rms; largest (sigma); coverage [{sigmas, fraction,
        normal}], the part of errors within so many sigma, and what it is for three normal components; bins [{sigma,
        error, n_atoms}], root mean squares of equally many atoms, by sigma.
    """
    order = np.argsort(sigma, kind="stable")
    bins = [part for part in np.array_split(order, n_bins) if len(part)]
    correlation = spearmanr(sigma, errors).statistic if len(sigma) > 2 and np.ptp(sigma) and np.ptp(errors) else None
    return {
        "n_atoms": len(errors),
        "rank_correlation": None if correlation is None else float(correlation),
        "error_rms": _rms(errors),
        "sigma_rms": _rms(sigma),
        "largest": float(sigma.max()),
        "coverage": [
            {"sigmas": k, "fraction": float((errors <= k * sigma).mean()), "normal": float(chi2.cdf(3 * k**2, 3))}
            for k in (1, 2, 3)
        ],
        "bins": [{"sigma": _rms(sigma[part]), "error": _rms(errors[part]), "n_atoms": len(part)} for part in bins],
    }


def _rms(values: np.ndarray) -> float:
    return math.sqrt((values**2).mean())
