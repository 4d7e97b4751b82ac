"""What changes during a run: the learning rate, the decay of the weight average, and the clock that both follow."""

from __future__ import annotations

import math
import time

from .train_config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, progress: float) -> float:
    """The factor of the learning rate at `progress` in 0..1: linear warm-up, then cosine decay or a constant.

    cosine: f + (1 - f) (1 + cos(pi x)) / 2 with x the part of the run after the warm-up and f = final_learning_rate.
    """
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    if config.schedule != "cosine":
        return 1.0
    x = min(1.0, (progress - config.warmup) / (1.0 - config.warmup))
    final = config.final_learning_rate
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * x))


def ema_decay(decay: float, step: int, total_steps: float) -> float:
    """The decay of the weight average at a step (from 1): `decay`, less in the first steps and in short runs.

    (1 + t) / (10 + t) bounds it, so that random initial weights are forgotten; and its horizon 1 / (1 - decay) is at
    most a twentieth of the run.
    """
    return max(0.0, min(decay, (1 + step) / (10 + step), 1.0 - 20.0 / max(total_steps, 20.0)))


class Clock:
    """Progress of a run in 0..1, by steps, or by the wall clock where there is a time budget.

    Args:
        budget: seconds for the whole run with what follows the last step; None: count steps.
        total_steps: steps of the run without a budget.
        elapsed: seconds spent before (a resumed run).
    """

    def __init__(self, budget: float | None, total_steps: int, elapsed: float = 0.0):
        self.budget, self.total_steps = budget, total_steps
        self._start = time.monotonic() - elapsed
        self.reserve = 0.0 if budget is None else min(3.0, 0.1 * budget)

    def elapsed(self) -> float:
        """Seconds spent, those before a resume included."""
        return time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """The part of the run that is done after `step` steps."""
        if self.budget is None:
            return min(1.0, step / self.total_steps)
        return min(1.0, self.elapsed() / max(self.budget - self.reserve, 1e-9))

    def expected_steps(self, step: int, since: tuple[float, int]) -> float:
        """Steps of the whole run; with a budget by the speed since (seconds, step)."""
        if self.budget is None:
            return self.total_steps
        seconds, steps = self.elapsed() - since[0], step - since[1]
        if steps < 1 or seconds <= 0:
            return 0.0
        return step + max(0.0, self.budget - self.reserve - self.elapsed()) * steps / seconds
