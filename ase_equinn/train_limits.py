"""Limits of a trained network's node energies, taken from those it gives to the training set."""

from __future__ import annotations

import inspect
from typing import Sequence

import torch

from .data_batches import Batch
from .graph import edge_vectors
from .nn_crowding import Crowding
from .nn_limits import Limits
from .potential import Potential
from .train_config import TrainConfig
from .train_terms import with_models

# eV by which node energies may pass those of the training set, and over which they level off. Training structures keep their
# energies to 1e-5 eV per atom.
MARGIN_BELOW, MARGIN_ABOVE, LIMIT_WIDTH = 0.12, 5.0, 0.012
LEAST_CROWDING = 0.01  # atoms with less are alone
_WIDER = {"low": min, "high": max, "rho_min": min, "rho_max": max, "near_max": max}


def within_limits(
    config: TrainConfig, potential: Potential, samples: Sequence[Batch], start: Potential | None = None
) -> Potential:
    """The trained potential with limits for each element: its node energies and crowding in the training `samples`, and margins.

    They are no narrower than those of `start`, the potential that the training began with.

    An atom alone has the reference energy. As it is, where the config wants none, names its own, or the model has none.

    Sharing nothing with the argument: weights are copied.
    """
    (network,) = potential.models
    known = "limits" in inspect.signature(type(network)).parameters
    if not (config.limits and known and samples and (config.model.model_extra or {}).get("limits") is None):
        return potential
    scale = potential.scale[0]
    energies, crowding, near, species = _of_nodes(network, potential, samples)
    limits = {name: [] for name in Limits._fields[:-1]} | {"width": LIMIT_WIDTH / scale}
    for index, number in enumerate(potential.species):
        alone = -potential.shift[number]  # then the whole is the reference energy
        own = torch.cat([energies[species == index] * scale, torch.tensor([0.0, alone], dtype=torch.float64)])
        rho = [value for value in crowding[species == index].tolist() if value > LEAST_CROWDING]
        limits["low"].append((own.min().item() - MARGIN_BELOW) / scale)
        limits["high"].append((own.max().item() + MARGIN_ABOVE) / scale)
        limits["alone"].append(alone / scale)
        limits["rho_min"].append(min(rho, default=LEAST_CROWDING))
        limits["rho_max"].append(max(rho, default=LEAST_CROWDING))
        limits["near_max"].append(max([LEAST_CROWDING, *near[species == index].tolist()]))
    before = start.models[0].hyperparameters.get("limits") if start else None
    for name, wider in _WIDER.items() if before else ():
        limits[name] = list(map(wider, limits[name], before[name]))
    bounded = type(network)(**network.hyperparameters | {"limits": limits})
    bounded = bounded.to(device=potential.device, dtype=potential.dtype)
    bounded.load_state_dict(network.state_dict())
    return with_models(potential, [bounded], potential.scale)


@torch.no_grad()
def _of_nodes(network: torch.nn.Module, potential: Potential, samples: Sequence[Batch]) -> tuple[torch.Tensor, ...]:
    """The network's output, both sums of its crowding and the index of the element for every atom of the samples."""
    crowding, rows = Crowding(network.species, network.cutoff).double().to(potential.device), []
    for sample in samples:
        sample = sample.to(potential.device)
        graph = sample.graphs[0]
        vectors = edge_vectors(graph, sample.positions)
        species = network.index(graph.numbers)
        energies = network(graph, vectors.to(potential.dtype)).double()
        rho, near = (sums.cpu() for sums in crowding(graph, vectors, species))
        rows.append((energies.cpu(), rho, near, species.cpu()))
    return tuple(torch.cat(column) for column in zip(*rows))
