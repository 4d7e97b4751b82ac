"""The state of a training run: what one step, one epoch and a checkpoint are. train_loop.py drives it."""

from __future__ import annotations

import copy
import math
import time
from typing import Callable, Sequence

import torch

from .data import Frame
from .data_batches import Batch, EpochBatches
from .derivatives import derivatives
from .evaluate_files import predict
from .metrics import errors
from .potential import Potential
from .terms.zbl import ZBL
from .train_checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from .train_config import TrainConfig
from .train_loss import loss, loss_of_predictions, residuals
from .train_optimizers import make_optimizer
from .train_schedule import Clock, ema_decay, learning_rate_factor

TRAIN_SHOWN = 200
OFFSET_UNIT = 0.01  # eV/A^3: what one unit of the fitted number means, so that the learning rate suits it
PLOTS = 3.0  # seconds for the plots and files at the end
FIT_ERRORS = ("loss", "energy_rmse", "force_rmse", "virial_rmse")


class Run:
    """The state of one training run; a step changes it, a checkpoint holds all of it.

    Attributes:
        potential, averaged: the trained weights and their exponential moving average, which is validated and saved.
        term: what the labels were freed of, see train_terms; the potentials here lack it.
        epoch, step: completed ones. rows: one dict per epoch, the lines of log.csv.
        start: the trained potential that the weights were taken from, if any.
        best_loss, best_epoch, best: validation loss, epoch and weights of the best average so far; epoch 0 is `start`.
    """

    def __init__(
        self,
        config: TrainConfig,
        potential: Potential,
        samples: Sequence[Batch],
        valid: tuple[Sequence[Frame], Sequence[Batch]],
        clock: Clock,
        term: ZBL | None = None,
        n_test: int = 0,
        report: Callable[[dict], None] = lambda row: None,
        start: Potential | None = None,
    ):
        training = config.training
        self.config, self.clock, self.term, self.report, self.n_test = config, clock, term, report, n_test
        self.start = start
        self.n_shown = min(TRAIN_SHOWN, len(samples))  # training frames that are evaluated at the end
        self.potential, self.averaged = potential.train(), copy.deepcopy(potential).eval().requires_grad_(False)
        self.batches = EpochBatches(samples, training.batch_size, config.seed)
        self.valid_frames, self.valid_samples = valid
        self.parameters = list(potential.parameters())
        offset = start.metadata.get("training", {}).get("stress_offset", 0.0) / OFFSET_UNIT if start else 0.0
        self.offset = torch.full((1,), offset, dtype=potential.dtype, device=potential.device).requires_grad_()
        self.fitted = [*self.parameters, *([self.offset] if config.loss.stress_offset else [])]
        self.optimizer = make_optimizer(training, self.fitted)
        self.epoch = self.step = self.best_epoch = self.plateau_epochs = 0
        self.best_loss, self.plateau_factor = math.inf, 1.0
        self.best: dict[str, torch.Tensor] = {}
        self.rows: list[dict] = []
        self.stopped = ""  # why, when the run ends early
        self.interrupted = False
        self.sums = torch.zeros(8, dtype=torch.float64)

    # one step

    def learning_rate(self) -> float:
        """That of the coming step."""
        factor = learning_rate_factor(self.config.training, self.clock.progress(self.step))
        return self.config.training.learning_rate * factor * self.plateau_factor

    def before_step(self) -> None:
        self.clock.first_step(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()

    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, float64, with its graph; its parts are added up for the log."""
        found = derivatives(self.potential, batch.graphs, batch.positions, training=True)
        offset = OFFSET_UNIT * self.offset.double() if self.config.loss.stress_offset else None
        difference = residuals(batch, found, offset)
        value = loss(self.config.loss, batch, difference, self.clock.progress(self.step))
        self._add_up(value.detach(), batch, [x.detach() for x in difference])
        return value

    def _add_up(self, value, batch: Batch, difference) -> None:
        energy, forces, virial = difference
        has_energy, has_forces, has_virial = (
            w > 0 for w in (batch.energy_weight, batch.force_weight, batch.virial_weight)
        )
        self.sums += torch.stack([
            value, torch.ones_like(value),
            (energy.square() * has_energy).sum(), has_energy.sum(),
            (forces.square() * has_forces).sum(), 3 * has_forces.sum(),
            (virial.square() * has_virial[:, None, None]).sum(), 9 * has_virial.sum(),
        ]).cpu()  # fmt: skip

    def fit_errors(self) -> dict[str, float | None]:
        """Mean loss and root mean square errors (eV/atom, eV/A, eV/atom) of the steps of this epoch."""
        totals = self.sums[0::2].tolist()
        numbers = self.sums[1::2].tolist()
        means = [total / number if number else None for total, number in zip(totals, numbers)]
        return dict(zip(FIT_ERRORS, [means[0]] + [None if m is None else 1000 * math.sqrt(m) for m in means[1:]]))

    def after_step(self) -> None:
        self.step += 1
        if not torch.isfinite(self.sums[0]):
            raise FloatingPointError(
                f"the loss is {self.sums[0]} in epoch {self.epoch + 1}, step {self.step}: lower training.learning_rate"
            )
        decay = ema_decay(self.config.training.ema, self.step, self.clock.expected_steps(self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), [p.detach() for p in self.parameters], 1.0 - decay)
        if self.clock.budget is None:
            return
        if not self.rows:  # a prediction takes less than half of a training step
            self._set_aside(0.5 * self.clock.step_seconds(self.step) / self.config.training.batch_size)
        if self.clock.progress(self.step) >= 1.0:
            self.stopped = "the time is up"

    # one epoch

    def begin_epoch(self) -> None:
        self.batches.epoch = self.epoch
        self.sums.zero_()

    def keep_start(self) -> dict:
        """Before the first step: the trained weights that the run begins with stay the best until others are. Their errors."""
        valid, self.best_loss = self.validate()
        self.best = self._copy_of_average()
        return valid

    def _copy_of_average(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}

    def end_epoch(self) -> None:
        """Validates the average, keeps it if it is the best, and reports."""
        start = time.monotonic()
        valid, valid_loss = self.validate()
        self._set_aside((time.monotonic() - start) / len(self.valid_frames))
        self.epoch += 1
        gain = valid_loss < self.best_loss
        if gain:
            self.best_loss, self.best_epoch = valid_loss, self.epoch
            self.best = self._copy_of_average()
        self._plateau(gain)
        row = {"epoch": self.epoch, "step": self.step, "seconds": round(self.clock.elapsed(), 1)}
        row |= {"learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= {f"train_{key}": value for key, value in self.fit_errors().items()}
        row |= {"valid_loss": valid_loss} | {f"valid_{key}": valid[key] for key in _LOGGED}
        self.rows.append(row | {"best": int(gain)})
        self.report(self.rows[-1])

    def _set_aside(self, per_frame: float) -> None:
        """Keeps time in the budget for what follows the last step: evaluations (seconds per frame) and plots."""
        if self.clock.budget is None:
            return
        self.n_shown = min(
            TRAIN_SHOWN, len(self.batches.samples), max(10, int(0.03 * self.clock.budget / max(per_frame, 1e-6)))
        )
        n_final = 2 * len(self.valid_frames) + self.n_test + self.n_shown
        self.clock.reserve = min(0.5 * self.clock.budget, PLOTS + 1.1 * per_frame * n_final)

    def validate(self) -> tuple[dict, float]:
        """(errors, loss) of the averaged weights on the validation set."""
        predictions = predict(self.averaged, self.valid_samples)
        value = loss_of_predictions(self.config.loss, self.valid_samples, predictions, self.stress_offset())
        return errors(self.valid_frames, predictions), value

    def stress_offset(self) -> float:
        """The fitted constant pressure of the stress labels, eV/A^3, with ASE's sign of a stress; 0 if none is fitted."""
        return OFFSET_UNIT * self.offset.item()

    def _plateau(self, gain: bool) -> None:
        training = self.config.training
        self.plateau_epochs = 0 if gain else self.plateau_epochs + 1
        if (
            training.schedule == "plateau"
            and self.plateau_epochs
            and not self.plateau_epochs % training.plateau_patience
        ):
            self.plateau_factor = max(self.plateau_factor * 0.5, training.final_learning_rate)
        if training.early_stopping and self.epoch - self.best_epoch >= training.early_stopping:
            self.stopped = f"no gain for {training.early_stopping} epochs"

    # all of it

    def checkpoint(self) -> Checkpoint:
        """Everything that the rest of the run depends on."""
        tensors = {f"weights.{name}": x for name, x in self.potential.state_dict().items()}
        tensors |= {f"averaged.{name}": x for name, x in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": x for name, x in self.best.items()}
        tensors |= optimizer_tensors(self.optimizer) | {"rng": torch.get_rng_state(), "offset": self.offset}
        state = {name: getattr(self, name) for name in _STATE}
        return Checkpoint(tensors, state | {"elapsed": self.clock.elapsed(), "begin": self.clock.begin})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts back what `checkpoint` gave."""
        for name in _STATE:
            setattr(self, name, checkpoint.state[name])
        self.clock.begin = checkpoint.state["begin"]
        self.potential.load_state_dict(_part(checkpoint, "weights"))
        self.averaged.load_state_dict(_part(checkpoint, "averaged"))
        self.best = {name: x.to(self.potential.device) for name, x in _part(checkpoint, "best").items()}
        load_optimizer(self.optimizer, checkpoint.tensors)
        self.offset.data.copy_(checkpoint.tensors["offset"])
        torch.set_rng_state(checkpoint.tensors["rng"])

    def best_potential(self) -> Potential:
        """The best average so far; the present average before the first validation."""
        if self.best:
            self.averaged.load_state_dict(self.best)
        return self.averaged


_STATE = ("epoch", "step", "best_epoch", "plateau_epochs", "plateau_factor", "best_loss", "rows", "stopped")
_LOGGED = ("energy_mae", "energy_rmse", "force_mae", "force_rmse", "stress_mae", "stress_rmse")


def _part(checkpoint: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
    return {name[len(kind) + 1 :]: x for name, x in checkpoint.tensors.items() if name.startswith(kind + ".")}
