"""The training loss: energy per atom, force components and virial per atom.

    loss = c_E sum_g w_g L(dE_g / n_g) / G  +  c_F sum_ic w_i L(dF_ic) / 3N  +  c_W sum_g,ab w_g L(dW_g,ab / n_g) / 9G

over the G structures and N atoms of a batch, in eV/atom, eV/A and eV/atom; w is the frame's weight, zero where the
label is missing. With a stress offset p (eV/A^3) the predicted virial is that of the potential plus p V 1. L(x) = x^2
(mse), or that up to |x| = delta and 2 delta |x| - delta^2 beyond it (huber, twice the textbook's).
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .data_batches import Batch, join
from .derivatives import Derivatives
from .metrics import Prediction
from .train_config import LossConfig


class Residuals(NamedTuple):
    """Predicted minus reference, float64."""

    energy: Tensor  # (g,) eV/atom
    forces: Tensor  # (n, 3) eV/A
    virial: Tensor  # (g, 3, 3) eV/atom


def residuals(batch: Batch, result: Derivatives, stress_offset: Tensor | float | None = None) -> Residuals:
    """The differences that the loss is made of; those without a label are meaningless and have weight zero."""
    virial = result.virial - batch.virial
    if stress_offset is not None:
        virial = virial + _volume_matrix(batch) * stress_offset
    return Residuals(
        (result.energy - batch.energy) / batch.n_atoms,
        result.forces - batch.forces,
        virial / batch.n_atoms[:, None, None],
    )


def _volume_matrix(batch: Batch) -> Tensor:
    """V 1 of each structure, (g, 3, 3)."""
    cell = batch.graphs[0].cell
    return torch.linalg.det(cell).abs()[:, None, None] * torch.eye(3, dtype=cell.dtype, device=cell.device)


def loss(config: LossConfig, batch: Batch, difference: Residuals, progress: float = 1.0) -> Tensor:
    """The scalar loss of a batch, float64, with the coefficients at `progress` in 0..1 of the run."""
    energy = (batch.energy_weight * penalty(config, difference.energy)).mean()
    forces = (batch.force_weight * penalty(config, difference.forces)).mean()
    virial = (batch.virial_weight[:, None, None] * penalty(config, difference.virial)).mean()
    return energy_coefficient(config, progress) * energy + config.forces * forces + config.virial * virial


def energy_coefficient(config: LossConfig, progress: float) -> float:
    """c_E: `energy` in the first half of the run, then geometrically to `final_energy`; linearly if one of them is 0."""
    if config.final_energy is None:
        return config.energy
    x = min(1.0, max(0.0, 2.0 * progress - 1.0))
    if not config.energy * config.final_energy:
        return (1.0 - x) * config.energy + x * config.final_energy
    return config.energy ** (1.0 - x) * config.final_energy**x


def penalty(config: LossConfig, x: Tensor) -> Tensor:
    """L(x), element by element."""
    if config.kind == "mse":
        return x.square()
    return 2 * torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=config.huber_delta)


def loss_of_predictions(
    config: LossConfig, samples: Sequence[Batch], predictions: Sequence[Prediction], stress_offset: float = 0.0
) -> float:
    """The loss over a whole set that `evaluate_files.predict` went through."""
    labels = join([sample._replace(graphs=()) for sample in samples])
    virials = [_virial(s, p) + stress_offset * _volume_matrix(s)[0] for s, p in zip(samples, predictions)]
    difference = Residuals(
        (torch.tensor([p.energy for p in predictions], dtype=torch.float64) - labels.energy) / labels.n_atoms,
        torch.cat([torch.from_numpy(p.forces) for p in predictions]) - labels.forces,
        torch.stack(virials) / labels.n_atoms[:, None, None],
    )
    return float(loss(config, labels, difference))


def _virial(sample: Batch, prediction: Prediction) -> Tensor:
    if prediction.stress is None:
        return torch.zeros(3, 3, dtype=torch.float64)
    volume = torch.linalg.det(sample.graphs[0].cell[0]).abs()
    return torch.from_numpy(prediction.stress) * volume - sample.virial[0]
