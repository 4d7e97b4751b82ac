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
        budget: seconds for the whole run, with what precedes the first and follows the last step; None: count steps.
        total_steps: steps of the run without a budget.
        elapsed: seconds spent before (a resumed run, reading data).

    Attributes:
        begin: elapsed seconds at the first step of the run, where progress is 0.
        reserve: seconds kept for what follows the last step.
    """

    def __init__(self, budget: float | None, total_steps: int, elapsed: float = 0.0):
        self.budget, self.total_steps = budget, total_steps
        self._start = time.monotonic() - elapsed
        self.begin: float | None = None
        self.reserve = 0.0 if budget is None else min(3.0, 0.1 * budget)
        self._session: tuple[float, int] | None = None  # elapsed seconds and steps at the first step of this process

    def elapsed(self) -> float:
        """Seconds spent, those before a resume included."""
        return time.monotonic() - self._start

    def first_step(self, step: int) -> None:
        """To be called before each step; remembers the first."""
        if self._session is None:
            self._session = self.elapsed(), step
            self.begin = self._session[0] if self.begin is None else self.begin

    def progress(self, step: int) -> float:
        """The part of the run that is done after `step` steps."""
        if self.budget is None:
            return min(1.0, step / self.total_steps)
        begin = self.begin or 0.0
        return min(1.0, (self.elapsed() - begin) / max(self.budget - self.reserve - begin, 1e-9))

    def step_seconds(self, step: int) -> float:
        """Mean duration of a step of this process, epochs' ends included; 0 before the first."""
        if self._session is None or step <= self._session[1]:
            return 0.0
        return (self.elapsed() - self._session[0]) / (step - self._session[1])

    def expected_steps(self, step: int) -> float:
        """Steps of the whole run, as far as can be told after `step` steps."""
        if self.budget is None:
            return self.total_steps
        seconds = self.step_seconds(step)
        return step + max(0.0, self.budget - self.reserve - self.elapsed()) / seconds if seconds else 0.0
