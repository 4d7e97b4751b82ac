"""A potential from what a file holds, which is input like any other: checked, and built within limits."""

import importlib
import inspect
import math

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .potential_file import NETWORK_DTYPES, PotentialFileError
from .uncertainty import PREFIX, Uncertainty

MAX_INTEGER = 10_000  # of a hyper-parameter: channels, layers, knots, ...
MAX_LENGTH = 10_000  # of a list or string in the hyper-parameters
FREE_ELEMENTS = 10**8  # tensor elements that any constructor may make; e3nn's normalisations take 2.5e7
# How far the energy of an isolated atom may lie from the one that the file records, in units of 1 eV + |model's part|.
ISOLATED_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
_FACTORIES = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange, torch.linspace,
    Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.expand, Tensor.repeat,
}  # fmt: skip


class _AllocationLimit(TorchFunctionMode):
    """Stops a constructor before it makes more than `limit` tensor elements; every call counts as 1000 or more."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit, self.left = limit, limit

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _FACTORIES:
            self._take(_requested(function, args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self._take(result.numel() if isinstance(result, Tensor) else 0)
        return result

    def _take(self, count: float) -> None:
        self.left -= max(count, 1000)
        if self.left < 0:
            raise ValueError(f"it would make more than {self.limit} tensor elements, far more than the file holds")


def _requested(function, args: tuple, kwargs: dict) -> float:
    """An upper bound of the elements that a factory function is asked for."""
    if function in (torch.arange, torch.linspace):  # numbers below 1 may be a step
        numbers = [abs(v) for v in (*args, *kwargs.values()) if type(v) in (int, float) and v]
        return math.prod(max(v, 1 / v) for v in numbers)
    rest = args[1:] if args and isinstance(args[0], Tensor) else args
    sizes = kwargs.get("size", rest[0] if rest and isinstance(rest[0], tuple | list) else rest)
    sizes = [abs(v) for v in sizes if type(v) is int]
    return math.prod(sizes) ** (2 if function is torch.eye and len(sizes) == 1 else 1)


def check_hyperparameters(architecture: str, model_class: type, hyperparameters: dict) -> None:
    """Raises ValueError for a hyper-parameter that the class does not take, and for sizes that no potential has."""
    known = list(inspect.signature(model_class).parameters)
    for key, value in hyperparameters.items():
        if key not in known:
            raise ValueError(f"{architecture} has no hyper-parameter {key[:80]!r}, it has {', '.join(known)}")
        _check_size(f"{architecture}'s {key}", value)


def _check_size(name: str, value) -> None:
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError(f"{name} holds {str(value)[:80]}, at most {MAX_INTEGER} is allowed")
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_LENGTH:
        raise ValueError(f"{name} has length {len(value)}, at most {MAX_LENGTH} is allowed")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_size(name, item)


def build_potential(potential_class: type, architectures: dict[str, tuple[str, str]], header: dict, tensors: dict):
    """The potential that the content of an intact file describes, in evaluation mode.

    Args:
        architectures: {name: (module, class)}; nothing else is imported.
        header, tensors: from `potential_file.decode`.

    Raises:
        PotentialFileError: whatever does not fit.
    """
    n_elements, models = sum(tensor.numel() for tensor in tensors.values()), []
    for entry in header["models"]:
        name = entry["architecture"]
        if name not in architectures:
            raise PotentialFileError(
                f"architecture {name[:80]!r} is not known, this version of ase_equinn has {', '.join(architectures)}"
            )
        module, model_class = architectures[name]
        model_class = getattr(importlib.import_module(module), model_class)
        models.append(build_model(name, model_class, entry["hyperparameters"], n_elements))
    weights = nn.ModuleList(models).to(NETWORK_DTYPES[header["dtype"]])
    names = [name for name in tensors if "uncertainty" in header and name.startswith(PREFIX)]
    more = {name: tensors[name] for name in names}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in more}
    check_tensors(weights.state_dict(), tensors)
    try:
        weights.load_state_dict(tensors)
        potential = potential_class(
            models,
            reference_energies={int(z): energy for z, energy in header["reference_energies"].items()},
            scale=[entry["scale"] for entry in header["models"]],
            shift={int(z): energy for z, energy in header["shift"].items()},
            metadata=header["metadata"],
            uncertainty=_uncertainty(header, more),
        ).eval()
        isolated = potential.isolated_energies()
    except Exception as error:  # what the models make of the file's values is the file's fault
        raise PotentialFileError(f"its content is no potential: {type(error).__name__}: {str(error)[:500]}") from error
    _check_meaning(potential, isolated, header)
    _check_descriptors(potential)
    return potential


def _uncertainty(header: dict, tensors: dict[str, Tensor]) -> Uncertainty | None:
    if "uncertainty" not in header:
        return None
    return Uncertainty.from_file(header["uncertainty"], tensors, tuple(header["species"]))


def _check_descriptors(potential) -> None:
    """Raises PotentialFileError unless uncertainties, where there are some, are for the descriptors of the models."""
    if potential.uncertainty is None:
        return
    expected = potential.uncertainty.n_descriptors
    try:
        found = potential.n_descriptors()
    except Exception as error:
        raise PotentialFileError(f"its uncertainties need descriptors: {type(error).__name__}: {error}") from error
    if found != expected:
        raise PotentialFileError(f"its uncertainties are for {expected} descriptors, its models have {found}")


def _check_meaning(potential, isolated: dict[int, float], header: dict) -> None:
    """Raises PotentialFileError unless species, cutoff and energies of isolated atoms are those of the header."""
    if list(potential.species) != header["species"] or potential.cutoff != header["cutoff"]:
        raise PotentialFileError(
            f"the header says species {header['species']} and cutoff {header['cutoff']}, its models say "
            f"{list(potential.species)} and {potential.cutoff}"
        )
    for z, energy in isolated.items():
        recorded = header["isolated_energies"][str(z)]
        part = abs(recorded - potential.reference_energies[z] - potential.shift[z])
        if not abs(energy - recorded) <= ISOLATED_TOLERANCE[header["dtype"]] * (1 + part):
            raise PotentialFileError(
                f"an isolated atom of element {z} has the energy {energy} eV with this version of ase_equinn, but "
                f"{recorded} eV with version {header['code_version'][:80]!r}, which wrote the file"
            )


def build_model(architecture: str, model_class: type, hyperparameters: dict, n_elements: int) -> nn.Module:
    """The model with random weights; torch's random state stays as it was.

    Args:
        n_elements: tensor elements in the file; a model that needs far more is refused before they are made.

    Raises:
        PotentialFileError: whatever the hyper-parameters break.
    """
    try:
        check_hyperparameters(architecture, model_class, hyperparameters)
    except ValueError as error:
        raise PotentialFileError(str(error)) from None
    try:
        with torch.random.fork_rng(devices=[]), _AllocationLimit(FREE_ELEMENTS + 20 * n_elements):
            return model_class(**hyperparameters)
    except Exception as error:  # the hyper-parameters are the file's: so is any fault that they cause
        raise PotentialFileError(
            f"{architecture} cannot be built from {str(hyperparameters)[:500]}: {type(error).__name__}: "
            f"{str(error)[:500]}"
        ) from error


def check_tensors(expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raises PotentialFileError unless names, dtypes and shapes agree."""
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise PotentialFileError(
            f"tensors that are missing: {str(missing)[:500]}; that no model has: {str(extra)[:500]}"
        )
    for name, tensor in tensors.items():
        wanted = expected[name]
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            raise PotentialFileError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the hyper-parameters want {wanted.dtype} "
                f"{tuple(wanted.shape)}"
            )
