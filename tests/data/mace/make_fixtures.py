"""Makes the MACE models and the energies, forces and stresses of this folder; needs mace-torch 0.3.16 (and its e3nn 0.4.4).

    python -m venv venv && venv/bin/pip install torch==2.13.0 && venv/bin/pip install mace-torch==0.3.16
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 venv/bin/python make_fixtures.py

The weights are random numbers rounded to multiples of 1/16, so that the files (compressed with xz) stay small.
"""

import hashlib
import json
import lzma
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from e3nn import o3
from mace.calculators import MACECalculator
from mace.modules import MACE, ScaleShiftMACE, interaction_classes

HERE = Path(__file__).parent
SHORT = {
    "plain": "RealAgnosticInteractionBlock",
    "residual": "RealAgnosticResidualInteractionBlock",
    "density": "RealAgnosticDensityInteractionBlock",
    "density_residual": "RealAgnosticDensityResidualInteractionBlock",
    "nonlinear": "RealAgnosticResidualNonLinearInteractionBlock",
}


def silicon() -> Atoms:
    """Two atoms in a cell smaller than the cutoff."""
    atoms = bulk("Si", "diamond", a=5.43)
    return displaced(atoms, 0.1)


def alloy() -> Atoms:
    """Si and Ge, eight atoms; two come near enough for the pair repulsion."""
    atoms = bulk("Si", "diamond", a=5.5, cubic=True)
    atoms.numbers[[1, 2, 5]] = 32
    atoms = displaced(atoms, 0.15)
    atoms.positions[1] = atoms.positions[0] + [0.9, 1.0, 0.7]
    return atoms


def water() -> Atoms:
    """H, C, O in a skewed periodic box."""
    positions = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [2.4, 0.4, 0.3], [3.1, 1.2, 0.2], [2.9, -0.5, 0.6]]
    cell = [[5.2, 0, 0], [0.7, 4.9, 0], [-0.4, 0.3, 5.5]]
    return displaced(Atoms("OHHCOH", positions, cell=cell, pbc=True), 0.05)


def displaced(atoms: Atoms, size: float) -> Atoms:
    rng = np.random.default_rng(11)
    atoms.positions += size * rng.standard_normal(atoms.positions.shape)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.standard_normal((3, 3))), scale_atoms=True)
    return atoms


# name: (structure, first block, other blocks, options of the MACE class)
MODELS = {
    "si_L0": (silicon, "plain", "residual", dict(hidden_irreps="16x0e", max_ell=3, correlation=3)),
    "hco_L1": (water, "residual", "residual", dict(hidden_irreps="32x0e+32x1o", max_ell=2, correlation=3)),
    "sige_L2_density": (
        alloy, "density", "density_residual",
        dict(hidden_irreps="16x0e+16x1o+16x2e", max_ell=3, correlation=2, distance_transform="Agnesi",
             pair_repulsion=True),
    ),
    "hco_density_first": (
        water, "density_residual", "density",
        dict(hidden_irreps="16x0e+16x1o", max_ell=1, correlation=2, num_interactions=3, num_polynomial_cutoff=6),
    ),
    "sige_plain_soft": (
        alloy, "plain", "plain",
        dict(hidden_irreps="16x0e+16x1o", max_ell=2, correlation=[2, 3], distance_transform="Soft", num_bessel=5),
    ),
    "si_128": (
        silicon, "residual", "residual",
        dict(hidden_irreps="128x0e", max_ell=1, correlation=2, num_interactions=1, radial_MLP=[8]),
    ),
    "hco_heads": (
        water, "residual", "residual",
        dict(hidden_irreps="16x0e+16x1o", max_ell=2, correlation=2, heads=["pbe", "r2scan"], pair_repulsion=True),
    ),
    "hco_plain_mace": (
        water, "plain", "residual",
        dict(hidden_irreps="16x0e", max_ell=2, correlation=2, pair_repulsion=True, distance_transform="Agnesi",
             apply_cutoff=False, use_agnostic_product=True, use_last_readout_only=True),
    ),
    "si_gaussian_float32": (
        silicon, "density", "residual",
        dict(hidden_irreps="16x0e+16x1o", max_ell=2, correlation=2, radial_type="gaussian", r_max=3.7,
             apply_cutoff=False, keep_last_layer_irreps=True),
    ),
    "si_nonlinear": (silicon, "nonlinear", "nonlinear", dict(hidden_irreps="8x0e+8x1o", max_ell=1, correlation=2)),
}  # fmt: skip


def make(name: str) -> torch.nn.Module:
    structure, first, others, options = MODELS[name]
    dtype = torch.float32 if name.endswith("float32") else torch.float64
    torch.set_default_dtype(dtype)
    torch.manual_seed(sorted(MODELS).index(name))
    numbers = sorted(set(structure().numbers.tolist()))
    heads = options.get("heads", ["Default"])
    rng = np.random.default_rng(5)
    defaults = dict(
        r_max=4.0, num_bessel=8, num_polynomial_cutoff=5, num_interactions=2, radial_MLP=[16, 16], gate=torch.nn.functional.silu,
        MLP_irreps=o3.Irreps("16x0e"), avg_num_neighbors=3.5, atomic_numbers=numbers, num_elements=len(numbers),
        atomic_energies=np.round(rng.uniform(-20, -1, (len(heads), len(numbers))), 3),
        interaction_cls=interaction_classes[SHORT[others]], interaction_cls_first=interaction_classes[SHORT[first]],
    )  # fmt: skip
    options = defaults | options | {"hidden_irreps": o3.Irreps(options["hidden_irreps"])}
    if len(heads) == 1:
        options["atomic_energies"] = options["atomic_energies"][0]
    if "plain_mace" in name:
        model = MACE(**options)
    else:
        scale, shift = ([0.75, 1.25], [0.125, -0.5]) if len(heads) > 1 else (0.75, 0.125)
        model = ScaleShiftMACE(atomic_inter_scale=scale, atomic_inter_shift=shift, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.round(16 * parameter) / 16)
            if (
                parameter.dim() == 3
            ):  # of the products: larger than at the start of a training, so that every order matters
                parameter.copy_(torch.round(16 * torch.randn_like(parameter)) / 16)
    return model


def record(name: str, path: Path) -> dict:
    atoms, heads = MODELS[name][0](), MODELS[name][3].get("heads", ["Default"])
    out = dict(
        numbers=atoms.numbers.tolist(), positions=atoms.positions.tolist(), cell=atoms.cell.array.tolist(), heads={}
    )
    for head in heads:
        atoms.calc = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", head=head)
        out["heads"][head] = dict(
            energy=float(atoms.get_potential_energy()),
            energies=atoms.calc.results["node_energy"].tolist(),
            forces=atoms.get_forces().tolist(),
            stress=atoms.get_stress(voigt=False).tolist(),
        )
    return out


def digests(model: torch.nn.Module) -> dict:
    """dtype, shape and hash of every tensor but the constants of compiled code."""
    return {
        name: [str(t.dtype), list(t.shape), hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16]]
        for name, t in model.state_dict().items()
        if "_compiled_" not in name and not name.startswith("spherical_harmonics.")
    }


def main() -> None:
    records, tensors = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = Path(folder) / f"{name}.model"
            model = make(name)
            torch.save(model, path)
            tensors[name] = digests(model)
            if name != "si_nonlinear":
                records[name] = record(name, path)
            (HERE / f"{name}.model.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
            print(name, records.get(name, {}).get("heads"))
    (HERE / "records.json").write_text(json.dumps(records) + "\n")
    (HERE / "tensors.json").write_text(json.dumps(tensors) + "\n")


if __name__ == "__main__":
    main()
