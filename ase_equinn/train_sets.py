"""The frames of a training run: files found, read, weighted and split as the config says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .data import Frame, FrameSet, Keys, apply_weights, file_sha256, is_isolated_atom, read_frames, split
from .data_files import find_file
from .train_config import LEARNING_RATES, OPTIMIZERS, TRAINED, ConfigError, DataConfig, DataFile, TrainConfig, nearest
from .train_statistics import batch_size


class Sets(NamedTuple):
    """The frames of a run, isolated atoms apart, and the files they are from."""

    train: list[Frame]
    valid: list[Frame]
    test: list[Frame]
    isolated: list[Frame]
    files: dict[str, list[DataFile]]
    notes: list[str]


def read_sets(config: TrainConfig, beside: Path | None = None, below: str | Path | None = None) -> Sets:
    """Training, validation and test frames of a config; for `beside` and `below` see data_files.find_file.

    Without validation files a seeded part of the training frames is taken.

    Raises:
        FileNotFoundError: one message for all files that are missing, with the source, licence and hash of each.
        ValueError: see data.read_frames; no structure to train or to validate on.
    """
    data, located = config.data, locate(config.data, beside, below)
    notes, files, frames = [], {}, {}
    for part in ("train", "valid", "test"):
        wanted, paths = getattr(data, part), located[part]
        files[part] = [f.model_copy(update={"sha256": file_sha256(path)}) for f, path in zip(wanted, paths)]
        found = read_frames(paths, Keys(**data.keys.model_dump())) if paths else FrameSet([], {}, [])
        frames[part], notes = found.frames, notes + found.notes
    _check_weights(config, frames)
    frames = {part: apply_weights(group, data.config_type_weights) for part, group in frames.items()}
    isolated = [frame for frame in frames["train"] if is_isolated_atom(frame)]
    for part in frames:
        frames[part] = [frame for frame in frames[part] if not is_isolated_atom(frame)]
    if not frames["train"]:
        raise ValueError("data.train: the files hold no structure to train on (isolated atoms apart)")
    if not data.valid:
        frames["train"], frames["valid"] = split(frames["train"], data.valid_fraction, config.seed)
        notes.append(
            f"no validation file: {len(frames['valid'])} of the training frames (seed {config.seed}) are kept for it"
        )
    elif not frames["valid"]:
        raise ValueError("data.valid: the files hold no structure to validate on (isolated atoms apart)")
    return Sets(frames["train"], frames["valid"], frames["test"], isolated, files, notes)


def locate(data: DataConfig, beside: Path | None, below: str | Path | None) -> dict[str, list[Path]]:
    """The paths of the train, valid and test files; where any cannot be used, one error names all of those."""
    found, problems = {part: [] for part in ("train", "valid", "test")}, []
    for part, paths in found.items():
        for f in getattr(data, part):
            known = {"sha256": f.sha256, "source": f.source, "licence": f.licence}
            try:
                paths.append(find_file(f.file, **known, beside=beside, below=below))
            except (FileNotFoundError, ValueError) as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        unique = dict.fromkeys(map(str, problems))
        raise FileNotFoundError("\n".join([f"{len(problems)} data files are missing", *unique]))
    return found


def resolved(config: TrainConfig, sets: Sets) -> TrainConfig:
    """The config with what was found out: hashes of the files, batch size, optimizer, learning rate."""
    data = config.data.model_copy(update=sets.files)
    usual = LEARNING_RATES[config.model.name] * (TRAINED if config.start else 1.0)
    found = {
        "optimizer": config.training.optimizer or OPTIMIZERS[config.model.name],
        "batch_size": config.training.batch_size or batch_size(sets.train),
        "learning_rate": config.training.learning_rate or usual,
    }
    return config.model_copy(update={"data": data, "training": config.training.model_copy(update=found)})


def _check_weights(config: TrainConfig, frames: dict[str, list[Frame]]) -> None:
    present = sorted({frame.config_type for group in frames.values() for frame in group})
    for name in config.data.config_type_weights:
        if name not in present:
            raise ConfigError(f"data.config_type_weights: no frame has config_type {name!r}{nearest(name, present)}")
