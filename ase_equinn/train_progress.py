"""What a training run shows and logs: a progress bar with the time left, one line per epoch, log.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .potential_file import write_atomic
from .train_module import Run


def duration(seconds: float) -> str:
    """ "47 s", "12:05 min" or "3:07 h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    major, minor = divmod(whole if whole < 3600 else whole // 60, 60)
    return f"{major}:{minor:02d} {'min' if whole < 3600 else 'h'}"


def number(value: float | None) -> str:
    """Three digits; "-" where there is none."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


HEADER = (
    "epoch    time       lr       loss  |  training RMSE E, F, W  |  validation MAE E, F, S  (meV/atom, meV/A, meV/A^3)"
)


def epoch_line(row: dict) -> str:
    """One line of errors for the terminal."""
    fit = ", ".join(number(row[f"train_{key}"]) for key in ("energy_rmse", "force_rmse", "virial_rmse"))
    valid = ", ".join(number(row[f"valid_{key}"]) for key in ("energy_mae", "force_mae", "stress_mae"))
    mark = "  best" if row["best"] else ""
    return (
        f"{row['epoch']:5d} {duration(row['seconds']):>9} {row['learning_rate']:9.2e} {number(row['train_loss']):>9}"
        f"  |  {fit:^21}  |  {valid}{mark}"
    )


class Display:
    """Shows a run on a console and keeps its log.csv; without a terminal only the lines are written."""

    def __init__(self, console: Console, log: Path):
        self.console, self.log = console, log
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.fields[text]}"),
            console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=1.0, text="")

    def __enter__(self) -> Display:
        self.console.print(HEADER, highlight=False, soft_wrap=True)
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def epoch(self, run: Run) -> None:
        """After an epoch: its line and log.csv."""
        self.console.print(epoch_line(run.rows[-1]), highlight=False, soft_wrap=True)
        write_log(self.log, run.rows)

    def step(self, run: Run) -> None:
        """After a step: progress, time left, errors of this epoch so far."""
        if not self.console.is_terminal:
            return
        done = run.clock.progress(run.step)
        left = (run.clock.elapsed() - (run.clock.begin or 0.0)) * (1.0 - done) / max(done, 1e-6)
        now = run.fit_errors()
        text = (
            f"epoch {run.epoch + 1}, {duration(left)} left, "
            f"E {number(now['energy_rmse'])} meV/atom, F {number(now['force_rmse'])} meV/A"
        )
        self.progress.update(self.task, completed=done, text=text)


def write_log(path: Path, rows: list[dict]) -> None:
    """log.csv: one line per epoch; s, energies and virials in meV/atom, forces in meV/A, stresses in meV/A^3."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
