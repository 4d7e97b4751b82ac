"""torch-sim: batched relaxation and molecular dynamics of many structures on one device.

model = torchsim_model("silicon")
torch_sim.optimize(structures, model, optimizer=torch_sim.optimizers.fire)
torch_sim.integrate(structures, model, integrator=torch_sim.integrators.nvt_langevin, temperature=300,
                    timestep=0.001, n_steps=1000)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from ase_equinn.derivatives import structure_sum
from ase_equinn.evaluate_batches import MAX_EDGES, check_distances, compute_groups, graph_of, load_potential
from ase_equinn.evaluate_memory import Budget
from ase_equinn.evaluator import Evaluator
from ase_equinn.neighbors_batch import BatchNeighborList
from ase_equinn.potential import Potential


def torchsim_model(
    potential: str | Path | Potential,
    *,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    skin: float = 0.5,
    compute_stress: bool = True,
    max_edges: int | None = None,
):
    """A `torch_sim.models.interface.ModelInterface` with the energies, forces and stresses of `EquiCalculator`.

    States are float64 (`model.dtype`), whatever the network's precision; a float32 state is answered in float32. Lists
    of neighbours are kept between steps, structure by structure. A state without periodicity gets no stress.

    Args:
        potential, device, dtype, backend: see `ase_equinn.evaluate`.
        skin: A; see `NeighborList`.
        compute_stress: False for molecules, where torch-sim asks for a stress that does not exist.
        max_edges: of what is computed at once, see `ase_equinn.evaluate`; torch-sim's own batches may be larger.
    Raises:
        ModuleNotFoundError: torch-sim is not installed.
    """
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface

    class EquinnModel(ModelInterface):
        """energy (S,) eV, forces (N, 3) eV/A, stress (S, 3, 3) eV/A^3 of a torch-sim state."""

        compute_stress = compute_forces = None  # plain attributes, to be set at will

        def __init__(self, compute: _States):
            super().__init__()
            self._compute = compute
            self._device, self._dtype = compute.potential.device, torch.float64
            self.compute_stress, self.compute_forces = compute_stress, True

        def forward(self, state, **_) -> dict[str, torch.Tensor]:
            state = SimState(**state) if isinstance(state, dict) else state
            return self._compute(state, self.compute_forces, self.compute_stress)

    return EquinnModel(_States(load_potential(potential, device=device, dtype=dtype, backend=backend), skin, max_edges))


def evaluate_frames(
    potential: str | Path | Potential, frames: Sequence[Atoms], *, device: str = "auto", dtype: str = "float32"
) -> list[dict]:
    """Energy, forces and stress as torch-sim has them for each frame, in ASE's units and order.

    Args:
        potential, device, dtype: see `ase_equinn.evaluate`.
        frames: each periodic in all directions or in none; those that are and those that are not go in two batches.
    Raises:
        ValueError: a frame that is periodic in some directions only, which torch-sim would take for a molecule.
    """
    from torch_sim.io import atoms_to_state

    for k, atoms in enumerate(frames):
        if atoms.pbc.any() and not atoms.pbc.all():
            raise ValueError(f"frame {k}: torch-sim knows all directions periodic or none, pbc is {atoms.pbc.tolist()}")
    model = torchsim_model(potential, device=device, dtype=dtype)
    results: list[dict] = [{}] * len(frames)
    for periodic in (True, False):
        own = [k for k, atoms in enumerate(frames) if atoms.pbc.all() == periodic]
        if not own:
            continue
        state = atoms_to_state([frames[k] for k in own], model.device, model.dtype)
        found = {name: value.cpu().numpy() for name, value in model(state).items()}
        atom = state.system_idx.cpu().numpy()
        for row, k in enumerate(own):
            stress = full_3x3_to_voigt_6_stress(found["stress"][row]) if periodic else None
            forces = found["forces"][atom == row]
            results[k] = {"energy": float(found["energy"][row]), "forces": forces, "stress": stress}
    return results


class _States:
    """Evaluates torch-sim's states, whose structures come again from call to call."""

    def __init__(self, ready: Evaluator, skin: float, max_edges: int | None):
        self.ready, self.potential = ready, ready.potential
        self.lists = [BatchNeighborList(cutoff, skin) for cutoff in self.potential.cutoffs]
        self.budget = Budget(MAX_EDGES[self.potential.device.type] if max_edges is None else max_edges)
        self._known: torch.Tensor | None = None  # atomic numbers that were found to be supported

    @torch.no_grad()
    def __call__(self, state, forces: bool, stress: bool) -> dict[str, torch.Tensor]:
        device = self.potential.device
        positions = state.positions.detach().to(device, torch.float64)
        cell = state.row_vector_cell.detach().to(device, torch.float64).contiguous()
        pbc = torch.as_tensor(state.pbc, device=device).expand(state.n_systems, 3)
        numbers = state.atomic_numbers.to(device, torch.int64)
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems).tolist()
        names = [f"structure {k}" for k in range(len(sizes))]
        self._check_species(numbers, state.system_idx)
        graphs, vectors = [], []
        for kept in self.lists:
            pairs = kept.update(positions, cell, pbc, sizes)
            graphs.append(graph_of(pairs, numbers, cell, pbc, sizes))
            vectors.append(pairs.vectors)
        check_distances(graphs[-1], vectors[-1], names)
        gradient, stress = forces or stress, stress and bool(pbc.all())
        groups = compute_groups(self.ready, graphs, vectors, positions, sizes, self.budget, gradient)
        parts = [found for _, _, found in groups]
        energies = torch.cat([part.node_energy for part in parts])
        results = {"energy": structure_sum(energies, graphs[0])}
        if forces:
            results["forces"] = torch.cat([part.forces for part in parts])
        if stress:
            virial = structure_sum(torch.cat([part.node_virial for part in parts]), graphs[0])
            results["stress"] = virial / torch.linalg.det(cell).abs()[:, None, None]
        _check_finite(results, state.system_idx)
        return {name: value.to(state.positions.dtype) for name, value in results.items()}

    def _check_species(self, numbers: torch.Tensor, system_idx: torch.Tensor) -> None:
        if self._known is not None and torch.equal(self._known, numbers):
            return
        supported = torch.tensor(self.potential.species, device=numbers.device)
        unknown = (~torch.isin(numbers, supported)).nonzero()[:, 0].tolist()
        if unknown:
            number, k = int(numbers[unknown[0]]), int(system_idx[unknown[0]])
            symbol = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
            names = ", ".join(chemical_symbols[z] for z in self.potential.species)
            raise ValueError(f"structure {k} has atomic number {number} ({symbol}); supported: {names}")
        self._known = numbers.clone()


def _check_finite(results: dict[str, torch.Tensor], system_idx: torch.Tensor) -> None:
    for name, values in results.items():
        finite = torch.isfinite(values)
        if not finite.all():
            row = int((~finite).nonzero()[0, 0])
            k = int(system_idx[row]) if name == "forces" else row
            value = values[row].tolist()
            raise CalculationFailed(f"the potential gives a {name} of structure {k} that is not finite: {value}")
