"""ASE's results of one potential, their mean over a committee, and the refusal of what is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed

from ase_equinn.evaluator import Evaluator
from ase_equinn.graph import Graph
from ase_equinn.programs import Programs
from ase_equinn.uncertainty_spread import Spread

STD = {"energy": "energy_std", "forces": "forces_std", "stress": "stress_std"}  # what a committee adds
_VOIGT = [0, 4, 8, 5, 2, 1]  # where xx yy zz yz xz xy stand in a symmetric 3 x 3 matrix
PER_ATOM = ("energies", "forces", "stresses", "forces_std", "forces_sigma", "descriptors")


def results_of(
    evaluator: Evaluator,
    graphs: dict[float, Graph],
    vectors: dict[float, torch.Tensor],
    positions: torch.Tensor,
    gradient: bool,
) -> dict:
    """Energies, and with `gradient` forces and (if fully periodic) stresses, in ASE's names, units and order.

    Args:
        graphs: one for each of the potential's cutoffs, possibly more.
        vectors: their edge vectors, (E, 3) float64, A.
        positions: (n, 3) float64, A, on the potential's device.
    """
    own = tuple(graphs[cutoff] for cutoff in evaluator.potential.cutoffs)
    known = tuple(vectors[cutoff] for cutoff in evaluator.potential.cutoffs)
    found = evaluator(own, positions, known, gradient)
    results = _energies(found.node_energy)
    if not gradient:
        return results
    results["forces"] = found.forces.cpu().numpy()
    if all(own[0].pbc[0].tolist()):
        volume = abs(np.linalg.det(own[0].cell[0].cpu().numpy()))
        stresses = found.node_virial.cpu().numpy().reshape(-1, 9).take(_VOIGT, axis=1) / volume
        results |= {"stress": stresses.sum(0), "stresses": stresses}
    return results


def forces_sigma(
    evaluators: Sequence[Evaluator],
    graphs: dict[float, Graph],
    vectors: dict[float, torch.Tensor],
    results: dict,
    calibrated: Spread | None = None,
) -> dict:
    """{"forces_sigma": by how much each atom's force may be off, (n,) eV/A}, for what was evaluated last.

    Of a committee sqrt(sum_c std_c^2) over the components, or what that is calibrated to be; of one potential the sigma
    that it is calibrated for. Nothing where there is neither, and for energies of a committee without forces.
    """
    if len(evaluators) > 1:
        std = results.get("forces_std")
        if std is None:
            return {}
        spread = np.linalg.norm(std, axis=1)
        numbers = next(iter(graphs.values())).numbers.cpu().numpy()
        return {"forces_sigma": spread if calibrated is None else calibrated.sigma(numbers, spread)}
    evaluator, potential = evaluators[0], evaluators[0].potential
    if potential.uncertainty is None:
        return {}
    own = tuple(graphs[cutoff] for cutoff in potential.cutoffs)
    known = tuple(vectors[cutoff] for cutoff in potential.cutoffs)
    if isinstance(evaluator, Programs):
        descriptors = evaluator.last_descriptors(own, known)
    else:
        with torch.no_grad():
            descriptors = potential.descriptors(own, tuple(vector.to(potential.dtype) for vector in known))
    return {"forces_sigma": potential.uncertainty.sigma(own[0].numbers, descriptors).cpu().numpy()}


def _energies(node_energy: torch.Tensor) -> dict:
    energies = node_energy.cpu().numpy()
    energy = float(energies.sum())
    return {"energy": energy, "free_energy": energy, "energies": energies}


def merge(members: list[dict]) -> dict:
    """The mean over M members of every property; for M > 1 also sqrt(sum_m (x_m - mean)^2 / (M - 1)), see `STD`."""
    if len(members) == 1:
        return members[0]
    stacked = {name: np.stack([member[name] for member in members]) for name in members[0]}
    results = {name: values.mean(0) for name, values in stacked.items()}
    results |= {std: stacked[name].std(0, ddof=1) for name, std in STD.items() if name in stacked}
    return {name: value if value.ndim else float(value) for name, value in results.items()}


def check_finite(results: dict, atoms: Atoms) -> None:
    """Refuses nan and infinity.

    Raises:
        CalculationFailed: naming the property, the first atom concerned and the value.
    """
    wrong = [name for name, values in results.items() if not _finite(values)]
    for name in sorted(wrong, key=lambda name: name not in PER_ATOM):
        values = np.asarray(results[name])
        bad = np.argwhere(~np.isfinite(values))
        atom = f" of atom {bad[0][0]} ({atoms.symbols[bad[0][0]]})" if name in PER_ATOM else ""
        raise CalculationFailed(f"the potential gives {name}{atom} = {values[tuple(bad[0])]} for {atoms.symbols}")


def _finite(values: float | np.ndarray) -> bool:
    return math.isfinite(values) if isinstance(values, float) else bool(np.isfinite(values).all())
