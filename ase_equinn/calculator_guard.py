"""What a calculator does about atoms whose forces are too uncertain."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.outputs import all_outputs

from ase_equinn.calculator_arguments import one_of
from ase_equinn.potential import Potential
from ase_equinn.potential_file import write_atomic
from ase_equinn.uncertainty_spread import Spread

WARN_EVERY = 100  # evaluations from one warning to the next
NAMED = 5  # atoms in a message
_BEYOND = 2.0  # times the largest sigma of the validation set: the threshold where none is given


class UncertainForces(CalculationFailed):
    """Forces are more uncertain than `guard_threshold` allows; the message names atoms and the saved structure."""


class UncertaintyWarning(UserWarning):
    """Forces are more uncertain than `guard_threshold`."""


class Guard:
    """Warns of atoms with an uncertain force, or saves the structure and stops.

    Args:
        kind: "warn": a warning at the first such evaluation, and again at the first one after every WARN_EVERY others;
            "stop": UncertainForces.
        threshold: eV/A.
        file: where "stop" saves the structure, as extended XYZ.

    Raises:
        ValueError: an argument that has no meaning, with its value.
    """

    def __init__(self, kind: str, threshold: float, file: str | Path):
        if not isinstance(threshold, Real) or not 0 < threshold < math.inf:
            raise ValueError(f"guard_threshold must be a positive number of eV/A, got {threshold!r}")
        self.kind, self.threshold, self.file = one_of("guard", kind, ("warn", "stop")), float(threshold), Path(file)
        self._quiet = 0  # evaluations left without a warning

    def __call__(self, atoms: Atoms, results: dict) -> None:
        """Looks at results["forces_sigma"].

        Raises:
            UncertainForces: "stop", and an atom is beyond the threshold.
        """
        sigma = results["forces_sigma"]
        self._quiet = max(0, self._quiet - 1)
        if not len(sigma) or sigma.max() <= self.threshold:
            return
        uncertain = np.flatnonzero(~(sigma <= self.threshold))
        message = self._message(atoms, sigma, uncertain)
        if self.kind == "stop":
            save(self.file, atoms, results)
            raise UncertainForces(f"{message}; the structure is in {self.file}")
        if not self._quiet:
            self._quiet = WARN_EVERY
            warnings.warn(message, UncertaintyWarning, stacklevel=2)

    def _message(self, atoms: Atoms, sigma: np.ndarray, uncertain: np.ndarray) -> str:
        worst = uncertain[np.argsort(-sigma[uncertain], kind="stable")]
        names = ", ".join(f"atom {k} ({atoms.symbols[k]}) {sigma[k]:.3g} eV/A" for k in worst[:NAMED])
        more = ", ..." if len(worst) > NAMED else ""
        return (
            f"forces on {len(worst)} of {len(atoms)} atoms are uncertain by more than {self.threshold:.3g} eV/A: "
            f"{names}{more}"
        )


def guard_of(parameters: dict, potentials: Sequence[Potential], spread: Spread | None) -> Guard | None:
    """The guard that a calculator's parameters ask for.

    Args:
        spread: of a calibrated committee.

    Raises:
        ValueError: a single potential without uncertainties; a committee with neither calibration nor threshold; an
            argument that has no meaning.
    """
    kind, threshold = parameters["guard"], parameters["guard_threshold"]
    if kind is None:
        return None
    known = spread if len(potentials) > 1 else potentials[0].uncertainty
    if known is None and len(potentials) == 1:
        raise ValueError(
            f"guard={kind!r} needs a potential with uncertainties (equinn calibrate gives it some) or a committee"
        )
    if threshold is None:
        if known is None:
            raise ValueError(
                f"guard={kind!r} of a list of potentials needs a guard_threshold: what spread is too much, eV/A "
                "(equinn calibrate A B C makes a committee that has one)"
            )
        threshold = _BEYOND * known.largest
    return Guard(kind, threshold, parameters["guard_file"])


def save(path: Path, atoms: Atoms, results: dict) -> None:
    """The structure with its results as one frame of extended XYZ; `path` holds all of it, or what it held before."""
    frame = atoms.copy()
    frame.calc = None
    frame.arrays["forces_sigma"] = np.asarray(results["forces_sigma"])
    known = {name: value for name, value in results.items() if name in all_outputs}
    frame.calc = SinglePointCalculator(frame, **known)
    text = io.StringIO()
    write(text, frame, format="extxyz")
    write_atomic(path, text.getvalue().encode())
