"""A committee that says how uncertain its forces are: calibrated on a validation set, judged on any other set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .calculator_arguments import load_models
from .calibrate import Report, hashes
from .data import Frame, Keys, read_frames
from .evaluate_batches import evaluate_with, load_potential
from .potential import Potential, read_header
from .potential_committee import Committee, check_members
from .uncertainty_fit import fit_spread, judge
from .uncertainty_spread import spread_of

Model = str | Path | Potential
Members = str | Path | Committee | Sequence[Model]


def calibrate_committee(
    members: Members,
    valid: Sequence[Frame],
    *,
    device: str = "auto",
    dtype: str = "float32",
    report: Report | None = None,
) -> Committee:
    """A committee whose `spread` says by how much the mean of its forces is off, atom by atom.

    Args:
        members: three or more potentials (folder, file, shipped name or Potential), trained with other seeds or on
            other parts of the data; or a committee, to be calibrated anew.
        valid: labelled frames that no member's weights were fitted to; those without forces are passed over.
        device, dtype: of the evaluation.
        report: called with the number of the member, frames that are done, and all.

    Raises:
        ValueError: too few members, members with different species, one twice; no forces in `valid`; structures that
            cannot be evaluated.
    """
    potentials, _, _ = load_models(members if isinstance(members, str | Path | Committee) else list(members))
    check_members(potentials)
    numbers, spread, errors = spread_errors(potentials, valid, device=device, dtype=dtype, report=report)
    found = fit_spread(numbers, spread, errors, potentials[0].species, len(potentials))
    found.facts["valid"] = judge(errors, found.sigma(numbers, spread))
    return Committee(potentials, found)


def calibrate_committee_files(
    members: Sequence[str | Path],
    valid: Sequence[Path],
    out: str | Path,
    *,
    test: Sequence[Path] = (),
    keys: Keys = Keys(),
    device: str = "auto",
    report: Report | None = None,
) -> tuple[Path, dict[str, dict]]:
    """`calibrate_committee` with files; writes one file with all members, and with the hashes of all these files.

    Args:
        members: see `calibrate_committee`; one name is that of a committee.
        out: folder or file, see Potential.save.
        test: judged once all is fitted.

    Returns:
        the file that was written; for "valid", and "test" if there is one, what uncertainty_fit.judge says.
    """
    frames = read_frames(valid, keys).frames
    given = members[0] if len(members) == 1 else members
    found = calibrate_committee(given, frames, device=device, report=report)
    judged = dict(found.spread.facts)
    if test:
        judged["test"] = judge_committee(found, read_frames(test, keys).frames, device=device, report=report)
    files = hashes(valid=valid, test=test)
    files["members"] = [{"file": str(name), "sha256": read_header(name)["sha256"]} for name in members]
    found.spread.facts |= {**judged, "files": files}
    return found.save(out), judged


def judge_committee(
    committee: str | Path | Committee,
    frames: Sequence[Frame],
    *,
    device: str = "auto",
    dtype: str = "float32",
    report: Report | None = None,
) -> dict:
    """How well a calibrated committee predicts the errors of its forces on labelled frames, see uncertainty_fit.judge.

    Raises:
        ValueError: no calibrated committee; no frame with forces.
    """
    potentials, spread, name = load_models(committee)
    if spread is None:
        raise ValueError(f"{name} is no calibrated committee: equinn calibrate A B C makes one")
    numbers, values, errors = spread_errors(potentials, frames, device=device, dtype=dtype, report=report)
    return judge(errors, spread.sigma(numbers, values))


def spread_errors(
    members: Sequence[Model],
    frames: Sequence[Frame],
    *,
    device: str = "auto",
    dtype: str = "float32",
    report: Report | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all atoms with reference forces: atomic numbers, spread of the members, error of their mean, each (n,), eV/A.

    Raises:
        ValueError: no frame with forces.
    """
    labelled = [frame for frame in frames if frame.forces is not None]
    if not labelled:
        raise ValueError(f"none of {len(frames)} frames has forces to compare with")
    structures, names = [frame.atoms for frame in labelled], [frame.origin for frame in labelled]
    forces = []
    for k, member in enumerate(members):
        evaluator = load_potential(member, device=device, dtype=dtype)
        tell = None if report is None else lambda done, total, k=k: report(f"member {k}", done, total)
        found = evaluate_with(evaluator, structures, ["forces"], names=names, report=tell)
        forces.append(np.concatenate([result["forces"] for result in found]))
    mean, spread = spread_of(np.array(forces))
    errors = np.linalg.norm(mean - np.concatenate([frame.forces for frame in labelled]), axis=1)
    return np.concatenate([atoms.numbers for atoms in structures]), spread, errors
