"""The untrained potential: species, reference energies, scale, shift and neighbours taken from the training set."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import MappingProxyType
from typing import Mapping, Sequence

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from .data import Frame
from .data_batches import Batch
from .derivatives import energy_only
from .graph import edge_vectors
from .nn import SpeciesIndex
from .nn_crowding import Crowding
from .potential import ARCHITECTURES, Potential
from .reference import fit_reference_energies, isolated_atom_energies
from .train_config import ConfigError, ModelConfig, TrainConfig, nearest

SAMPLE = 50  # structures on which the network is run to centre its energies
START = "start"  # where reference energies are from
OTHER_LEVEL = 1.0  # eV by which no training set differs from another at the same level of theory


def species_of(frames: Sequence[Frame]) -> tuple[int, ...]:
    """Atomic numbers that occur, ascending."""
    return tuple(sorted({int(number) for frame in frames for number in frame.atoms.numbers}))


def counts(frames: Sequence[Frame], species: Sequence[int]) -> np.ndarray:
    """Atoms of each species in each frame, (frames, species), float64."""
    numbers = [frame.atoms.numbers for frame in frames]
    return np.array([[np.count_nonzero(n == z) for z in species] for n in numbers], dtype=np.float64).reshape(
        len(frames), len(species)
    )


def force_scale(frames: Sequence[Frame]) -> float:
    """Root mean square force component, eV/A; without forces, the standard deviation of energies per atom; else 1."""
    forces = [frame.forces.ravel() for frame in frames if frame.forces is not None]
    scale = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else 0.0
    if not scale > 1e-4:
        energies = [frame.energy / len(frame.atoms) for frame in frames if frame.energy is not None]
        scale = float(np.std(energies)) if energies else 0.0
    return scale if scale > 1e-4 else 1.0


def batch_size(frames: Sequence[Frame]) -> int:
    """Frames in a batch of about 128 atoms; at most 8 and a twentieth of the set, at least 1."""
    atoms = sum(len(frame.atoms) for frame in frames) / len(frames)
    return max(1, min(round(128 / atoms), len(frames) // 20, 8))


def model_class(name: str) -> type:
    """The class that a config calls by `name`."""
    module, attribute = ARCHITECTURES[name]
    return getattr(importlib.import_module(module), attribute)


def check_model(config: ModelConfig) -> None:
    """Raises ConfigError for a hyper-parameter that the model lacks, with the nearest one."""
    known = set(inspect.signature(model_class(config.name)).parameters)
    known -= {"species", "cutoff", "avg_num_neighbors"}
    for key in config.model_extra or {}:
        if key not in known:
            raise ConfigError(f"unknown key 'model.{key}' of {config.name}{nearest(key, sorted(known | {'cutoff'}))}")


def build_model(config: TrainConfig, species: Sequence[int], avg_num_neighbors: float) -> torch.nn.Module:
    """The network with random weights that depend on the config's seed alone."""
    check_model(config.model)
    options = dict(config.model.model_extra or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = model_class(config.model.name)(
                species=list(species),
                cutoff=config.model.cutoff,
                avg_num_neighbors=avg_num_neighbors,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model: {error}") from error
    return model.to(getattr(torch, config.training.dtype))


def reference_energies(
    config: TrainConfig,
    frames: Sequence[Frame],
    isolated: Sequence[Frame],
    species: Sequence[int],
    before: Mapping[int, float] = MappingProxyType({}),
) -> tuple[dict[int, float], dict[int, str], list[str]]:
    """({number: eV}, {number: where it is from}, warnings): from the config, isolated atoms, `before`, or least squares."""
    atoms = [int(frame.atoms.numbers[0]) for frame in isolated]
    alone = isolated_atom_energies(atoms, [frame.energy for frame in isolated])
    known = {**before, **alone}
    origin = dict.fromkeys(before, START)
    origin |= {z: f"isolated atom, {Path(isolated[atoms.index(z)].origin).name}" for z in alone}
    for symbol, energy in config.reference_energies.items():
        if symbol not in atomic_numbers:
            raise ConfigError(f"reference_energies: {symbol!r} is not an element")
        known[atomic_numbers[symbol]] = energy
        origin[atomic_numbers[symbol]] = "config"
    warnings = []
    labelled = [frame for frame in frames if frame.energy is not None]
    if labelled and not known.keys() >= set(species):
        fit = fit_reference_energies([f.atoms.numbers for f in labelled], [f.energy for f in labelled], known=known)
        fitted = sorted(fit.energies.keys() - known.keys())
        origin |= dict.fromkeys(fitted, "least squares")
        known = fit.energies
        if fit.warning:
            warnings.append(
                f"the compositions do not tell {', '.join(chemical_symbols[z] for z in fitted)} apart (condition "
                f"number {fit.condition:.3g}): the smallest reference energies that fit are used, which is fine for "
                "one composition; to exchange atoms, give isolated-atom frames or reference_energies"
            )
    found = {z: known.get(z, 0.0) for z in species}
    return found, {z: origin.get(z, "zero, no energies") for z in species}, warnings


def shifts(potential: Potential, frames: Sequence[Frame], samples: Sequence[Batch]) -> dict[int, float]:
    """Per-species eV that, added, centre the potential's energies on the labels, by least squares per atom.

    Where compositions do not tell elements apart, an element gets in proportion to how many atoms touch its own (nn_crowding),
    as if every bond were worth the same: limits let an atom lose its shift with its neighbours.
    """
    labelled = [i for i, frame in enumerate(frames) if frame.energy is not None]
    chosen = labelled[:: max(1, len(labelled) // SAMPLE)]
    if not chosen:
        return dict.fromkeys(potential.species, 0.0)
    residual, crowding, numbers = [], [], []
    touching = Crowding(potential.species, max(potential.cutoffs)).double().to(potential.device)
    index = SpeciesIndex(potential.species).to(potential.device)
    for i in chosen:
        sample = samples[i].to(potential.device)
        graph = sample.graphs[0]
        species = index(graph.numbers)
        crowding += touching(graph, edge_vectors(graph, sample.positions), species)[0].tolist()
        numbers += species.tolist()
        energy = float(energy_only(potential, sample.graphs, sample.positions).sum())
        residual.append((frames[i].energy - energy) / len(frames[i].atoms))
    n = counts([frames[i] for i in chosen], potential.species)
    atoms = np.bincount(numbers, minlength=len(potential.species))
    bonds = np.bincount(numbers, crowding, minlength=len(potential.species)) / np.maximum(atoms, 1)
    bonds = np.maximum(bonds, 1e-3 * max(bonds.max(), 1.0))
    per_bond, residual = n * bonds / n.sum(1, keepdims=True), np.array(residual)
    alike = np.linalg.lstsq(per_bond.sum(1, keepdims=True), residual, rcond=None)[0]
    apart = np.linalg.lstsq(per_bond, residual - per_bond.sum(1) * alike, rcond=1e-3)[0]
    return dict(zip(potential.species, map(float, bonds * (alike + apart))))


def statistics(
    config: TrainConfig,
    frames: Sequence[Frame],
    isolated: Sequence[Frame],
    samples: Sequence[Batch],
    start: Potential | None = None,
) -> dict:
    """What is taken from the training set, as JSON: species, avg_num_neighbors, scale, reference energies and shift.

    A trained network, `start`, keeps its own, but for reference energies that config or data give, and for what its
    energies on the training set still lack on average, which is added to its shift.
    """
    species = start.species if start else species_of([*frames, *isolated])
    n_edges = sum(sample.graphs[0].edge_index.shape[1] for sample in samples)
    before = start.reference_energies if start else {}
    energies, origin, warnings = reference_energies(config, frames, isolated, species, before)
    found = {
        "species": list(species),
        "avg_num_neighbors": n_edges / sum(len(sample.positions) for sample in samples) or 1.0,
        "scale": force_scale(frames),
        "reference_energies": {chemical_symbols[z]: energies[z] for z in species},
        "reference_energies_from": {chemical_symbols[z]: origin[z] for z in species},
        "shift": {chemical_symbols[z]: 0.0 for z in species},
        "warnings": warnings,
    }
    if start:
        found["avg_num_neighbors"] = start.models[0].hyperparameters["avg_num_neighbors"]
        found["scale"] = start.scale[0]
        found["shift"] = {chemical_symbols[z]: start.shift[z] for z in species}
    if config.shift:
        added = shifts(build_potential(config, found, start), frames, samples)
        found["shift"] = {symbol: energy + added[atomic_numbers[symbol]] for symbol, energy in found["shift"].items()}
        far = max(added.values(), key=abs)
        if abs(far) > OTHER_LEVEL and START in origin.values():
            warnings.append(
                f"the energies lie up to {far:.3g} eV per atom away from those of start: of another level of theory? Then "
                "give isolated-atom frames or reference_energies, or atoms alone keep the energies of start's"
            )
    return found


def build_potential(config: TrainConfig, found: dict, start: Potential | None = None) -> Potential:
    """The potential with the given `statistics` and the weights of `start`, or random ones from the config's seed, on the
    config's device."""
    potential = Potential(
        [build_model(config, found["species"], found["avg_num_neighbors"])],
        reference_energies={atomic_numbers[symbol]: energy for symbol, energy in found["reference_energies"].items()},
        scale=found["scale"],
        shift={atomic_numbers[symbol]: energy for symbol, energy in found["shift"].items()},
    )
    if start:
        potential.models[0].load_state_dict(start.models[0].state_dict())
    return potential.to(choose_device(config.training.device))


def choose_device(name: str) -> torch.device:
    """The device that a config calls "auto", "cpu" or "cuda"."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device: 'cuda' is wanted, but torch finds no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
