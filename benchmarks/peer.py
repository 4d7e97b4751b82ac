"""A worker of speed.py: builds one calculator and times its steps; runs under any interpreter that has its package.

    python peer.py '{"package": "nequip", "variant": "eager", "model": {...}, "structure": "Si:3", "threads": 2}'

Each line on standard input is a number of steps; each answer, like the first one after building, is a line of JSON on
standard output. Weights are random: time does not depend on them.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time

CUTOFF = 5.0


def structure(name):
    """ "Si:n" is rattled diamond silicon, 8 n^3 atoms; anything else a molecule of ase.build."""
    from ase.build import bulk, molecule

    kind, _, n = name.partition(":")
    atoms = bulk("Si", cubic=True) * int(n) if kind == "Si" else molecule(kind)
    atoms.rattle(0.1, seed=0)
    return atoms


def neighbours(atoms):
    """The average number, which the models are told."""
    from ase.neighborlist import neighbor_list

    return max(1.0, len(neighbor_list("i", atoms, CUTOFF)) / len(atoms))


def ase_equinn(model, variant, atoms):
    import torch

    import ase_equinn

    torch.manual_seed(0)
    options = dict(model)
    architecture = getattr(ase_equinn, options.pop("name"))
    species = sorted(set(atoms.numbers.tolist()))
    potential = ase_equinn.Potential([architecture(species, CUTOFF, neighbours(atoms), **options)])
    return ase_equinn.EquiCalculator(potential, device="cpu", backend=variant)


def nequip(model, variant, atoms):
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    symbols = sorted(set(atoms.get_chemical_symbols()))
    built = NequIPGNNModel(
        seed=0, model_dtype="float32", r_max=CUTOFF, type_names=symbols, avg_num_neighbors=neighbours(atoms), **model
    ).eval()
    transforms = basic_transforms({}, CUTOFF, symbols, {symbol: symbol for symbol in symbols})
    calculator = NequIPCalculator(built, "cpu", transforms=transforms)
    if variant == "eager":
        return calculator
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.nequip.pt2")
        _export(built, calculator.atoms_to_data(atoms), path)
        return NequIPCalculator.from_compiled_model(path, "cpu", {symbol: symbol for symbol in symbols})


def _export(model, data, path):
    """What nequip-compile --mode aotinductor --target ase does with a trained model."""
    import torch
    from nequip.scripts._compile_utils import ASE_TARGET
    from nequip.utils.aot import aot_export_model
    from nequip.utils.aoti_metadata import NEQUIP_AOTI_INPUTS_KEY, NEQUIP_AOTI_OUTPUTS_KEY, serialize_aoti_keys

    sizes = {key: torch.export.Dim(name, min=2) for key, name in (("node", "num_nodes"), ("edge", "num_edges"))}
    batch_map = {"graph": torch.export.Dim.STATIC, **sizes}
    metadata = {key: str(int(v)) if isinstance(v, bool) else str(v) for key, v in model.metadata.items()}
    metadata["allow_tf32"] = "0"
    metadata[NEQUIP_AOTI_INPUTS_KEY] = serialize_aoti_keys(ASE_TARGET["input"])
    metadata[NEQUIP_AOTI_OUTPUTS_KEY] = serialize_aoti_keys(ASE_TARGET["output"])
    aot_export_model(
        model, "cpu", ASE_TARGET["input"], ASE_TARGET["output"], ASE_TARGET["data_settings"](data), batch_map, path,
        {"aot_inductor.metadata": metadata},
    )  # fmt: skip


def mace(model, variant, atoms):
    from mace.calculators import MACECalculator

    return MACECalculator(models=[mace_model(model, atoms)], device="cpu", default_dtype="float32")


def mace_model(model, atoms):
    """mace-torch's model in float32, which becomes torch's default."""
    import numpy as np
    import torch
    from e3nn import o3
    from mace import modules

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    numbers = sorted(set(atoms.numbers.tolist()))
    return modules.ScaleShiftMACE(
        r_max=CUTOFF, num_bessel=8, num_polynomial_cutoff=5, max_ell=model["max_ell"], num_interactions=2,
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_elements=len(numbers), atomic_numbers=numbers, atomic_energies=np.zeros(len(numbers)),
        hidden_irreps=o3.Irreps(model["hidden_irreps"]), MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu,
        avg_num_neighbors=neighbours(atoms), correlation=model["correlation"], radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip


def seconds_per_step(calculator, atoms, start, first, n_steps):
    """(wall, CPU) seconds; atoms swing by 0.05 A as sin(step / 15), as they do at room temperature in 1 fs steps."""
    import numpy as np

    swing = np.random.default_rng(0).normal(scale=0.05, size=start.shape)
    properties = ["energy", "forces", "stress"] if atoms.pbc.all() else ["energy", "forces"]
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(first, first + n_steps):
        atoms.positions = start + swing * np.sin(step / 15)
        calculator.calculate(atoms, properties)
        calculator.results["forces"].sum()
    return (time.perf_counter() - wall) / n_steps, (time.process_time() - cpu) / n_steps


def main():
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the packages print is no answer
    import torch

    torch.set_num_threads(task["threads"])
    atoms = structure(task["structure"])
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        calculator = globals()[task["package"]](task["model"], task["variant"], atoms)
        start, done = atoms.positions.copy(), 3
        seconds_per_step(calculator, atoms, start, 0, done)  # compiles, allocates
    ready = {"n_atoms": len(atoms), "build_s": time.perf_counter() - begin, "threads": torch.get_num_threads()}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        wall, cpu = seconds_per_step(calculator, atoms, start, done, int(line))
        done += int(line)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps({"wall_s": wall, "cpu_s": cpu, "memory_mb": memory}), file=answers, flush=True)


if __name__ == "__main__":
    main()
