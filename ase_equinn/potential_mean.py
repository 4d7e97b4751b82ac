"""The mean of several potentials as one potential, for every engine that takes potentials."""

from collections.abc import Sequence

from torch import nn

from .potential import Potential
from .potential_common import check_same_species
from .potential_file import canonical_json


def mean_potential(potentials: Sequence[Potential]) -> Potential:
    """One potential whose energies, and so forces and stresses, are the means of those of `potentials`.

    Networks that differ in their seed alone are off by a part they share and a part of their own; the mean of n has an n-th
    of the own parts' variance, for n times the cost. (A committee, potential_committee.py, keeps the members apart and
    tells their spread.) Models without weights that several potentials have alike, a ZBL core, stand in it once.

    Sharing weights with its arguments; without metadata and uncertainty.

    Args:
        potentials: one or more, with the same species, dtype and device.

    Raises:
        ValueError: none; different species; different dtypes or devices.
    """
    if not potentials:
        raise ValueError("the mean of no potentials was asked for")
    check_same_species([potential.species for potential in potentials])
    parts: dict[object, tuple[nn.Module, float]] = {}
    for potential in potentials:
        for model, scale in zip(potential.models, potential.scale, strict=True):
            key = _alike(model)
            parts[key] = (model, parts.get(key, (model, 0.0))[1] + scale / len(potentials))
    return Potential(
        [model for model, _ in parts.values()],
        reference_energies=_mean([potential.reference_energies for potential in potentials]),
        scale=[scale for _, scale in parts.values()],
        shift=_mean([potential.shift for potential in potentials]),
    ).train(potentials[0].training)


def _alike(model: nn.Module) -> object:
    """Equal for models that give the same numbers: of one class without weights; otherwise the model itself."""
    if any(True for _ in model.parameters()):
        return model
    return type(model), canonical_json(model.hyperparameters)


def _mean(tables: Sequence[dict[int, float]]) -> dict[int, float]:
    return {number: sum(table[number] for table in tables) / len(tables) for number in tables[0]}
