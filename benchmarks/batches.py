"""Many small crystals at once against one after the other: evaluation, FIRE relaxation, NVT dynamics.

    OMP_NUM_THREADS=1 python benchmarks/batches.py [--structures 200] [--potential silicon]

CPU time of this process for each structure and step, the best of three for evaluation; "one by one" is EquiCalculator
with ASE's optimizers and dynamics, measured on a tenth of the structures. Lines with torch-sim need it installed.
"""

import argparse
import importlib.util
import time
import warnings

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.langevin import Langevin

from ase_equinn import EquiCalculator
from ase_equinn.evaluate_batches import evaluate_with, load_potential
from ase_equinn.relax import RelaxSettings, relax
from ase_equinn.relax_batch import relax_all


def crystals(n: int) -> list:
    """Cells of 8 atoms with atoms off their places by 0.05 A and strains of 2 %."""
    rng, found = np.random.default_rng(0), []
    for k in range(n):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=k)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        found.append(atoms)
    return found


def seconds(work, repeats: int = 1) -> float:
    """CPU seconds of the best of some calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def line(name: str, single: float, batch: float, unit: str) -> None:
    print(f"{name:<38} {1e3 * single:10.3f} {1e3 * batch:10.3f} ms {unit:<22} {single / batch:6.2f} x")


def evaluation(structures, potential) -> None:
    calculator, ready = EquiCalculator(potential), load_potential(potential)
    names = [str(k) for k in range(len(structures))]
    evaluate_with(ready, structures[:2], names=names[:2])
    single = seconds(lambda: [calculator.calculate(atoms, ["forces"]) for atoms in structures], 3)
    batch = seconds(lambda: evaluate_with(ready, structures, names=names), 3)
    line("energy, forces, stress", single / len(structures), batch / len(structures), "a structure")


def relaxation(structures, potential, cell: str) -> None:
    settings = RelaxSettings(cell=cell, optimizer="fire")
    calculator, sample = EquiCalculator(potential), structures[:: max(1, len(structures) // 20)]
    relax(sample[0], calculator, settings, steps=2)
    single = seconds(lambda: [relax(atoms, calculator, settings) for atoms in sample]) / len(sample)
    batch = seconds(lambda: relax_all(structures, potential, settings)) / len(structures)
    line(f"FIRE, {cell} cell: equinn relax --all", single, batch, "a relaxation")
    if importlib.util.find_spec("torch_sim"):
        line(f"FIRE, {cell} cell: torch-sim", single, torchsim_relaxation(structures, potential, cell), "a relaxation")


def torchsim_relaxation(structures, potential, cell: str) -> float:
    import torch_sim as ts

    from ase_equinn.engines.torchsim import torchsim_model

    model = torchsim_model(potential)
    optimizer = ts.optimizers.frechet_cell_fire if cell == "full" else ts.optimizers.fire
    done = ts.generate_force_convergence_fn(0.01, include_cell_forces=cell == "full")
    start = dict(optimizer=optimizer, convergence_fn=done, max_steps=500)
    return seconds(lambda: ts.optimize(structures, model, **start)) / len(structures)


def dynamics(structures, potential, steps: int) -> None:
    import torch_sim as ts

    from ase_equinn.engines.torchsim import torchsim_model

    calculator, sample = EquiCalculator(potential), structures[:: max(1, len(structures) // 20)]

    def one_by_one():
        for k, atoms in enumerate(sample):
            atoms = atoms.copy()
            atoms.calc = calculator
            rng = np.random.default_rng(k)
            Langevin(atoms, units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng).run(steps)

    model = torchsim_model(potential)
    run = dict(integrator=ts.integrators.nvt_langevin, n_steps=steps, temperature=300, timestep=0.001)
    single = seconds(one_by_one) / steps / len(sample)
    batch = seconds(lambda: ts.integrate(structures, model, **run)) / steps / len(structures)
    line("NVT Langevin, 1 fs: torch-sim", single, batch, "a structure and step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--potential", default="silicon")
    parser.add_argument("--steps", type=int, default=100, help="of dynamics")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    structures = crystals(options.structures)
    print(f"{options.structures} crystals of 8 atoms, {options.potential}, float32")
    print(f"{'':<38} {'one by one':>10} {'batch':>10}")
    evaluation(structures, options.potential)
    for cell in ("fixed", "full"):
        relaxation(structures, options.potential, cell)
    if importlib.util.find_spec("torch_sim"):
        dynamics(structures, options.potential, options.steps)
    else:
        print("torch-sim is not installed")


if __name__ == "__main__":
    main()
