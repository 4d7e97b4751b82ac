"""`start: potential` in a config: a training that begins with the weights of a trained network instead of random ones.

For fine-tuning to other data, for students that go on from one of their teachers, for a second training with another loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from ase.data import chemical_symbols
from torch import nn

from .data import file_sha256
from .data_files import find_file, origin
from .potential import Potential, architecture
from .potential_file import PotentialFileError
from .potential_find import find_potential, shipped_potentials
from .terms.zbl import ZBL
from .train_config import ConfigError, DataFile, ModelConfig, TrainConfig
from .train_statistics import check_model


def with_start(
    config: TrainConfig, beside: Path | None = None, below: str | Path | None = None
) -> tuple[TrainConfig, list[Potential | None]]:
    """(config, starts): the config with what its `start` says of the model, and one potential for each network of that.

    These hold the network, and the repulsive cores. A mean (`members`) has several, which get its shift; all else has one.
    [None] where the config has no `start`.

    Args:
        config: `start` names a file, a folder or a shipped potential, and the wanted sha256 of the file.
        beside: the folder of the config.
        below: the folder given by the user, in which a file is looked for by name and by sha256.

    Raises:
        PotentialFileError: no such potential, or not intact.
        FileNotFoundError: the folder `below` does not exist.
        ConfigError: another sha256; models that training does not know; the config's own `model` is another one.
    """
    if config.start is None:
        return config, [None]
    path = _located(config.start, beside, below)
    found = config.start.model_copy(update={"sha256": file_sha256(path)})
    if config.start.sha256 not in (None, found.sha256):
        known = origin(config.start.source, config.start.licence, config.start.sha256)
        raise ConfigError(f"start: {path} is not the same potential: its sha256 is {found.sha256}{known}")
    starts = _networks(Potential.load(path), path)
    return config.model_copy(update={"start": found, "model": _model(config.model, starts[0].models[0])}), starts


def _located(entry: DataFile, beside: Path | None, below: str | Path | None) -> Path:
    """The file that is meant: a potential's file, folder or shipped name, from here or beside the config; or one below."""
    here = Path(entry.file).exists() or entry.file in shipped_potentials()
    if not here and beside and (beside / entry.file).exists():
        return find_potential(beside / entry.file)
    if not here and below:
        try:
            return find_file(entry.file, sha256=entry.sha256, below=below)
        except (FileNotFoundError, ValueError):
            if not Path(below).is_dir():
                raise
    try:
        return find_potential(entry.file)
    except PotentialFileError as error:
        raise PotentialFileError(f"start: {error}{origin(entry.source, entry.licence, entry.sha256)}") from None


def _networks(whole: Potential, path: Path) -> list[Potential]:
    """A potential for each network of a mean, or of the single one."""
    networks = [k for k, model in enumerate(whole.models) if any(True for _ in model.parameters())]
    cores = [k for k, model in enumerate(whole.models) if isinstance(model, ZBL)]
    n_mean = len(whole.metadata.get("training", {}).get("members", [None]))
    if len(networks) != n_mean or len(networks) + len(cores) != len(whole.models):
        held = ", ".join(type(model).__name__ for model in whole.models)
        raise ConfigError(
            f"start: {path}: wanted is a network, or the mean that a training with `members` leaves, with or without ZBL cores; "
            f"got the sum of {held}"
        )
    return [
        Potential(
            [whole.models[i] for i in (k, *cores)],
            reference_energies=whole.reference_energies,
            scale=[whole.scale[k] * n_mean, *(whole.scale[core] if n_mean == 1 else 1.0 for core in cores)],
            shift=whole.shift,
            metadata=whole.metadata,
        )
        for k in networks
    ]


def _model(given: ModelConfig, network: nn.Module) -> ModelConfig:
    """The config of the network; ConfigError where a key of the `given` one says something else, with both values."""
    name = architecture(network)
    wanted = {key: getattr(given, key) for key in given.model_fields_set}
    if wanted.pop("name", name) != name:
        raise ConfigError(f"model.name: the network of start is {name!r}, got {given.name!r}")
    check_model(given.model_copy(update={"name": name}))
    limits = {"limits": wanted.pop("limits")} if "limits" in wanted else {}
    own = {key: value for key, value in network.hyperparameters.items() if key != "limits"}
    try:
        other = type(network)(**own | wanted).hyperparameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: {error}") from error
    for key in wanted:
        if other[key] != own[key]:
            raise ConfigError(f"model.{key}: the network of start has {own[key]!r}, got {wanted[key]!r}")
    same = {key: value for key, value in own.items() if key not in ("species", "avg_num_neighbors")}
    return ModelConfig(**{"name": name} | same | limits)


def check_species(start: Potential, species: Sequence[int]) -> None:
    """Raises ConfigError for elements that the start's network has no weights for."""
    new = [chemical_symbols[z] for z in species if z not in start.species]
    if new:
        known = ", ".join(chemical_symbols[z] for z in start.species)
        raise ConfigError(f"start: the network knows {known}; the data hold {', '.join(new)} too")


def core_of(start: Potential) -> ZBL | None:
    """The repulsive core, with the scale 1, that the start's network has learned beside: with another it would have to learn anew.

    Of several, as a mean of networks that were trained apart may have, the narrowest.
    """
    core = None
    for model, scale in zip(start.models, start.scale, strict=True):
        if isinstance(model, ZBL):
            radii = model.radii if core is None else list(map(min, core.radii, model.radii))
            amplitudes = [scale * amplitude for amplitude in model.amplitudes]
            core = ZBL(**model.hyperparameters | {"radii": radii, "amplitudes": amplitudes})
    return core
