"""Reference energies per species: those of isolated atoms, or the least-squares fit to total energies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAME_ENERGY = 1e-3  # eV: two frames of one isolated atom may differ by this much
WELL_CONDITIONED = 1e3  # condition number up to which compositions tell the species apart


class ReferenceFit(NamedTuple):
    energies: dict[int, float]  # {atomic number: eV}
    condition: float  # of the fitted species' composition matrix; inf if it does not determine them
    rmse: float  # eV per atom of what the reference energies leave
    warning: str  # "" if the compositions determine every species well


def isolated_atom_energies(numbers: Sequence[int], energies: Sequence[float]) -> dict[int, float]:
    """{atomic number: eV} from frames of one isolated atom each; several frames of an element must agree.

    Args:
        numbers: the atomic number of each frame's only atom.
        energies: eV.

    Raises:
        ValueError: an energy that is not finite, or two frames of an element more than 1 meV apart.
    """
    found: dict[int, float] = {}
    for number, energy in zip(map(int, numbers), map(float, energies), strict=True):
        if not np.isfinite(energy):
            raise ValueError(f"the energy of an isolated atom of element {number} is {energy} eV")
        if abs(found.setdefault(number, energy) - energy) > SAME_ENERGY:
            raise ValueError(f"isolated atoms of element {number} have the energies {found[number]} and {energy} eV")
    return dict(sorted(found.items()))


def fit_reference_energies(
    numbers: Sequence[Sequence[int]], energies: Sequence[float], *, known: dict[int, float] | None = None
) -> ReferenceFit:
    """Energies e_Z that minimise the sum over frames of ((E - sum_Z n_Z e_Z) / n)^2; the smallest ones if many do.

    When all frames have nearly the same composition, the energies of single species are not in the data: then the fit
    still removes the mean, but exchanging atoms has no meaning, which `warning` says.

    Args:
        numbers: the atomic numbers of each frame's atoms.
        energies: total energies, eV.
        known: {atomic number: eV} of species that are not fitted.

    Returns:
        ReferenceFit; its energies hold every species of the frames and of `known`.

    Raises:
        ValueError: no frames, a frame without atoms or an energy that is not finite.
    """
    known, energies = dict(known or {}), np.asarray(energies, dtype=np.float64)
    if len(numbers) != len(energies) or not len(numbers):
        raise ValueError(f"a fit needs frames with one energy each, received {len(numbers)} and {len(energies)}")
    for k, (frame, energy) in enumerate(zip(numbers, energies, strict=True)):
        if not len(frame) or not np.isfinite(energy):
            raise ValueError(f"frame {k} has {len(frame)} atoms and the energy {energy} eV")
    species = sorted({int(z) for frame in numbers for z in frame})
    fractions = np.array(
        [[np.count_nonzero(np.asarray(frame) == z) / len(frame) for z in species] for frame in numbers]
    )
    per_atom = energies / [len(frame) for frame in numbers]
    fitted = [k for k, z in enumerate(species) if z not in known]
    rest = per_atom - fractions @ [known.get(z, 0.0) for z in species]
    matrix = fractions[:, fitted]
    solution = np.linalg.lstsq(matrix, rest, rcond=1 / WELL_CONDITIONED)[0]
    condition = _condition(matrix)
    found = known | {species[k]: float(e) for k, e in zip(fitted, solution, strict=True)}
    rmse = float(np.sqrt(np.mean((rest - matrix @ solution) ** 2)))
    return ReferenceFit(dict(sorted(found.items())), condition, rmse, _warning([species[k] for k in fitted], condition))


def _condition(matrix: np.ndarray) -> float:
    """Ratio of the largest to the smallest of as many singular values as there are columns; 1 without columns."""
    if not matrix.shape[1]:
        return 1.0
    values = np.zeros(matrix.shape[1])
    found = np.linalg.svd(matrix, compute_uv=False)
    values[: len(found)] = found
    return float(values[0] / values[-1]) if values[-1] > 1e-12 * values[0] else np.inf


def _warning(fitted: list[int], condition: float) -> str:
    if condition <= WELL_CONDITIONED:
        return ""
    return (
        f"the frames' compositions do not tell the elements {fitted} apart (condition number {condition:.3g}): their "
        "reference energies are the smallest that fit, which is fine for one composition and meaningless when atoms are "
        "exchanged; give isolated-atom frames or the energies themselves"
    )
