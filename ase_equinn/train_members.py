"""Several networks that differ in their seed, trained one after the other, and their mean as the potential."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from rich.console import Console

from .potential import Potential
from .potential_mean import mean_potential
from .train_config import TrainConfig
from .train_module import TRAIN_SHOWN
from .train_output import TrainResult, files, write_folder
from .train_progress import duration
from .train_sets import Sets

FOLDER = "members"
SHARE = 0.95  # of the time; the rest is for the evaluation of the mean


def member_of(config: TrainConfig, sets: Sets, k: int) -> tuple[TrainConfig, Sets]:
    """Config and sets of network `k`: seed + k, its part of the time, a folder below the whole's; test data are left for the
    mean."""
    seconds = config.max_seconds
    changed = {
        "members": 1,
        "seed": config.seed + k,
        "output": str(Path(config.output) / FOLDER / str(k)),
        "max_time": None if seconds is None else f"{SHARE * seconds / config.members:.3f}s",
        "data": config.data.model_copy(update={"test": []}),
    }
    return config.model_copy(update=changed), sets._replace(test=[])


def finish_mean(config: TrainConfig, sets: Sets, potentials: Sequence[Potential], console: Console) -> TrainResult:
    """Writes the mean of the trained `potentials`, evaluated on all sets, to the config's folder."""
    folder, origins = Path(config.output), [potential.metadata for potential in potentials]
    potential = mean_potential(potentials)
    potential.metadata = {
        "level_of_theory": config.data.level_of_theory,
        "training_data": {**origins[0]["training_data"], "files": files(config)},
        "training": {
            "config": config.model_dump(exclude={"output"}, exclude_none=True),
            **_together([origin["training"] for origin in origins]),
        },
    }
    write_folder(folder, potential, sets, min(TRAIN_SHOWN, len(sets.train)), console)
    console.print(
        f"the mean of {len(potentials)} networks, trained in {duration(potential.metadata['training']['seconds'])}; use it "
        f"with EquiCalculator({str(folder)!r}); the networks themselves are in {folder / FOLDER}"
    )
    return TrainResult(folder, potential, potential.metadata["errors"], "")


def _together(trainings: Sequence[dict]) -> dict:
    """What `metadata` says of one training, of all: sums of epochs, steps and seconds; one row for each."""
    rows = [
        {"seed": one["config"]["seed"], **{key: one[key] for key in ("epochs", "steps", "seconds", "best_epoch")}}
        for one in trainings
    ]
    offsets = [one["stress_offset"] for one in trainings if "stress_offset" in one]
    return {
        "members": rows,
        **{key: sum(row[key] for row in rows) for key in ("epochs", "steps", "seconds")},
        "statistics": trainings[0]["statistics"],
        **({"stress_offset": sum(offsets) / len(offsets)} if offsets else {}),
    }
