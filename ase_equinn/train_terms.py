"""The repulsive core under a network in training: labels are freed of it once, the finished potential has it added."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch

from .data import Frame
from .data_batches import prepare
from .evaluate_files import predict
from .potential import Potential
from .radial_transforms import covalent_radius
from .terms.zbl import ZBL
from .train_config import TrainConfig


def repulsion(config: TrainConfig, species: Sequence[int]) -> ZBL | None:
    """The ZBL term of a run, None if the config wants none: it ends at the covalent radii, at the cutoff at the latest."""
    if not config.zbl:
        return None
    return ZBL(species, radii=[min(covalent_radius(z), 0.5 * config.model.cutoff) for z in species])


def without(frames: Sequence[Frame], term: ZBL | None) -> list[Frame]:
    """The frames with what the term gives taken off their labels: the term has no parameters, so that is all to do."""
    if term is None or not frames:
        return list(frames)
    found = predict(Potential([term.double()]), prepare(frames, [term.cutoff]))
    return [
        frame._replace(
            energy=None if frame.energy is None else frame.energy - part.energy,
            forces=None if frame.forces is None else frame.forces - np.asarray(part.forces),
            stress=None if frame.stress is None else frame.stress - np.asarray(part.stress),
        )
        for frame, part in zip(frames, found, strict=True)
    ]


def complete(potential: Potential, term: ZBL | None) -> Potential:
    """The potential with the term added, sharing the network's weights."""
    if term is None:
        return potential
    return Potential(
        [*potential.models, term.to(potential.dtype).to(potential.device)],
        reference_energies=potential.reference_energies,
        scale=[*potential.scale, 1.0],
        shift=potential.shift,
        metadata=potential.metadata,
    ).train(potential.training)
