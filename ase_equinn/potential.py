"""Potential: a sum of models and terms plus per-species reference energies, as an object and as a file."""

import difflib
import importlib
import inspect
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import ase_equinn

from .graph import Graph
from .potential_file import (
    FORMAT_VERSION,
    MAX_NUMBER,
    NETWORK_DTYPES,
    UNITS,
    PotentialFileError,
    canonical_json,
    decode,
    encode,
    write_atomic,
)

__all__ = ["ARCHITECTURES", "Potential", "PotentialFileError", "read_header", "shipped_potentials"]

FILE_NAME = "model.safetensors"

# A file names an architecture by these keys only: nothing is imported because a file says so.
ARCHITECTURES = {
    "schnet": ("ase_equinn.models.schnet", "SchNet"),
    "tfn": ("ase_equinn.models.tfn", "TFN"),
    "nequip": ("ase_equinn.models.nequip", "NequIP"),
}


class Potential(nn.Module):
    """The energy of an atom is the scaled sum of its models' energies plus shift and reference energy of its species.

        E_i = sum_k scale_k * model_k(graph, vectors)_i + shift[Z_i] + reference_energies[Z_i]

    The models run in their own dtype; everything after them is float64, and so are the per-species energies whatever `.to` is
    asked for. Models with the same cutoff share one graph.

    Args:
        models: one model or term, or a list of them (see DESIGN section 3), all of one floating dtype.
        reference_energies: {atomic number: eV} of the isolated atoms, for every species; None means zero.
        scale: factor of every model, or one factor per model (a ZBL term has 1.0).
        shift: eV per atom, or {atomic number: eV}.
        metadata: anything JSON can hold: level_of_theory, training_data, errors, ...

    Attributes:
        species: atomic numbers that every model knows, ascending.
        cutoffs: distinct cutoffs in A, descending; `graphs` and `vectors` below are tuples parallel to it.

    Raises:
        ValueError: models without a common species, or energies that are not finite or miss a species.
    """

    def __init__(
        self,
        models: nn.Module | list[nn.Module],
        *,
        reference_energies: dict[int, float] | None = None,
        scale: float | list[float] = 1.0,
        shift: float | dict[int, float] = 0.0,
        metadata: dict | None = None,
    ):
        super().__init__()
        models = [models] if isinstance(models, nn.Module) else list(models)
        if not models:
            raise ValueError("a potential needs at least one model, received none")
        self.models = nn.ModuleList(models)
        self.species = _common_species(models)
        self.cutoffs = tuple(sorted({float(model.cutoff) for model in models}, reverse=True))
        self._graph_of = tuple(self.cutoffs.index(float(model.cutoff)) for model in models)
        self.scale = _scales(scale, len(models))
        references = dict.fromkeys(self.species, 0.0) if reference_energies is None else reference_energies
        self.reference_energies = _per_species("reference_energies", references, self.species)
        shifts = shift if isinstance(shift, dict) else dict.fromkeys(self.species, shift)
        self.shift = _per_species("shift", shifts, self.species)
        self.metadata = dict(metadata or {})
        offset = torch.full((MAX_NUMBER + 1,), math.nan, dtype=torch.float64)
        for number in self.species:
            offset[number] = self.reference_energies[number] + self.shift[number]
        dtype, device = _floating(models)
        self._offset = offset.to(device)  # not a buffer: `.to(torch.float32)` must leave it float64
        self.register_buffer("_probe", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._offset = self._offset.to(self._probe.device)
        return self

    @property
    def cutoff(self) -> float:
        """The largest cutoff, A."""
        return self.cutoffs[0]

    @property
    def dtype(self) -> torch.dtype:
        """dtype in which the models run."""
        return self._probe.dtype

    @property
    def device(self) -> torch.device:
        return self._probe.device

    def node_energy(self, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]) -> Tensor:
        """Energy of each atom.

        Args:
            graphs: one graph for each of `cutoffs`.
            vectors: their edge vectors (E, 3), A, in `dtype`.

        Returns:
            (n,) eV, float64; nan for an element that is not in `species`.
        """
        energy = self._offset[graphs[0].numbers]
        for model, k, scale in zip(self.models, self._graph_of, self.scale, strict=True):
            energy = torch.add(energy, model(graphs[k], vectors[k]), alpha=scale)
        return energy

    def descriptors(self, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]) -> Tensor:
        """Rotation-invariant features (n, k) of each atom: those of every model that has some, side by side."""
        parts = [
            model.descriptors(graphs[k], vectors[k])
            for model, k in zip(self.models, self._graph_of, strict=True)
            if hasattr(model, "descriptors")
        ]
        if not parts:
            raise ValueError(f"none of the models {[type(model).__name__ for model in self.models]} has descriptors")
        return torch.cat(parts, dim=1)

    def isolated_energy(self, number: int) -> float:
        """Energy in eV of one atom without neighbours: reference energy + shift + what the models give without edges."""
        if number not in self.species:
            raise ValueError(f"element {number!r} is not in the potential's species {self.species}")
        graph = Graph(
            numbers=torch.tensor([number]),
            cell=torch.zeros(1, 3, 3, dtype=torch.float64),
            pbc=torch.zeros(1, 3, dtype=torch.bool),
            edge_index=torch.zeros(2, 0, dtype=torch.int64),
            shift=torch.zeros(0, 3, dtype=torch.int32),
            row_ptr=torch.zeros(2, dtype=torch.int64),
            batch=torch.zeros(1, dtype=torch.int64),
            n_graphs=1,
        ).to(self.device)
        vectors = torch.zeros(0, 3, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self.node_energy((graph,) * len(self.cutoffs), (vectors,) * len(self.cutoffs)).item()

    def save(self, path: str | os.PathLike) -> Path:
        """Write the potential file and return its path; an existing file stays as it is if that fails.

        Args:
            path: a folder, made if missing, for `model.safetensors`; or a file name that ends in ".safetensors".

        Raises:
            ValueError: an architecture that files cannot name, metadata that JSON cannot hold, weights that are not finite.
        """
        path = Path(path)
        if path.suffix != ".safetensors" or path.is_dir():
            path = path / FILE_NAME
        tensors = {name: tensor for name, tensor in self.models.state_dict().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"tensor {name!r} holds numbers that are not finite: not saved to {path}")
        write_atomic(path, encode(self._header(), tensors))
        return path

    def _header(self) -> dict:
        header = {
            "format_version": FORMAT_VERSION,
            "code_version": ase_equinn.__version__,
            "models": [
                {"architecture": _architecture(model), "hyperparameters": model.hyperparameters, "scale": scale}
                for model, scale in zip(self.models, self.scale, strict=True)
            ],
            "species": list(self.species),
            "reference_energies": {str(z): energy for z, energy in self.reference_energies.items()},
            "shift": {str(z): energy for z, energy in self.shift.items()},
            "isolated_energies": {str(z): self.isolated_energy(z) for z in self.species},
            "cutoff": self.cutoff,
            "units": UNITS,
            "dtype": {dtype: name for name, dtype in NETWORK_DTYPES.items()}[self.dtype],
            "metadata": self.metadata,
        }
        for key, value in [("metadata", self.metadata), ("models", header["models"])]:
            try:
                canonical_json(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} cannot be written as JSON ({error}): {str(value)[:500]}") from None
        return header

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu"
    ) -> "Potential":
        """The potential that a file, a folder or a shipped name holds; nothing in it is executed.

        Args:
            path: see `find_potential`.
            dtype: in which the models shall run; None takes the dtype of the file.
            device: where it shall live.

        Raises:
            PotentialFileError: no such potential, or the file is not intact; see `potential_file`.
        """
        path = find_potential(path)
        header, tensors = decode(path)
        try:
            potential = _build(cls, header, tensors)
        except PotentialFileError as error:
            raise PotentialFileError(f"{path}: {error}") from error
        dtype = NETWORK_DTYPES.get(dtype, dtype)
        return potential.to(device=device, dtype=dtype)


def read_header(path: str | os.PathLike) -> dict:
    """What the file of a potential says about itself (see `potential_file.HEADER_FIELDS`), after the same checks as a load."""
    return decode(find_potential(path))[0]


def shipped_potentials() -> dict[str, Path]:
    """{name: folder} of the potentials that come with the package."""
    package = Path(ase_equinn.__file__).parent
    found = {}
    for home in (package.parent / "potentials", package / "potentials"):
        found |= {file.parent.name: file.parent for file in sorted(home.glob(f"*/{FILE_NAME}"))}
    return found


def find_potential(path: str | os.PathLike) -> Path:
    """The file that `path` means: a file, a folder that holds `model.safetensors`, or the name of a shipped potential.

    A name that is both a shipped potential and a local folder with another potential in it is refused: "./NAME" means the folder.

    Raises:
        PotentialFileError: nothing there; the message lists the shipped names.
    """
    here = Path(path)
    local = here / FILE_NAME if here.is_dir() else here
    shipped = shipped_potentials().get(path) if isinstance(path, str) else None
    if shipped is None and local.is_file():
        return local
    if shipped is not None:
        shipped = shipped / FILE_NAME
        if local.is_file() and local.read_bytes() != shipped.read_bytes():
            raise PotentialFileError(
                f"{path!r} is a shipped potential and also {local.absolute()}: write './{path}' for the latter, "
                f"{str(shipped.parent)!r} for the shipped one"
            )
        return shipped
    names = sorted(shipped_potentials())
    close = difflib.get_close_matches(here.name, names)
    problem = f"is a folder without {FILE_NAME}" if here.is_dir() else "is no file, no folder and no shipped potential"
    hint = f", did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise PotentialFileError(f"{str(path)!r} {problem}{hint} Shipped potentials: {', '.join(names) or 'none'}")


def _build(cls, header: dict, tensors: dict[str, Tensor]) -> Potential:
    models = []
    for entry in header["models"]:
        models.append(_build_model(entry["architecture"], entry["hyperparameters"], NETWORK_DTYPES[header["dtype"]]))
    state = nn.ModuleList(models)
    _check_tensors(state.state_dict(), tensors)
    state.load_state_dict(tensors)
    try:
        potential = cls(
            models,
            reference_energies={int(z): energy for z, energy in header["reference_energies"].items()},
            scale=[entry["scale"] for entry in header["models"]],
            shift={int(z): energy for z, energy in header["shift"].items()},
            metadata=header["metadata"],
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise PotentialFileError(f"the header does not describe a potential: {error}") from error
    if list(potential.species) != header["species"] or potential.cutoff != header["cutoff"]:
        raise PotentialFileError(
            f"the header says species {header['species']} and cutoff {header['cutoff']}, its models "
            f"{list(potential.species)} and {potential.cutoff}"
        )
    return potential.eval()


def _build_model(architecture: str, hyperparameters: dict, dtype: torch.dtype) -> nn.Module:
    if architecture not in ARCHITECTURES:
        raise PotentialFileError(
            f"architecture {architecture[:80]!r} is not known, this ase_equinn has {', '.join(sorted(ARCHITECTURES))}"
        )
    module, name = ARCHITECTURES[architecture]
    model_class = getattr(importlib.import_module(module), name)
    known = list(inspect.signature(model_class).parameters)
    for key in hyperparameters:
        if key not in known:
            raise PotentialFileError(f"{architecture} has no hyper-parameter {key[:80]!r}, it has {', '.join(known)}")
    try:
        with torch.random.fork_rng(devices=[]):
            return model_class(**hyperparameters).to(dtype)
    except Exception as error:  # the hyper-parameters are input: whatever they break is the file's fault
        raise PotentialFileError(
            f"{architecture} cannot be built from {str(hyperparameters)[:500]}: {type(error).__name__}: {error}"
        ) from error


def _check_tensors(expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    if set(expected) != set(tensors):
        missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise PotentialFileError(f"tensors are missing: {str(missing)[:500]}, or not expected: {str(extra)[:500]}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            raise PotentialFileError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the hyper-parameters want {wanted.dtype} "
                f"{tuple(wanted.shape)}"
            )


def _architecture(model: nn.Module) -> str:
    for name, place in ARCHITECTURES.items():
        if place == (type(model).__module__, type(model).__qualname__):
            return name
    raise ValueError(f"{type(model).__qualname__} has no name in a potential file, only {', '.join(ARCHITECTURES)}")


def _common_species(models: list[nn.Module]) -> tuple[int, ...]:
    common = set.intersection(*({int(z) for z in model.species} for model in models))
    if not common or min(common) < 1 or max(common) > MAX_NUMBER:
        raise ValueError(f"the models have no valid species in common: {[tuple(model.species) for model in models]}")
    return tuple(sorted(common))


def _scales(scale: float | list[float], n_models: int) -> tuple[float, ...]:
    scales = tuple(float(s) for s in scale) if isinstance(scale, list | tuple) else (float(scale),) * n_models
    if len(scales) != n_models or not all(math.isfinite(s) for s in scales):
        raise ValueError(f"scale {scale} is not one finite number for each of {n_models} models")
    return scales


def _per_species(name: str, energies: dict[int, float], species: tuple[int, ...]) -> dict[int, float]:
    """`energies` ordered by atomic number, checked to be finite and for exactly the species."""
    if set(energies) != set(species):
        raise ValueError(f"{name} are given for {sorted(energies)}, the species are {list(species)}")
    table = {number: float(energies[number]) for number in species}
    for number, energy in table.items():
        if not math.isfinite(energy):
            raise ValueError(f"{name} of element {number} is {energy} eV")
    return table


def _floating(models: list[nn.Module]) -> tuple[torch.dtype, torch.device]:
    """The floating dtype and the device that the models' parameters and buffers agree on."""
    tensors = [t for model in models for t in model.parameters() if t.is_floating_point()]
    dtypes = {t.dtype for t in tensors} or {torch.get_default_dtype()}
    devices = {t.device for t in tensors} or {torch.device("cpu")}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(f"the models disagree on dtype or device: {dtypes}, {devices}")
    return dtypes.pop(), devices.pop()
