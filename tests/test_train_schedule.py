"""Learning rate, decay of the average and progress as functions of steps and time."""

import math

import pytest

from ase_equinn import train_schedule
from ase_equinn.train_config import TrainingConfig
from ase_equinn.train_schedule import Clock, ema_decay, learning_rate_factor


def test_cosine_starts_small_peaks_after_the_warm_up_and_ends_at_the_final_rate():
    config = TrainingConfig(warmup=0.1, final_learning_rate=0.01)
    assert learning_rate_factor(config, 0.0) == 0.01
    assert learning_rate_factor(config, 0.05) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(config, 0.55) == pytest.approx(0.505)
    assert learning_rate_factor(config, 1.0) == pytest.approx(0.01)
    values = [learning_rate_factor(config, 0.1 + 0.9 * k / 50) for k in range(51)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_other_schedules_keep_the_rate(schedule):
    config = TrainingConfig(schedule=schedule, warmup=0.0)
    assert {learning_rate_factor(config, k / 10) for k in range(11)} == {1.0}


def test_decay_grows_with_steps_and_fits_short_runs():
    assert ema_decay(0.99, 1, 10**6) == pytest.approx(2 / 11)
    assert ema_decay(0.99, 10**5, 10**6) == 0.99
    assert 1 / (1 - ema_decay(0.999, 500, 1000)) == pytest.approx(50)  # a twentieth of the run
    assert ema_decay(0.99, 5, 0.0) == 0.0 == ema_decay(0.0, 100, 1000)


def test_average_of_a_constant_forgets_its_start():
    """The weight of the initial value after t steps is prod d_k; for d_k = (1+k)/(10+k) that is O(t^-9)."""
    weight = math.prod(ema_decay(0.999, k, 10**9) for k in range(1, 101))
    assert weight < 1e-9 < 0.999**100


class Time:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    fake = Time()
    monkeypatch.setattr(train_schedule, "time", fake)
    return fake


def test_progress_by_steps(time):
    clock = Clock(None, 200)
    time.now += 1e6
    assert clock.progress(50) == 0.25 and clock.expected_steps(50) == 200


def test_progress_by_time_spans_first_step_to_reserve(time):
    """Reading data took 20 of 220 s, 0 at the first step, and 1 where only the reserve is left."""
    clock = Clock(220.0, 0, elapsed=20.0)
    clock.reserve = 20.0
    clock.first_step(0)
    assert clock.progress(0) == 0.0
    time.now += 90.0
    assert clock.progress(30) == pytest.approx(0.5)
    assert clock.step_seconds(30) == pytest.approx(3.0) and clock.expected_steps(30) == pytest.approx(60.0)
    time.now += 90.0
    assert clock.progress(60) == 1.0


def test_a_resumed_run_keeps_its_progress(time):
    clock = Clock(220.0, 0, elapsed=110.0)
    clock.begin, clock.reserve = 20.0, 20.0
    clock.first_step(30)
    assert clock.progress(30) == pytest.approx(0.5)
    time.now += 9.0
    assert clock.step_seconds(33) == pytest.approx(3.0)
