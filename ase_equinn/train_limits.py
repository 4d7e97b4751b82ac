"""Limits of a trained network's node energies, taken from those it gives to the training set."""

from __future__ import annotations

import inspect
from typing import Sequence

import torch

from .data_batches import Batch
from .graph import edge_vectors
from .potential import Potential
from .train_config import TrainConfig

# eV by which node energies may pass those of the training set, and over which they level off. Training structures keep their
# energies to 1e-5 eV per atom.
MARGIN_BELOW, MARGIN_ABOVE, LIMIT_WIDTH = 0.4, 10.0, 0.04


def within_limits(config: TrainConfig, potential: Potential, samples: Sequence[Batch]) -> Potential:
    """The trained potential with limits for each element: its node energies in the training `samples`, zero (an atom alone)
    and the margins. As it is, where the config wants none, names its own, or the model has none.

    Sharing nothing with the argument: weights are copied.
    """
    (network,) = potential.models
    known = "limits" in inspect.signature(type(network)).parameters
    if not (config.limits and known and samples and (config.model.model_extra or {}).get("limits") is None):
        return potential
    scale = potential.scale[0]
    energies, species = _node_energies(potential, samples)
    own = [energies[species == index] * scale for index in range(len(potential.species))]
    low = [min(0.0, x.min().item() if len(x) else 0.0) - MARGIN_BELOW for x in own]
    high = [max(0.0, x.max().item() if len(x) else 0.0) + MARGIN_ABOVE for x in own]
    limits = {"low": [x / scale for x in low], "high": [x / scale for x in high], "width": LIMIT_WIDTH / scale}
    bounded = type(network)(**network.hyperparameters | {"limits": limits})
    bounded = bounded.to(device=potential.device, dtype=potential.dtype)
    bounded.load_state_dict(network.state_dict())
    return Potential(
        [bounded],
        reference_energies=potential.reference_energies,
        scale=potential.scale,
        shift=potential.shift,
        metadata=potential.metadata,
    ).train(potential.training)


@torch.no_grad()
def _node_energies(potential: Potential, samples: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's output and the index of the element for every atom of the samples."""
    network, energies, species = potential.models[0], [], []
    for sample in samples:
        sample = sample.to(potential.device)
        graph = sample.graphs[0]
        vectors = edge_vectors(graph, sample.positions).to(potential.dtype)
        energies.append(network(graph, vectors).double().cpu())
        species.append(network.index(graph.numbers).cpu())
    return torch.cat(energies), torch.cat(species)
