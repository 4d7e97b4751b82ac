"""Uncertainties for a trained potential: from its training and validation sets, judged on any other set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import Frame, Keys, file_sha256, read_frames
from .evaluate_batches import batch_graphs, evaluate_with, load_potential
from .evaluator import Evaluator
from .potential import Potential
from .uncertainty import Scale, Uncertainty
from .uncertainty_fit import cluster, fit_scale, judge

CENTRES = 128  # for each element: fewer tell less, more do not help, see benchmarks/uncertainty.md
_BATCH_ATOMS = 500
Report = Callable[[str, int, int], None]


def calibrate(
    potential: str | Path | Potential,
    train: Sequence[Frame],
    valid: Sequence[Frame],
    *,
    n_centres: int = CENTRES,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    report: Report | None = None,
) -> Potential:
    """A copy of the potential whose `uncertainty` says by how much its forces are off, atom by atom.

    Args:
        potential: folder, file, shipped name or Potential; every species needs atoms in `train`.
        train: what it was trained on; labels are not needed.
        valid: labelled frames that its weights were not fitted to; those without forces are passed over.
        n_centres: that stand for the training atoms of an element.
        seed: of the first centres.
        device, dtype: of the evaluation.
        report: called with "train" or "valid", frames that are done, and all.

    Raises:
        ValueError: an element without training atoms; no forces in `valid`; a potential without descriptors; structures
            that cannot be evaluated.
    """
    if n_centres < 1:
        raise ValueError(f"n_centres must be at least 1, got {n_centres}")
    stored = potential if isinstance(potential, Potential) else Potential.load(potential)
    evaluator = load_potential(stored, device=device, dtype=dtype)
    species = evaluator.potential.species
    numbers, descriptors = describe(evaluator, train, _only(report, "train"))
    centres, widths = {}, {}
    for z in species:
        own = descriptors[numbers == z]
        if not len(own):
            raise ValueError(f"the potential knows element {z}, of which the training frames have no atom")
        centres[z], widths[z] = cluster(own, n_centres, seed)
    unit = Uncertainty(centres, widths, Scale(1.0, 1.0, 1.0, dict.fromkeys(species, 1.0)), 1.0)
    numbers, descriptors, errors = force_errors(evaluator, valid, _only(report, "valid"))
    scale = fit_scale(numbers.numpy(), unit.distances(numbers, descriptors).numpy(), errors, species)
    sigma = Uncertainty(centres, widths, scale, 1.0).sigma(numbers, descriptors).numpy()
    judged = judge(errors, sigma)
    found = copy.deepcopy(stored)
    found.uncertainty = Uncertainty(centres, widths, scale, judged["largest"], {"valid": judged})
    return found


def calibrate_files(
    potential: str | Path,
    train: Sequence[Path],
    valid: Sequence[Path],
    out: str | Path,
    *,
    test: Sequence[Path] = (),
    keys: Keys = Keys(),
    n_centres: int = CENTRES,
    device: str = "auto",
    report: Report | None = None,
) -> tuple[Path, dict[str, dict]]:
    """`calibrate` with files; writes the potential, its hashes of these files included.

    Args:
        out: folder or file, see Potential.save.
        test: judged once all is fitted.

    Returns:
        the file that was written; for "valid", and "test" if there is one, what uncertainty_fit.judge says.
    """
    sets = [read_frames(files, keys).frames for files in (train, valid)]
    found = calibrate(potential, *sets, n_centres=n_centres, device=device, report=report)
    judged = dict(found.uncertainty.facts)
    if test:
        judged["test"] = judge_uncertainty(found, read_frames(test, keys).frames, device=device, report=report)
    files = hashes(train=train, valid=valid, test=test)
    found.uncertainty.facts |= {**judged, "files": files}
    return found.save(out), judged


def hashes(**parts: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """Name and sha256 of every file, by part."""
    return {
        part: [{"file": Path(path).name, "sha256": file_sha256(path)} for path in paths]
        for part, paths in parts.items()
    }


def judge_uncertainty(
    potential: str | Path | Potential,
    frames: Sequence[Frame],
    *,
    device: str = "auto",
    dtype: str = "float32",
    report: Report | None = None,
) -> dict:
    """How well a calibrated potential predicts the errors of its forces on labelled frames, see uncertainty_fit.judge.

    Raises:
        ValueError: a potential without uncertainties; no frame with forces.
    """
    stored = potential if isinstance(potential, Potential) else Potential.load(potential)
    uncertainty = stored.uncertainty
    if uncertainty is None:
        raise ValueError("the potential has no uncertainties: equinn calibrate gives it some")
    evaluator = load_potential(stored, device=device, dtype=dtype)
    numbers, descriptors, errors = force_errors(evaluator, frames, _only(report, "test"))
    return judge(errors, uncertainty.sigma(numbers, descriptors).numpy())


def force_errors(
    evaluator: Evaluator, frames: Sequence[Frame], report: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Atomic numbers (n,), descriptors (n, k) and |F - F(reference)| (n,) eV/A of all atoms with reference forces."""
    labelled = [frame for frame in frames if frame.forces is not None]
    if not labelled:
        raise ValueError(f"none of {len(frames)} frames has forces to compare with")
    structures, names = [frame.atoms for frame in labelled], [frame.origin for frame in labelled]
    forces = [found["forces"] for found in evaluate_with(evaluator, structures, ["forces"], names=names)]
    errors = np.concatenate([found - frame.forces for found, frame in zip(forces, labelled, strict=True)])
    return *describe(evaluator, labelled, report), np.linalg.norm(errors, axis=1)


def describe(
    evaluator: Evaluator, frames: Sequence[Frame], report: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Atomic numbers (n,) and descriptors (n, k) of all atoms, on the CPU.

    Raises:
        ValueError: no atoms.
    """
    potential, numbers, parts, first = evaluator.potential, [], [], 0
    while first < len(frames):
        last, n_atoms = first + 1, len(frames[first].atoms)
        while last < len(frames) and n_atoms + len(frames[last].atoms) <= _BATCH_ATOMS:
            n_atoms, last = n_atoms + len(frames[last].atoms), last + 1
        group = frames[first:last]
        structures, names = [frame.atoms for frame in group], [frame.origin for frame in group]
        graphs, vectors, _ = batch_graphs(structures, potential, names)
        with torch.no_grad():
            found = potential.descriptors(tuple(graphs), tuple(v.to(potential.dtype) for v in vectors))
        numbers.append(graphs[0].numbers.cpu())
        parts.append(found.cpu())
        first = last
        if report:
            report(first, len(frames))
    if not parts:
        raise ValueError("no frames to describe")
    return torch.cat(numbers), torch.cat(parts)


def _only(report: Report | None, part: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(part, done, total)
