"""Training a potential from a configuration: data, statistics, loop, and a folder that EquiCalculator takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Callable, Sequence

import torch
from rich.console import Console

from .data_batches import prepare, relabelled
from .data_report import data_report, show
from .distill import of_labelled
from .potential import FILE_NAME, Potential
from .potential_file import write_atomic
from .train_checkpoint import CheckpointError, load_checkpoint
from .train_config import TrainConfig, load_config, to_yaml
from .train_loop import fit
from .train_members import FOLDER, finish_mean, member_of
from .train_module import Run
from .train_output import TrainResult, finish
from .train_progress import Display, number
from .train_schedule import Clock
from .train_sets import Sets, read_sets, resolved
from .train_start import check_species, core_of, with_start
from .train_statistics import build_potential, check_model, species_of, statistics
from .train_terms import complete, repulsion, without


def train(
    config: str | Path | dict | TrainConfig,
    *,
    max_time: str | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    quiet: bool = False,
    after_step: Callable[[Run], None] = lambda run: None,
) -> TrainResult:
    """The output folder of the config holds the trained potential, its card, logs and plots.

    While it runs, the folder holds the best potential so far, and checkpoint/ what a resume needs; checkpoint/ is
    removed at the end of the run, and kept after Ctrl-C or a kill. With several `members` their folders are members/0, ...
    in it, and the mean comes at the end.

    Args:
        config: a YAML file, a dictionary or a TrainConfig.
        max_time: wall-clock budget for everything, such as "25min"; overrides the config's.
        resume: go on from the checkpoint that a killed or interrupted run left.
        data_dir: a folder in which data files are looked for, by name and sha256.
        quiet: print nothing.
        after_step: called after every optimizer step, with the run.

    Raises:
        ConfigError, FileNotFoundError, ValueError: bad config, missing or unusable data.
        FileExistsError: the output folder holds a potential or an unfinished run, and `resume` is False.
    """
    started = time.monotonic()
    name = config if isinstance(config, (str, Path)) else None
    config = load_config(config)
    if max_time is not None:
        config = load_config(config.model_dump(exclude_unset=True) | {"max_time": max_time})
    console = Console(quiet=quiet)
    folder = Path(config.output)
    if _finished(folder, resume):
        console.print(f"{folder} holds a finished potential: nothing to resume")
        potential = Potential.load(folder)
        return TrainResult(folder, potential, potential.metadata.get("errors", {}), "finished before")
    beside = Path(name).parent if name else None
    config, starts = with_start(config, beside, data_dir)
    check_model(config.model)
    if config.start:
        part = f", network 1 of its {len(starts)}" if len(starts) > 1 == config.members else ""
        console.print(f"starting from {config.start.file}{part}")
    sets = read_sets(config, beside=beside, below=data_dir)
    config = resolved(config, sets)
    if config.members == 1:
        return _train_network(config, sets, starts[0], resume, started, console, after_step)
    return _train_members(config, sets, starts, resume, console, after_step)


def _train_members(
    config: TrainConfig,
    sets: Sets,
    starts: Sequence[Potential | None],
    resume: bool,
    console: Console,
    after_step: Callable[[Run], None],
) -> TrainResult:
    """Several networks and their mean; where one is interrupted, what is known of that one."""
    folder, potentials = Path(config.output), []
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "train.yaml", to_yaml(config).encode())
    for k in range(config.members):
        one, parts = member_of(config, sets, k)
        console.print(f"network {k + 1} of {config.members}: {one.output}")
        if not _finished(Path(one.output), resume):
            start = starts[k % len(starts)]
            result = _train_network(one, parts, start, resume, time.monotonic(), console, after_step)
            if result.stopped == "interrupted":
                return result
        potentials.append(_of_same_run(one))
    return finish_mean(config, sets, potentials, console)


def _train_network(
    config: TrainConfig,
    sets: Sets,
    start: Potential | None,
    resume: bool,
    started: float,
    console: Console,
    after_step: Callable[[Run], None],
) -> TrainResult:
    """One network, in the folder that the config names."""
    folder = Path(config.output)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run, facts = prepare_run(config, sets, start, folder, resume, started, console)
        with Display(console, folder / "log.csv") as display:
            run.report = lambda row: _epoch_done(run, display, folder)
            fit(run, _checkpoint(folder), extra=facts, after_step=lambda run: (display.step(run), after_step(run)))
    return finish(run, sets, facts, console)


def prepare_run(
    config: TrainConfig,
    sets: Sets,
    start: Potential | None,
    folder: Path,
    resume: bool,
    started: float,
    console: Console,
) -> tuple[Run, dict]:
    """(run, facts): everything up to the first step, or what a checkpoint says; facts go into every checkpoint."""
    samples = prepare(sets.train, [config.model.cutoff])
    species = species_of([*sets.train, *sets.isolated])
    if start:
        check_species(start, species_of(sets.train))  # isolated atoms of other elements change nothing
        species = start.species
    valid_samples = prepare(sets.valid, [config.model.cutoff], species)
    prepare(sets.test, [config.model.cutoff], species)
    term = core_of(start) if start and config.zbl else None
    term = term or repulsion(config, species, of_labelled(samples, sets.train))
    train, valid = without(sets.train, term), without(sets.valid, term)
    samples, valid_samples = relabelled(samples, train), relabelled(valid_samples, valid)
    checkpoint = load_checkpoint(_checkpoint(folder)) if resume and _checkpoint(folder).exists() else None
    identity = _identity(config)
    if checkpoint:
        _check_same_run(checkpoint.state["identity"], identity, _checkpoint(folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "train.yaml", to_yaml(config).encode())
    found = checkpoint.state["statistics"] if checkpoint else statistics(config, train, sets.isolated, samples, start)
    n_steps = config.training.epochs * -(-len(samples) // config.training.batch_size)
    elapsed = (checkpoint.state["elapsed"] if checkpoint else 0.0) + time.monotonic() - started
    groups = {"train": sets.train, "valid": sets.valid, "test": sets.test, "isolated": sets.isolated}
    report = data_report(groups, samples, found, sets.notes)
    write_atomic(folder / "data_report.json", (json.dumps(report, indent=1) + "\n").encode())
    show(report, console)
    run = Run(
        config,
        build_potential(config, found, start),
        samples,
        (valid, valid_samples),
        Clock(config.max_seconds, n_steps, elapsed),
        term,
        n_test=len(sets.test),
        start=start,
    )
    if checkpoint:
        run.restore(checkpoint)
        console.print(f"resumed after epoch {run.epoch}, {run.clock.elapsed():.0f} s into the run")
    elif start:
        valid = run.keep_start()
        shown = ", ".join(number(valid[key]) for key in ("energy_mae", "force_mae", "stress_mae"))
        console.print(f"before the first step: validation MAE {shown} (meV/atom, meV/A, meV/A^3)")
    return run, {"statistics": found, "identity": identity}


def _of_same_run(config: TrainConfig) -> Potential:
    """The finished potential in the config's folder; CheckpointError where it is of another config."""
    potential = Potential.load(config.output)
    before = load_config(potential.metadata["training"]["config"] | {"output": config.output})
    _check_same_run(_identity(before), _identity(config), Path(config.output))
    return potential


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint" / "last.safetensors"


def _finished(folder: Path, resume: bool) -> bool:
    """True where a resumed run has nothing left to do; an output folder that is in the way is an error."""
    complete = (folder / FILE_NAME).exists()
    unfinished = _checkpoint(folder).exists() or ((folder / FOLDER).exists() and not complete)
    if not resume and unfinished:
        raise FileExistsError(
            f"output: {folder} holds an unfinished run: resume it, remove it, or choose another folder"
        )
    if not resume and complete:
        raise FileExistsError(f"output: {folder} holds a potential: remove it or choose another folder")
    return complete and not unfinished


def _identity(config: TrainConfig) -> dict:
    """What must be the same when a run is resumed."""
    content = config.model_dump(exclude={"output", "max_time"})
    content["start"] = config.start and config.start.sha256
    for part in ("train", "valid", "test"):
        content["data"][part] = [entry["sha256"] for entry in content["data"][part]]
    return content


def _check_same_run(before: dict, now: dict, path: Path, where: str = "") -> None:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _check_same_run(old, new, path, f"{where}{key}.")
        elif old != new:
            raise CheckpointError(f"{path} is of another run: {where}{key} was {old!r}, now it is {new!r}")


def _epoch_done(run: Run, display: Display, folder: Path) -> None:
    display.epoch(run)
    if run.best_epoch == run.epoch:  # a killed run leaves its best potential
        run.averaged.metadata = {"training": {"unfinished_after_epoch": run.epoch}}
        complete(run.averaged, run.term).save(folder)
