"""The training configuration: what may stand in config.yaml, with defaults and checks.

The smallest one is

    data: {train: train.xyz, valid: valid.xyz}
    output: my_potential
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?")


def parse_time(text: str) -> float:
    """Seconds in "90s", "25min", "2h" or "1h30min".

    Raises:
        ValueError: no unit, another unit, or zero; with the text.
    """
    match = _TIME.fullmatch(str(text).replace(" ", ""))
    parts = [float(part or 0) for part in match.groups()] if match else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1)))
    if not seconds > 0:
        raise ValueError(f"a time such as 90s, 25min, 2h or 1h30min is wanted, got {text!r}")
    return seconds


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_file(value: Any) -> Any:
    return {"file": value} if isinstance(value, (str, Path)) else value


def _as_named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_time(value: Any) -> Any:
    if value is not None:
        parse_time(value)
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Section):
    """One file: a plain name in the config, or this with its hash and where it can be had."""

    file: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    source: str | None = None
    licence: str | None = None


Files = Annotated[list[Annotated[DataFile, BeforeValidator(_as_file)]], BeforeValidator(_as_list)]


class KeysConfig(_Section):
    """Names of the labels in the files; None: REF_energy, REF_forces, REF_stress, REF_virial(s), or the plain names."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


class DataConfig(_Section):
    """What to learn from.

    `valid` left out: the fraction `valid_fraction` of train, chosen by the seed. `test` is evaluated once at the end.
    `config_type_weights` multiplies the loss of frames by their config_type. `level_of_theory` goes to the card.
    """

    train: Annotated[Files, Field(min_length=1)]
    valid: Files = []
    test: Files = []
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    keys: KeysConfig = KeysConfig()
    config_type_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    level_of_theory: str = ""


class ModelConfig(BaseModel):
    """Which network; every other key is an argument of its class, e.g. n_layers: 3.

    `cutoff` in A. `dtype` is that of the weights.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Literal["mace", "nequip", "schnet", "tfn"] = "mace"
    cutoff: Annotated[float, Field(gt=0)] = 5.0


class LossConfig(_Section):
    """Sum of energy * L(E per atom) + forces * L(components) + virial * L(virial per atom), L = mse or huber.

    Units eV/atom, eV/A, eV/atom. The stress is compared as virial per atom, which is of the size of a force, so the
    same coefficient suits both. Nothing is normalised: these are the coefficients. `huber_delta` in the same units.
    `final_energy`: from half of the run on the energy's coefficient goes from `energy` to this one geometrically;
    validation has it from the start; left out: it stays.
    `stress_offset`: a constant pressure in the stress labels that the energies do not have (the Pulay stress of a plane-wave
    basis: energies and stresses then have their minimum and zero at different volumes) is fitted beside the network and
    left out of it. Only for sets whose energies cover several volumes.
    """

    kind: Literal["mse", "huber"] = "mse"
    energy: Annotated[float, Field(ge=0)] = 30.0
    final_energy: Annotated[float, Field(ge=0)] | None = None
    forces: Annotated[float, Field(ge=0)] = 1.0
    virial: Annotated[float, Field(ge=0)] = 1.0
    huber_delta: Annotated[float, Field(gt=0)] = 0.1
    stress_offset: bool = False


# Muon where it was measured to be better, see benchmarks/ablation.md.
OPTIMIZERS = {"mace": "muon", "nequip": "muon", "tfn": "adamw", "schnet": "adamw"}
LEARNING_RATES = {"mace": 0.01, "nequip": 0.01, "tfn": 0.02, "schnet": 0.005}
TRAINED = 0.3  # times as much for a network that is trained already


class TrainingConfig(_Section):
    """The loop. `epochs` counts without a time limit; with `max_time` only the clock does.

    `learning_rate` (left out: what suits the model) is reached after the fraction `warmup` of the run and decays to
    `final_learning_rate` times itself along a cosine that ends with the run; schedule "plateau" halves it after
    `plateau_patience` epochs without gain.
    `ema` is the decay of the averaged weights, which are validated and saved. `gradient_clip` bounds the norm, 0: none.
    `optimizer`: see train_optimizers; left out: what suits the model. `early_stopping`: epochs without gain before stopping, 0: never. `batch_size` counts frames; left out: about 128
    atoms, at most 8 frames and a twentieth of the training set.
    """

    epochs: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["muon", "adamw"] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    final_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    plateau_patience: Annotated[int, Field(ge=1)] = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    amsgrad: bool = True
    gradient_clip: Annotated[float, Field(ge=0)] = 10.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    early_stopping: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class TrainConfig(_Section):
    """All of config.yaml.

    `reference_energies`: eV per isolated atom by symbol; species that are left out come from isolated-atom frames
    (one atom without periodicity, or config_type IsolatedAtom) or else from least squares.
    `shift`: per-species energies centre the untrained network on the data, which learns the better for it. With `limits`
    atoms that lose their neighbours lose it; without either (false) the network has to learn all of the binding energy.
    `zbl`: the Ziegler-Biersack-Littmark repulsion acts from where the distances of the training set end, see
    train_terms, and the network learns what remains: atoms that collide repel, where data say nothing.
    `limits`: node energies of the trained potential stay within what they are in the training set and a margin
    (train_limits), so that the core wins where atoms crowd. For the models that have limits, mace and nequip.
    `members`: networks trained one after the other with the seeds from `seed` on, whose mean is the potential
    (train_members): more exact where data are few, at as many times the cost. They share `max_time`.
    `start`: a trained potential (folder, file or shipped name) whose weights, scale, shifts, core and reference energies the
    run begins with (train_start); `model` is left out then, and the learning rate is 0.3 times as large. Of a mean of networks
    `members` take one each, in turn.
    """

    data: DataConfig
    output: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
    model: Annotated[ModelConfig, BeforeValidator(_as_named)] = ModelConfig()
    reference_energies: dict[str, float] = {}
    shift: bool = True
    zbl: bool = True
    limits: bool = True
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    max_time: Annotated[str | None, BeforeValidator(_as_time)] = None
    seed: Annotated[int, Field(ge=0)] = 0
    members: Annotated[int, Field(ge=1, le=32)] = 1
    start: Annotated[DataFile | None, BeforeValidator(_as_file)] = None

    @property
    def max_seconds(self) -> float | None:
        return None if self.max_time is None else parse_time(self.max_time)


class ConfigError(ValueError):
    """A config that cannot be used; the message names key and value."""


def load_config(config: str | Path | dict | TrainConfig) -> TrainConfig:
    """A checked configuration from a YAML file, a dictionary or itself.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: not YAML, an unknown key (with the nearest valid one) or a wrong value (with key and value).
    """
    if isinstance(config, TrainConfig):
        return config
    name = "config"
    if isinstance(config, (str, Path)):
        name = str(config)
        config = _load_yaml(Path(config))
    if not isinstance(config, dict):
        raise ConfigError(f"{name}: a mapping with the keys data and output is wanted, got {config!r}")
    try:
        return TrainConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {_explain(item)}" for item in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Plain YAML, where a key that stands twice is an error instead of silently the last one."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"config file {str(path)!r} does not exist")
    try:
        return yaml.load(path.read_text(), _Loader)  # a SafeLoader: plain values only
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _explain(item: dict) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(location)
    if item["type"] == "extra_forbidden":
        valid = sorted(_fields(location[:-1]))
        return f"unknown key {where!r}{nearest(location[-1], valid)}"
    if item["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"


def nearest(name: str, valid: list[str]) -> str:
    """ "; did you mean 'x'? (valid: ...)" for an unknown name."""
    close = difflib.get_close_matches(name, valid, 1, 0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"; {hint}valid: {', '.join(valid)}"


def _fields(location: list[str]) -> set[str]:
    """The keys that are valid at a place in the config."""
    section: Any = TrainConfig
    for part in location:
        if part.isdigit():
            continue
        section = _model_in(section.model_fields[part].annotation)
    return set(section.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation) if get_origin(annotation) in (list, Union, Annotated) else ():
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def to_yaml(config: TrainConfig) -> str:
    """The config as YAML text, every default written out."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
