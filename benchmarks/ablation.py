"""Trains variants of networks and of training for equal time, and prints what each gives: the choice of the default.

    python benchmarks/ablation.py run si-nequip-32 si-mace-64 --minutes 10 --data FOLDER --folder runs
    python benchmarks/ablation.py table --folder runs

FOLDER holds zuo2020/Si_train.xyz, Si_valid.xyz, 3bpa/train_300K_450.xyz, valid_300K_50.xyz and iso_atoms.xyz. Time is that of the
processor, of one thread, so that a busy machine does not change the result. Errors are those of the validation set: test
files are not read. The cost is that of a step of EquiCalculator (float32, one thread, processor time). "+schedulefree" needs
`pip install schedulefree` (Defazio et al., arXiv:2405.15682).
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

SETS = {
    "si": {
        "data": {"train": "zuo2020/Si_train.xyz", "valid": "zuo2020/Si_valid.xyz"},
        "model": {"name": "nequip", "n_layers": 3, "irreps_hidden": "32x0e+32x1o+32x2e"},
        "loss": {"kind": "mse", "energy": 30.0},
        "training": {"batch_size": 2, "learning_rate": 0.01},
    },
    "mo": {
        "data": {"train": "zuo2020/Mo_train.xyz", "valid": "zuo2020/Mo_valid.xyz"},
        "model": {"name": "nequip", "n_layers": 3, "irreps_hidden": "32x0e+32x1o+32x2e"},
        "loss": {"kind": "mse", "energy": 30.0, "stress_offset": True},
        "training": {"batch_size": 2, "learning_rate": 0.01},
    },
    "3bpa": {
        "data": {"train": ["3bpa/train_300K_450.xyz", "3bpa/iso_atoms.xyz"], "valid": "3bpa/valid_300K_50.xyz"},
        "model": {"name": "nequip", "n_layers": 3, "irreps_hidden": "32x0e+32x1o+32x2e"},
        "loss": {"kind": "mse", "energy": 30.0},
        "training": {"batch_size": 5, "learning_rate": 0.01},
    },
    "acac": {
        "data": {"train": ["acac/train_300K_450.xyz", "acac/iso_atoms.xyz"], "valid": "acac/valid_300K_50.xyz"},
        "model": {"name": "nequip", "n_layers": 3, "irreps_hidden": "32x0e+32x1o+32x2e"},
        "loss": {"kind": "mse", "energy": 30.0},
        "training": {"batch_size": 5, "learning_rate": 0.01},
    },
}


def _mace(irreps: str, correlation: int = 3, lmax: int = 3) -> dict:
    return {"model": {"name": "mace", "n_layers": 2, "irreps_hidden": irreps, "correlation": correlation, "lmax": lmax}}


def _nequip(irreps: str, n_layers: int = 3, **options) -> dict:
    return {"model": {"name": "nequip", "n_layers": n_layers, "irreps_hidden": irreps, **options}}


def _model(**options) -> dict:
    return {"model": options}


MODELS = {
    "nequip-32": {},
    "nequip-32-2layers": _model(n_layers=2),
    "nequip-64-2layers": _nequip("64x0e+64x1o+64x2e", 2),
    "nequip-32-l1": _nequip("32x0e+32x1o"),
    "nequip-32-sh3": _model(lmax=3),
    "nequip-32-l3": _nequip("32x0e+32x1o+32x2e+32x3o"),
    "nequip-64": _nequip("64x0e+64x1o+64x2e"),
    "nequip-64-32-16": _nequip("64x0e+32x1o+16x2e"),
    "nequip-32-odd": _nequip("32x0e+32x0o+32x1o+32x1e+32x2e+32x2o"),
    "mace-32-l0": _mace("32x0e"),
    "mace-64-l0": _mace("64x0e"),
    "mace-32-l1": _mace("32x0e+32x1o"),
    "mace-64-l1": _mace("64x0e+64x1o"),
    "mace-96-l1": _mace("96x0e+96x1o"),
    "mace-128-l1": _mace("128x0e+128x1o"),
    "mace-128-l2": _mace("128x0e+128x1o+128x2e"),
    "mace-96-l2": _mace("96x0e+96x1o+96x2e"),
    "mace-64-l1-sh2": _mace("64x0e+64x1o", lmax=2),
    "mace-32-l2": _mace("32x0e+32x1o+32x2e"),
    "mace-64-l2": _mace("64x0e+64x1o+64x2e"),
    "mace-64-l1-correlation2": _mace("64x0e+64x1o", 2),
    "mace-32-l2-correlation2": _mace("32x0e+32x1o+32x2e", 2),
    "mace-16-l2": _mace("16x0e+16x1o+16x2e"),
}
CHANGES = {
    "basis12": _model(n_basis=12),
    "radial64x64": _model(radial_mlp=[64, 64]),
    "cutoff4.5": _model(cutoff=4.5),
    "cutoff4": _model(cutoff=4.0),
    "cutoff6": _model(cutoff=6.0),
    "huber": {"loss": {"kind": "huber"}},
    "huber0.01": {"loss": {"kind": "huber", "huber_delta": 0.01}},
    "huber0.01-energy1": {"loss": {"kind": "huber", "huber_delta": 0.01, "energy": 1.0}},
    "huber0.1-energy10": {"loss": {"kind": "huber", "huber_delta": 0.1, "energy": 10.0}},
    "energy3": {"loss": {"energy": 3.0}},
    "energy300": {"loss": {"energy": 300.0}},
    "energy30to1000": {"loss": {"final_energy": 1000.0}},
    "virial10": {"loss": {"virial": 10.0}},
    "virial0.1": {"loss": {"virial": 0.1}},
    "rate0.003": {"training": {"learning_rate": 0.003}},
    "rate0.005": {"training": {"learning_rate": 0.005}},
    "rate0.02": {"training": {"learning_rate": 0.02}},
    "batch1": {"training": {"batch_size": 1}},
    "batch2": {"training": {"batch_size": 2}},
    "batch4": {"training": {"batch_size": 4}},
    "batch10": {"training": {"batch_size": 10}},
    "ema0.999": {"training": {"ema": 0.999}},
    "constant0.005-ema0.9995": {"training": {"schedule": "constant", "learning_rate": 0.005, "ema": 0.9995}},
    "ema0": {"training": {"ema": 0.0}},
    "adamw": {"training": {"optimizer": "adamw"}},
    "schedulefree": {"training": {"optimizer": "adamw", "schedule": "constant"}},
    "decay0.001": {"training": {"weight_decay": 0.001}},
    "decay0.01": {"training": {"weight_decay": 0.01}},
    "decay0.1": {"training": {"weight_decay": 0.1}},
    "amsgrad": {"training": {"amsgrad": True}},
    "noamsgrad": {"training": {"amsgrad": False}},
    "muon": {"training": {"optimizer": "muon"}},
    "muon0.02": {"training": {"optimizer": "muon", "learning_rate": 0.02}},
    "muon0.04": {"training": {"optimizer": "muon", "learning_rate": 0.04}},
    "nozbl": {"zbl": False},
    "seed1": {"seed": 1},
    "seed2": {"seed": 2},
    "nolimits": {"limits": False},
    "noshift": {"shift": False},
    "energy30to300": {"loss": {"final_energy": 300.0}},
    "residual": _model(interactions=["residual", "residual"]),
    "agnostic": _model(interactions=["agnostic", "agnostic"]),
    "basis5": _model(radial={"n_basis": 5}),
    "radial16": _model(radial={"hidden": [16]}),
    "rate0.03": {"training": {"learning_rate": 0.03}},
    "radial32x32": _model(radial={"hidden": [32, 32]}),
    "density": _model(interactions=["agnostic density", "residual density"]),
    "agnesi": _model(radial={"transform": "agnesi"}),
}


def config_of(name: str, data: Path, output: Path) -> dict:
    """The training config of "SET-MODEL+CHANGE+...", e.g. "si-nequip-32+rate0.02"."""
    model, *changes = name.split("+")
    kind, model = model.split("-", 1)
    config = json.loads(json.dumps(SETS[kind]))
    for change in (MODELS[model], *(CHANGES[change] for change in changes)):
        if change.get("model", {}).get("name"):
            config["model"] = {}
        for section, values in change.items():
            config[section] = config.get(section, {}) | values if isinstance(values, dict) else values
    files = {part: [names] if isinstance(names, str) else names for part, names in config["data"].items()}
    config["data"] = {part: [str(data / file) for file in names] for part, names in files.items()}
    return config | {"output": str(output)}


@contextmanager
def schedule_free():
    """Trains by schedule-free AdamW, whose own average of the weights takes the place of the exponential one."""
    import torch
    from schedulefree import AdamWScheduleFree

    from ase_equinn.train_module import Run

    def optimizer(config, parameters):
        made = AdamWScheduleFree(parameters, lr=config.learning_rate)
        made.train()
        return made

    def after_step(run, usual=Run.after_step):
        usual(run)
        group = run.optimizer.param_groups[0]
        for average, weight in zip(run.averaged.parameters(), run.parameters, strict=True):
            last = run.optimizer.state[weight]["z"]
            average.copy_(torch.lerp(weight.detach(), last, 1 - 1 / group["betas"][0]))

    with (
        patch("ase_equinn.train_module.make_optimizer", optimizer),
        patch("ase_equinn.train_module.Run.after_step", after_step),
    ):
        yield


def run(name: str, minutes: float, data: Path, folder: Path) -> dict:
    """Trains one variant and writes its row to folder/name.json."""
    import torch

    from ase_equinn.train import train

    torch.set_num_threads(1)
    output = folder / f"{name}-{minutes:g}min"
    clock = SimpleNamespace(monotonic=time.process_time)
    with (
        schedule_free() if "+schedulefree" in name else nullcontext(),
        patch("ase_equinn.train.time", clock),
        patch("ase_equinn.train_module.time", clock),
        patch("ase_equinn.train_schedule.time", clock),
    ):
        config = config_of(name, data, output)
        seconds = minutes * 60 + time.process_time()
        result = train(config, max_time=f"{seconds:.0f}s", quiet=True)
    errors = result.potential.metadata["errors"]
    with open(output / "log.csv") as log:
        header, *lines = log.read().splitlines()
    last = dict(zip(header.split(","), lines[-1].split(",")))
    row = {
        "name": name,
        "minutes": minutes,
        "epochs": int(last["epoch"]),
        "parameters": sum(p.numel() for p in result.potential.parameters()),
        "train": errors["train"],
        "valid": errors["valid"],
        "us_per_atom": cost(result.potential, config["data"]["valid"][0]),
        "config": {key: config.get(key) for key in ("model", "loss", "training", "seed")},
    }
    (folder / f"{name}-{minutes:g}min.json").write_text(json.dumps(row, indent=1) + "\n")
    return row


def cost(potential, file: str, steps: int = 60) -> float:
    """us/atom of a step: 216 atoms of a crystal or the molecule, the least of five rounds."""
    import ase.io
    import numpy as np

    from ase_equinn import EquiCalculator

    atoms = ase.io.read(file, "0")
    if atoms.pbc.all():
        from ase.build import bulk

        atoms = bulk(atoms.get_chemical_formula(empirical=True), cubic=True) * (3, 3, 3)
    atoms.calc = EquiCalculator(potential, dtype="float32")
    rng, positions, rounds = np.random.default_rng(0), atoms.positions.copy(), []
    for _ in range(6):
        begin = time.process_time()
        for _ in range(steps):
            atoms.positions = positions + rng.normal(scale=0.01, size=positions.shape)
            atoms.get_forces()
        rounds.append(time.process_time() - begin)
    return 1e6 * min(rounds[1:]) / steps / len(atoms)


def rows(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*min.json"))]


COLUMNS = "| variant | minutes | epochs | parameters | us/atom | train E / F | valid E / F (MAE) | valid E / F (RMSE) |"


def table(folder: Path) -> str:
    """Markdown: one line a run, best forces first."""
    lines = [COLUMNS, "|---|" + "---:|" * 7]
    for row in sorted(rows(folder), key=lambda row: (row["name"].split("-")[0], row["valid"]["force_mae"])):
        train, valid = row["train"], row["valid"]
        lines.append(
            f"| {row['name']} | {row['minutes']:g} | {row['epochs']} | {row['parameters']} | {row['us_per_atom']:.1f} "
            f"| {train['energy_mae']:.2f} / {train['force_mae']:.1f} | {valid['energy_mae']:.2f} / {valid['force_mae']:.1f} "
            f"| {valid['energy_rmse']:.2f} / {valid['force_rmse']:.1f} |"
        )
    return "\n".join(lines)


def plot(folder: Path, path: Path) -> None:
    """Valid force error against cost, one panel a set, the Pareto front joined; timings of one network differ by some percent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    found = rows(folder)
    kinds = sorted({row["name"].split("-")[0] for row in found})
    figure, panels = plt.subplots(-(-len(kinds) // 2), 2, figsize=(13, 5 * -(-len(kinds) // 2)), squeeze=False)
    for axis, kind in zip(panels.flat, kinds):
        points = sorted(
            (r["us_per_atom"], r["valid"]["force_mae"], r["name"]) for r in found if r["name"].startswith(kind)
        )
        best, front = float("inf"), []
        for x, y, name in points:
            on_front = y < best
            if on_front:
                best = y
                front.append((x, y))
                axis.annotate(name.split("-", 1)[1], (x, y), fontsize=8, xytext=(4, 4), textcoords="offset points")
            axis.plot(x, y, "o", color="C0" if on_front else "0.6")
        axis.plot(*zip(*front), color="C0", lw=1)
        axis.set(xscale="log", yscale="log", xlabel="us/atom/step, one thread", title=kind)
        axis.set_ylabel("MAE of forces, valid (meV/A)")
        axis.margins(x=0.25, y=0.1)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter(ScalarFormatter())
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table", "plot"])
    parser.add_argument("names", nargs="*", help="SET-MODEL+CHANGE+..., see SETS, MODELS and CHANGES")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("ablation"))
    parser.add_argument("--file", type=Path, default=Path("ablation.png"), help="of the plot")
    arguments = parser.parse_args()
    if arguments.action == "table":
        print(table(arguments.folder))
    elif arguments.action == "plot":
        plot(arguments.folder, arguments.file)
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.names:
            row = run(name, arguments.minutes, arguments.data, arguments.folder)
            print(json.dumps({key: row[key] for key in ("name", "epochs", "us_per_atom", "valid")}), flush=True)


if __name__ == "__main__":
    main()
