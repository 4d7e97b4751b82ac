"""Potential: a sum of models and terms plus per-species reference energies, as an object and as a file."""

import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import ase_equinn

from .graph import Graph
from .potential_build import build_potential, check_hyperparameters
from .potential_common import common_species, distinct_cutoffs, floating, per_species, scales
from .potential_file import (
    MAX_NUMBER,
    NETWORK_DTYPES,
    UNITS,
    PotentialFileError,
    canonical_json,
    decode,
    encode,
    write_atomic,
)
from .potential_find import FILE_NAME, file_of, find_potential, shipped_potentials
from .uncertainty import Uncertainty

__all__ = ["ARCHITECTURES", "FILE_NAME", "Potential", "PotentialFileError", "read_header", "shipped_potentials"]

# A file names an architecture by these keys only: nothing is imported because a file says so.
ARCHITECTURES = {
    "schnet": ("ase_equinn.models.schnet", "SchNet"),
    "tfn": ("ase_equinn.models.tfn", "TFN"),
    "nequip": ("ase_equinn.models.nequip", "NequIP"),
    "mace": ("ase_equinn.models.mace", "MACE"),
    "zbl": ("ase_equinn.terms.zbl", "ZBL"),
}


class Potential(nn.Module):
    """The energy of an atom is the scaled sum of its models' energies plus shift and reference energy of its species.

        E_i = sum_k scale_k * model_k(graph, vectors)_i + shift[Z_i] + reference_energies[Z_i]

    The models run in their own dtype; everything after them is float64, and so are the per-species energies, whatever
    `.to` is asked for. Models with the same cutoff share one graph.

    Args:
        models: one model or term, or a list of them (see DESIGN section 3), all of one floating dtype.
        reference_energies: {atomic number: eV} of the isolated atoms, for every species; None means zero.
        scale: factor of every model, or one factor per model (a ZBL term has 1.0).
        shift: eV per atom, or {atomic number: eV}.
        metadata: anything JSON can hold: level_of_theory, training_data, errors, ...
        uncertainty: of the forces, see calibrate.calibrate; for all species.

    Attributes:
        species: atomic numbers that every model knows, ascending.
        cutoffs: distinct cutoffs in A, descending; `graphs` and `vectors` below are tuples parallel to it.
        graph_of: for every model the index of its cutoff.

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
        uncertainty: Uncertainty | None = None,
    ):
        super().__init__()
        models = [models] if isinstance(models, nn.Module) else list(models)
        if not models:
            raise ValueError("a potential needs at least one model, received none")
        self.models = nn.ModuleList(models)
        self.species = common_species(models)
        self.cutoffs = distinct_cutoffs(models)
        self.graph_of = tuple(self.cutoffs.index(float(model.cutoff)) for model in models)
        self.scale = scales(scale, len(models))
        references = dict.fromkeys(self.species, 0.0) if reference_energies is None else reference_energies
        self.reference_energies = per_species("reference_energies", references, self.species)
        shifts = shift if isinstance(shift, dict) else dict.fromkeys(self.species, shift)
        self.shift = per_species("shift", shifts, self.species)
        self.metadata = dict(metadata or {})
        if uncertainty is not None and uncertainty.species != self.species:
            raise ValueError(f"uncertainties are for the species {uncertainty.species}, the models for {self.species}")
        self.uncertainty = uncertainty
        dtype, device = floating(models)
        offset = torch.full((MAX_NUMBER + 1,), math.nan, dtype=torch.float64)
        for number in self.species:
            offset[number] = self.reference_energies[number] + self.shift[number]
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
        energy = self.node_offset(graphs[0].numbers)
        for model, k, scale in zip(self.models, self.graph_of, self.scale, strict=True):
            energy = torch.add(energy, model(graphs[k], vectors[k]), alpha=scale)
        return energy

    def node_offset(self, numbers: Tensor) -> Tensor:
        """shift + reference energy of each atom, (n,) eV, float64; nan for an element that is not in `species`."""
        return self._offset[numbers]

    def descriptors(self, graphs: tuple[Graph, ...], vectors: tuple[Tensor, ...]) -> Tensor:
        """Rotation-invariant features (n, k) of each atom: those of the first model that has some.

        (Of the networks of a mean one tells nearly as much as all: benchmarks/uncertainty.md.)

        Raises:
            ValueError: no model has descriptors.
        """
        k = self.describing()
        return self.models[k].descriptors(graphs[self.graph_of[k]], vectors[self.graph_of[k]])

    def describing(self) -> int:
        """Which of the models gives the `descriptors`; what they raise."""
        for k, model in enumerate(self.models):
            if hasattr(model, "descriptors"):
                return k
        raise ValueError(f"none of the models {[type(model).__name__ for model in self.models]} has descriptors")

    def isolated_energy(self, number: int) -> float:
        """Energy in eV of an atom without neighbours: reference energy + shift + what the models give without edges."""
        if number not in self.species:
            raise ValueError(f"element {number!r} is not in the potential's species {self.species}")
        return self.isolated_energies()[number]

    def isolated_energies(self) -> dict[int, float]:
        """`isolated_energy` of every species."""
        graph, vectors = self._isolated()
        with torch.no_grad():
            energies = self.node_energy((graph,) * len(self.cutoffs), (vectors,) * len(self.cutoffs))
        return dict(zip(self.species, energies.tolist(), strict=True))

    def n_descriptors(self) -> int:
        """How many `descriptors` there are; what they raise."""
        graph, vectors = self._isolated()
        with torch.no_grad():
            return self.descriptors((graph,) * len(self.cutoffs), (vectors,) * len(self.cutoffs)).shape[1]

    def _isolated(self) -> tuple[Graph, Tensor]:
        """An atom of every species without neighbours, and no edge vectors."""
        n = len(self.species)
        graph = Graph(
            numbers=torch.tensor(self.species),
            cell=torch.zeros(n, 3, 3, dtype=torch.float64),
            pbc=torch.zeros(n, 3, dtype=torch.bool),
            edge_index=torch.zeros(2, 0, dtype=torch.int64),
            shift=torch.zeros(0, 3, dtype=torch.int32),
            row_ptr=torch.zeros(n + 1, dtype=torch.int64),
            batch=torch.arange(n),
            n_graphs=n,
        ).to(self.device)
        return graph, torch.zeros(0, 3, dtype=self.dtype, device=self.device)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the potential file and return its path; an existing file stays as it is if that fails.

        Args:
            path: a folder, made if missing, for `model.safetensors`; or a file name that ends in ".safetensors".

        Raises:
            ValueError: an architecture that files cannot name, metadata that JSON cannot hold, weights that are not
                finite.
        """
        path = file_of(path)
        try:
            content = self.to_file()
        except ValueError as error:
            raise ValueError(f"{path} is not written: {error}") from error
        write_atomic(path, encode(*content))
        return path

    def to_file(self) -> tuple[dict, dict[str, Tensor]]:
        """The header of a potential file, but for the hash, and the tensors by name; what `save` raises."""
        tensors = self.models.state_dict()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"tensor {name!r} holds numbers that are not finite")
        header = self._header()
        if self.uncertainty is not None:
            header["format_version"] = 2
            header["uncertainty"], more = self.uncertainty.to_file()
            tensors = tensors | more
        return header, tensors

    def _header(self) -> dict:
        """The fields of potential_file.HEADER_FIELDS, but for the hash."""
        if self.dtype not in NETWORK_DTYPES.values():
            raise ValueError(f"a potential file holds {' or '.join(NETWORK_DTYPES)} models, not {self.dtype}")
        header = {
            "format_version": 1,
            "code_version": ase_equinn.__version__,
            "models": [_describe(model, scale) for model, scale in zip(self.models, self.scale, strict=True)],
            "species": list(self.species),
            "reference_energies": _to_json(self.reference_energies),
            "shift": _to_json(self.shift),
            "isolated_energies": _to_json(self.isolated_energies()),
            "cutoff": self.cutoff,
            "units": UNITS,
            "dtype": {dtype: name for name, dtype in NETWORK_DTYPES.items()}[self.dtype],
            "metadata": self.metadata,
        }
        for key in ("models", "metadata"):
            try:
                canonical_json(header[key])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} cannot be written as JSON ({error}): {str(header[key])[:500]}") from None
        return header

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu"
    ) -> "Potential":
        """The potential that a file, a folder or a shipped name holds, in evaluation mode; nothing in it is executed.

        Args:
            path: see `find_potential`.
            dtype: float32 or float64, in which the models shall run; None takes the dtype of the file.
            device: where it shall live.

        Raises:
            PotentialFileError: no such potential, or the file is not intact: the message names the file and the fault.
            ValueError: another dtype.
        """
        if dtype is not None and dtype not in (*NETWORK_DTYPES, *NETWORK_DTYPES.values()):
            raise ValueError(f"dtype must be one of {', '.join(NETWORK_DTYPES)}, received {dtype!r}")
        path = find_potential(path)
        header, tensors = decode(path)
        if "members" in header:
            raise PotentialFileError(
                f"{path}: a committee of {len(header['members'])} potentials, not one: EquiCalculator takes it as it "
                "is, Committee.load(...).members are its potentials"
            )
        try:
            potential = build_potential(cls, ARCHITECTURES, header, tensors)
        except PotentialFileError as error:
            raise PotentialFileError(f"{path}: {error}") from error
        return potential.to(device=device, dtype=NETWORK_DTYPES.get(dtype, dtype))


def read_header(path: str | os.PathLike) -> dict:
    """What a potential's file says about itself (`potential_file.FIELDS`), after all checks of its integrity."""
    return decode(find_potential(path))[0]


def _describe(model: nn.Module, scale: float) -> dict:
    """The entry of a model in the header; refuses what a reader would refuse."""
    name = architecture(model)
    check_hyperparameters(name, type(model), model.hyperparameters)
    return {"architecture": name, "hyperparameters": model.hyperparameters, "scale": scale}


def architecture(model: nn.Module) -> str:
    """The name that files and configs have for the model's class; ValueError where there is none."""
    place = (type(model).__module__, type(model).__qualname__)
    for name, known in ARCHITECTURES.items():
        if known == place:
            return name
    raise ValueError(f"{place[1]} has no name in a potential file, only {', '.join(ARCHITECTURES)} have")


def _to_json(table: dict[int, float]) -> dict[str, float]:
    return {str(number): energy for number, energy in table.items()}
