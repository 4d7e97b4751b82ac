"""Which distance from the training set tells most about the errors of forces: the figures of uncertainty.md.

    python benchmarks/uncertainty.py silicon --train examples/data/si_zuo2020/Si_train.xyz \
        --valid examples/data/si_zuo2020/Si_valid.xyz

Every method is scaled on six sevenths of the validation frames and judged on the seventh, in turn. Several potentials
are judged as a committee as well. The loss is the mean negative log-likelihood of the errors, three normal components
each.
"""

import argparse
import math

import numpy as np
import torch

from ase_equinn.calibrate import describe, force_errors
from ase_equinn.calibrate_committee import spread_errors
from ase_equinn.data import read_frames
from ase_equinn.evaluate_batches import load_potential
from ase_equinn.uncertainty_fit import FLOOR, cluster, fit_scale, fit_spread, judge


def mahalanobis(train, x):
    """|x - mean| in units of the training set's covariance."""
    values, vectors = torch.linalg.eigh(torch.cov(train.T))
    kept = values > 1e-8 * values[-1]
    return (((x - train.mean(0)) @ vectors[:, kept]) / values[kept].sqrt()).norm(dim=1)


def mixture(train, x, n, rounds=40):
    """exp(-log p(x) / (2 k)) of n Gaussians, fitted by expectation maximisation in units of the widths."""
    centres, widths = cluster(train, n)
    t, x, means = train / widths, x / widths, centres / widths
    weights = torch.nn.functional.one_hot(torch.cdist(t, means).argmin(1), len(means)).double()
    unit = torch.eye(t.shape[1], dtype=t.dtype)
    for _ in range(rounds):
        count = weights.sum(0) + 1e-10
        means = weights.T @ t / count[:, None]
        scales = []
        for mean, weight, total in zip(means, weights.T, count):
            apart = t - mean
            scales.append(torch.linalg.cholesky((apart * weight[:, None]).T @ apart / total + 1e-6 * unit))

        def logs(y):
            solved = [torch.linalg.solve_triangular(s, (y - m).T, upper=False) for s, m in zip(scales, means)]
            rows = [-0.5 * z.square().sum(0) - s.diagonal().log().sum() for z, s in zip(solved, scales)]
            return torch.stack(rows, 1) + (count / count.sum()).log()

        weights = logs(t).softmax(1)
    return torch.exp(-(logs(x).logsumexp(1) - logs(t).logsumexp(1).mean()) / (2 * t.shape[1]))


def nearest(train, x, n_centres=None):
    """The distance from the nearest of all atoms, or of so many centres, in units of the widths."""
    widths = cluster(train, 1)[1]
    points = train if n_centres is None else cluster(train, n_centres)[0]
    return torch.cat([torch.cdist(part / widths, points / widths).amin(1) for part in x.split(500)]) / x.shape[1] ** 0.5


def power_law(numbers, distances, errors, species):
    """sigma(z, distances) with a fitted power."""
    scale = fit_scale(numbers, distances, errors, species)
    return lambda z, d: scale(scale.factors[z], torch.from_numpy(d) ** 2).numpy()


def row(name, distances, errors, frames, numbers, fit=power_law):
    """Cross-validated: correlation, loss, coverage."""
    distances, sigma = np.maximum(distances, 1e-6), np.zeros(len(errors))
    species = tuple(np.unique(numbers).tolist())
    for k in range(7):
        held = frames % 7 == k
        fitted = fit(numbers[~held], distances[~held], errors[~held], species)
        for z in species:
            own = held & (numbers == z)
            sigma[own] = fitted(z, distances[own])
    judged, floor = judge(errors, sigma), FLOOR * math.sqrt((errors**2).mean())
    correlation = judge(errors, distances)["rank_correlation"]
    loss = (3 * np.log(sigma) + 1.5 * (errors**2 + floor**2) / sigma**2).mean()
    cover = " / ".join(f"{100 * entry['fraction']:.1f}" for entry in judged["coverage"])
    print(f"| {name} | {correlation:.3f} | {loss:.2f} | {cover} |", flush=True)


def one(potential, train, valid):
    evaluator = load_potential(potential)
    kinds, t = describe(evaluator, train)
    numbers, x, errors = force_errors(evaluator, valid)
    frames = np.repeat(np.arange(len(valid)), [len(frame.atoms) for frame in valid])
    methods = {"one Gaussian (Mahalanobis)": mahalanobis}
    methods |= {f"mixture of {n} Gaussians": lambda a, b, n=n: mixture(a, b, n) for n in (4, 16)}
    methods |= {f"nearest of {n} centres": lambda a, b, n=n: nearest(a, b, n) for n in (64, 128, 256)}
    methods["nearest training atom"] = nearest
    for name, method in methods.items():
        distances = torch.zeros(len(x), dtype=torch.float64)
        for z in evaluator.potential.species:
            distances[numbers == z] = method(t[kinds == z].double(), x[numbers == z].double())
        row(name, distances.numpy(), errors, frames, numbers.numpy())
    return frames


def committee(potentials, valid, frames):
    """The spread, in proportion (as `equinn calibrate A B C` has it) and with a power."""
    numbers, spread, errors = spread_errors(potentials, valid)

    def linear(*known):
        found = fit_spread(*known, len(potentials))
        return lambda z, d: found.sigma(np.full(len(d), z), d)

    row(f"spread of {len(potentials)} potentials, power 1", spread, errors, frames, numbers, linear)
    row(f"spread of {len(potentials)} potentials, any power", spread, errors, frames, numbers)
    known = numbers, spread, errors, tuple(np.unique(numbers).tolist())
    found, scale = fit_spread(*known, len(potentials)), fit_scale(*known)
    rms = [1000 * math.sqrt((values**2).mean()) for values in (errors, spread)]
    print(f"\nrms error {rms[0]:.1f} meV/A, rms spread {rms[1]:.1f}")
    print(f"floor {found.floor:.4f} eV/A, factors {found.factors}; with any power {scale}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("potentials", nargs="+")
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--valid", nargs="+", required=True)
    args = parser.parse_args()
    sets = [read_frames(files).frames for files in (args.train, args.valid)]
    sets = [[frame for frame in frames if frame.forces is not None] for frames in sets]
    for name in args.potentials:
        print(f"\n{name}\n\n| method | rank correlation | loss | errors within 1 / 2 / 3 sigma, % |\n|---|---|---|---|")
        frames = one(name, *sets)
    if len(args.potentials) > 1:
        print()
        committee(args.potentials, sets[1], frames)
