"""What the models of a potential have in common, and numbers for each of them or of their species: checked."""

import math

import torch
from torch import nn

from .potential_file import MAX_NUMBER


def common_species(models: list[nn.Module]) -> tuple[int, ...]:
    """Atomic numbers that every model knows, ascending."""
    common = set.intersection(*({int(z) for z in model.species} for model in models))
    if not common or min(common) < 1 or max(common) > MAX_NUMBER:
        raise ValueError(f"the models have no valid species in common: {[tuple(model.species) for model in models]}")
    return tuple(sorted(common))


def check_same_species(species: list[tuple[int, ...]]) -> None:
    """Raises ValueError unless the members of a committee or a mean know the same elements."""
    for k, own in enumerate(species):
        if own != species[0]:
            raise ValueError(f"member 0 knows the elements {species[0]}, member {k} knows {own}")


def distinct_cutoffs(models: list[nn.Module]) -> tuple[float, ...]:
    """In A, descending."""
    cutoffs = {float(model.cutoff) for model in models}
    if not all(0 < cutoff < math.inf for cutoff in cutoffs):
        raise ValueError(f"the models have the cutoffs {sorted(cutoffs)}")
    return tuple(sorted(cutoffs, reverse=True))


def scales(scale: float | list[float], n_models: int) -> tuple[float, ...]:
    """One finite factor for each model."""
    factors = tuple(float(s) for s in scale) if isinstance(scale, list | tuple) else (float(scale),) * n_models
    if len(factors) != n_models or not all(map(math.isfinite, factors)):
        raise ValueError(f"scale {scale} is not one finite number for each of {n_models} models")
    return factors


def per_species(name: str, energies: dict[int, float], species: tuple[int, ...]) -> dict[int, float]:
    """`energies` ordered by atomic number, checked to be finite and for exactly the species."""
    if set(energies) != set(species):
        raise ValueError(f"{name} are given for {sorted(energies)}, the species are {list(species)}")
    table = {number: float(energies[number]) for number in species}
    for number, energy in table.items():
        if not math.isfinite(energy):
            raise ValueError(f"{name} of element {number} is {energy} eV")
    return table


def floating(models: list[nn.Module]) -> tuple[torch.dtype, torch.device]:
    """The floating dtype and the device that the models' weights agree on; without weights, their buffers."""
    weights = [weight for model in models for weight in model.parameters() if weight.is_floating_point()]
    weights = weights or [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
    dtypes = {weight.dtype for weight in weights} or {torch.get_default_dtype()}
    devices = {weight.device for weight in weights} or {torch.device("cpu")}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(f"the models disagree on dtype or device: {dtypes}, {devices}")
    return dtypes.pop(), devices.pop()
