"""EquiCalculator: Atoms -> Graph -> Potential -> ASE results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.outputs import Properties, all_outputs

from ase_equinn.backend import BACKENDS, evaluator_of, use_backend
from ase_equinn.calculator_arguments import atom_indices, find_device, load_models, one_of
from ase_equinn.calculator_guard import guard_of
from ase_equinn.calculator_modes import own_modes
from ase_equinn.calculator_results import STD, check_finite, forces_sigma, merge, results_of
from ase_equinn.calculator_snapshot import Snapshot
from ase_equinn.derivatives import hessian
from ase_equinn.evaluator import Evaluator
from ase_equinn.graph import COINCIDENT, Graph, check_atoms, check_coincident, graph_and_vectors
from ase_equinn.neighbors import BACKENDS as NEIGHBORS
from ase_equinn.neighbors import NeighborList
from ase_equinn.potential import Potential
from ase_equinn.potential_committee import Committee
from ase_equinn.uncertainty_spread import Spread

DTYPES = {"float32": torch.float32, "float64": torch.float64}
WITHOUT_GRADIENT = {"energy", "free_energy", "energies", "energy_std"}
ARRAYS = {"positions", "numbers", "initial_charges", "initial_magmoms"}
FULLY_PERIODIC = {"stress", "stresses", "stress_std"}


class EquiCalculator(Calculator):
    """An ASE calculator for one potential or for a committee of them.

    Results, float64: `energy` and the equal `free_energy` (eV); `energies` (n,), which sum to the energy; `forces`
    (n, 3) eV/A; where all three directions are periodic, `stress` (6,) and `stresses` (n, 6), which sum to the stress,
    eV/A^3 in ASE's sign and order (xx yy zz yz xz xy).

    A request for the energy alone takes no gradient; any other request computes and caches everything. Results are
    kept until positions, numbers, cell, pbc, initial charges or magnetic moments change by any amount, or the value of
    an entry of `atoms.info` / `atoms.arrays` that a model names in its attribute `info_keys` / `array_keys`.

    A committee (a list of M > 1 potentials) gives the mean of every property over its members and, as further results,
    the sample standard deviations of each component, `energy_std`, `forces_std` (n, 3) and `stress_std` (6,):

        std = sqrt(sum_m (x_m - mean)^2 / (M - 1))      in the unit of x

    `forces_sigma` (n,) is the root mean square error to expect of each force, eV/A, of a potential with uncertainties
    (see `calibrate`) or of a calibrated committee (see `calibrate_committee`); of any other committee the spread
    sqrt(sum_c forces_std_c^2). Given if asked for, or with a guard.

    Args:
        model: a potential's folder or file, the name of a shipped potential, a Potential (copied: neither is the
            caller's ever changed, nor do its later changes matter here), or a list of these; a calibrated committee:
            its folder or file, or a Committee.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: "float32" or "float64" for the network; positions, sums and results are float64 in any case.
        skin: A; neighbour lists are rebuilt when atoms may have moved by half of it. Results do not depend on it.
        backend: "auto" (the fastest implementation of the operators), "llvm", "triton" or "reference", see `use_backend`.
        neighbors: what finds the neighbours, see `NeighborList`.
        guard: None, "warn" or "stop": what to do where `forces_sigma` of an atom is beyond the threshold, see `Guard`.
        guard_threshold: eV/A; None means twice the largest sigma of the validation set; a list needs a number.
        guard_file: where "stop" saves the structure, as extended XYZ.

    Attributes:
        backend: the implementation in use.
        timings: seconds spent in "neighbors" (checks and graphs), "model" (energies and gradients) and "total" by the
            "count" evaluations so far, and their "backend"; answers from the cache are not counted.

    `EquiCalculator(**calc.todict())` gives an equal calculator, except that a Potential is represented there by a text
    which describes it. Pickles and deep copies carry the weights, but no neighbour lists and timings.

    Raises:
        ValueError, TypeError: a bad argument; atoms that cannot be evaluated (unknown element, position that is not
            finite, periodic cell without volume, two atoms within 1e-4 A). The message has the value received.
        PropertyNotImplementedError: stress where not all directions are periodic.
        CalculationFailed: the potential returned a value that is not finite.
        UncertainForces: guard="stop", and an atom is beyond the threshold.
    """

    name = "equinn"
    nolabel = True
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]
    default_parameters = {
        "device": "auto", "dtype": "float32", "skin": 1.0, "backend": "auto", "neighbors": "vesin",
        "guard": None, "guard_threshold": None, "guard_file": "uncertain.xyz",
    }  # fmt: skip

    def __init__(
        self,
        model: str | Path | Potential | Committee | Sequence[str | Path | Potential],
        *,
        device: str = "auto",
        dtype: str = "float32",
        skin: float = 1.0,
        backend: str = "auto",
        neighbors: str = "vesin",
        guard: str | None = None,
        guard_threshold: float | None = None,
        guard_file: str | Path = "uncertain.xyz",
    ):
        self._stored: list[Potential] = []  # as loaded or given, on the CPU: what dtype and device start from
        self._spread: Spread | None = None  # of a calibrated committee
        super().__init__(
            model=model, device=device, dtype=dtype, skin=skin, backend=backend, neighbors=neighbors,
            guard=guard, guard_threshold=guard_threshold, guard_file=guard_file,
        )  # fmt: skip
        self.use_cache = False  # ASE need not copy the atoms: `calculate` does

    def set(self, **kwargs) -> dict:
        """Changes arguments of the constructor and all that depends on them; returns those that changed.

        An argument that is refused leaves the calculator as it was.
        """
        known = ["model", *self.default_parameters]
        for key in kwargs:
            if key not in known:
                raise TypeError(f"EquiCalculator has no argument {key!r}, only {', '.join(known)}")
        changed = {k: v for k, v in kwargs.items() if k == "model" or v != self.parameters[k]}
        if not changed:
            return changed
        parameters, stored, spread = {**self.parameters, **changed}, self._stored, self._spread
        parameters |= {key: str(parameters[key]) for key in ("device", "guard_file")}
        if "model" in changed:
            with own_modes(torch.device("cpu")):
                stored, spread, parameters["model"] = load_models(changed["model"])
        self._assemble(stored, spread, parameters)
        self.reset()
        return changed

    def _assemble(self, stored: list[Potential], spread: Spread | None, parameters: dict) -> None:
        """Takes over checked parameters and all that follows from them, or raises and changes nothing."""
        device, dtype = find_device(parameters["device"]), DTYPES[one_of("dtype", parameters["dtype"], DTYPES)]
        backend = one_of("backend", parameters["backend"], BACKENDS)
        one_of("neighbors", parameters["neighbors"], NEIGHBORS)
        skin = parameters["skin"]
        if not isinstance(skin, Real):
            raise TypeError(f"skin must be a number of A, got {skin!r}")
        with own_modes(device):
            potentials = [copy.deepcopy(p).to(device=device, dtype=dtype).requires_grad_(False).eval() for p in stored]
            used = {use_backend(p, backend) for p in potentials}
            evaluators = [evaluator_of(p, backend) for p in potentials]
        species = set.intersection(*(set(p.species) for p in potentials))
        if not species:
            raise ValueError(f"the committee has no species in common: {[p.species for p in potentials]}")
        guard = guard_of(parameters, potentials, spread)
        cutoffs = sorted({c for p in potentials for c in p.cutoffs}, reverse=True)
        lists = {c: NeighborList(c, skin=skin, backend=parameters["neighbors"]) for c in cutoffs}
        self._stored, self._potentials, self._lists, self._evaluators = stored, potentials, lists, evaluators
        self._device, self._species, self._guard, self._spread = device, sorted(species), guard, spread
        models = [model for p in potentials for model in p.models]
        self._info = {key for model in models for key in getattr(model, "info_keys", ())}
        self._arrays = ARRAYS | {key for model in models for key in getattr(model, "array_keys", ())}
        extra = list(STD.values()) if len(potentials) > 1 else []
        extra += ["forces_sigma"] if extra or potentials[0].uncertainty is not None else []
        self.implemented_properties = type(self).implemented_properties + extra
        self.parameters.update(parameters)
        self.backend = "reference" if "reference" in used else used.pop()
        self.timings = {"neighbors": 0.0, "model": 0.0, "total": 0.0, "count": 0, "backend": self.backend}

    @property
    def atoms(self) -> Atoms | None:
        """A copy of the atoms that the results belong to."""
        return None if self._seen is None else self._seen.atoms()

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._seen = None if atoms is None else Snapshot(atoms, self._arrays, self._info)

    @property
    def potentials(self) -> tuple[Potential, ...]:
        """The potential, or the committee's members, on the calculator's device and in its dtype; not to be changed."""
        return tuple(self._potentials)

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """What evaluates each of the potentials."""
        return tuple(self._evaluators)

    def __getstate__(self) -> dict:
        derived = {"_potentials", "_evaluators", "_lists", "_guard", "timings"}
        return {key: value for key, value in self.__dict__.items() if key not in derived}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._assemble(self._stored, self._spread, self.parameters)

    def todict(self, skip_default: bool = True) -> dict:
        """The arguments of the constructor as JSON can hold them, without those at their default if so wished."""
        default = self.default_parameters if skip_default else {}
        return {k: v for k, v in self.parameters.items() if default.get(k) != v}

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the atoms that the results belong to, by value; exact, there is no tolerance."""
        return list(all_changes) if self._seen is None else self._seen.changes(atoms)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """See ASE; also the standard deviations of a committee."""
        if name in STD.values() and len(self._potentials) == 1:
            raise PropertyNotImplementedError(f"{name} needs a committee: EquiCalculator([first, second, ...])")
        if name == "forces_sigma" and name not in self.implemented_properties:
            raise PropertyNotImplementedError(
                "forces_sigma needs a potential with uncertainties (equinn calibrate gives it some) or a committee"
            )
        return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Properties:
        """The results that ASE has a name for: all but a committee's standard deviations."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("forces",), system_changes=all_changes
    ) -> None:
        """Fills `results`: with energies only if `properties` asks for nothing else, otherwise with everything."""
        start = perf_counter()
        atoms = self._atoms(atoms)
        if system_changes:
            self.reset()
        if FULLY_PERIODIC.intersection(properties) and not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in all three directions, pbc is {atoms.pbc.tolist()}: "
                "for a molecule, wire or slab add vacuum and set pbc=True"
            )
        self.reset()
        with own_modes(self._device):
            graphs, vectors, positions = self._graphs(atoms)
            listed = perf_counter()
            gradient = not WITHOUT_GRADIENT.issuperset(properties)
            results = merge([results_of(member, graphs, vectors, positions, gradient) for member in self._evaluators])
            if self._guard or "forces_sigma" in properties:
                results |= forces_sigma(self._evaluators, graphs, vectors, results, self._spread)
        evaluated = perf_counter()
        check_finite(results, atoms)
        if self._guard and "forces_sigma" in results:
            self._guard(atoms, results)
        self._seen, self.results = Snapshot(atoms, self._arrays, self._info), results
        spent = {"neighbors": listed - start, "model": evaluated - listed, "total": perf_counter() - start, "count": 1}
        for phase, value in spent.items():
            self.timings[phase] += value

    def get_hessian(self, atoms: Atoms | None = None, indices: Sequence[int] | None = None) -> np.ndarray:
        """d2E/dr2, symmetrised, as `ase.vibrations.VibrationsData.from_2d(atoms, hessian, indices)` takes it.

        Args:
            atoms: None means those of the last calculation.
            indices: the k atoms whose rows and columns are wanted, or a mask; None means all. The other atoms are held.
        Returns:
            (3k, 3k) eV/A^2, float64; the mean over a committee.
        Raises:
            ValueError: an index that is not an atom, or is given twice.
        """
        atoms = self._atoms(atoms)
        indices = atom_indices(indices, len(atoms))
        columns = (3 * indices[:, None] + np.arange(3)).ravel()
        with own_modes(self._device):
            graphs, _, positions = self._graphs(atoms)
            rows = [
                hessian(p, tuple(graphs[c] for c in p.cutoffs), positions, indices=indices.tolist()).cpu().numpy()
                for p in self._potentials
            ]
        square = np.mean(rows, axis=0)[:, columns]
        check_finite({"hessian": square}, atoms)
        return (square + square.T) / 2

    def get_descriptors(self, atoms: Atoms | None = None) -> np.ndarray:
        """Rotation-invariant features (n, k) of each atom, float64; a committee's members side by side.

        Args:
            atoms: None means those of the last calculation.
        """
        atoms = self._atoms(atoms)
        with own_modes(self._device):
            graphs, vectors, _ = self._graphs(atoms)
            found = [
                p.descriptors(tuple(graphs[c] for c in p.cutoffs), tuple(vectors[c].to(p.dtype) for c in p.cutoffs))
                for p in self._potentials
            ]
        descriptors = torch.cat(found, dim=1).double().cpu().numpy()
        check_finite({"descriptors": descriptors}, atoms)
        return descriptors

    def _atoms(self, atoms: Atoms | None) -> Atoms:
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise CalculatorSetupError("EquiCalculator has no atoms yet: pass them, or set atoms.calc = calc")
        return atoms

    def _graphs(self, atoms: Atoms) -> tuple[dict[float, Graph], dict[float, torch.Tensor], torch.Tensor]:
        """The checked graph for each cutoff, its edge vectors, and the positions, on the calculator's device."""
        check_atoms(atoms, self._species)
        graphs, vectors = {}, {}
        for cutoff, kept in self._lists.items():
            graphs[cutoff], vectors[cutoff] = graph_and_vectors(atoms, cutoff, neighbors=kept, device=self._device)
        nearest = self._lists[min(graphs)].nearest
        if nearest is None or nearest < COINCIDENT:
            check_coincident(graphs[min(graphs)], vectors[min(graphs)])
        positions = torch.from_numpy(np.array(atoms.positions, dtype=np.float64)).to(self._device)
        return graphs, vectors, positions
