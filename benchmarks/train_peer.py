"""A worker of train_step.py: trains one model and times its steps; runs under any interpreter that has its package.

    python train_peer.py '{"package": "mace", "variant": "eager", "model": {...}, "structure": "Si:2", "threads": 2}'

Each line on standard input is a number of steps; each answer, like the first one after building, is a line of JSON on
standard output. A step is all that training does between one batch and the next: the batch is put together from frames
whose neighbours are known, then loss, gradient, clipping at norm 10, Adam with amsgrad, moving average of the weights.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from peer import CUTOFF, mace_model, neighbours, structure

FRAMES = 5  # in a batch
STEPS = 100_000  # in an epoch: more than are ever timed


def frames(name):
    """The batch: structures, rattled one by one, with random energies (eV) and forces (eV/A)."""
    import numpy as np

    rng, out = np.random.default_rng(0), []
    for _ in range(FRAMES):
        atoms = structure(name)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info["REF_energy"] = rng.normal()
        atoms.arrays["REF_forces"] = rng.normal(size=atoms.positions.shape)
        out.append(atoms)
    return out


class Stopwatch:
    """Called after every step; when the steps that were asked for are done it answers and waits for the next line."""

    def __init__(self, answers):
        self.answers, self.left, self.asked = answers, 3, 0  # the first steps compile and allocate
        self.begin = time.perf_counter()

    def __call__(self, *_):
        self.left -= 1
        if self.left:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        if self.asked:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            answer = {"wall_s": (wall - self.wall) / self.asked, "cpu_s": (cpu - self.cpu) / self.asked}
            answer |= {"memory_mb": memory}
        else:
            answer = {"n_atoms": self.n_atoms, "build_s": wall - self.begin}
        print(json.dumps(answer), file=self.answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self.asked = self.left = int(line)
        self.wall, self.cpu = time.perf_counter(), time.process_time()


def ase_equinn(model, variant, images, after_step):
    """`equinn train`'s own loop."""
    import torch

    import ase_equinn
    from ase_equinn.data import Frame
    from ase_equinn.data_batches import prepare
    from ase_equinn.train_config import load_config
    from ase_equinn.train_loop import fit
    from ase_equinn.train_module import Run
    from ase_equinn.train_schedule import Clock

    torch.manual_seed(0)
    options = dict(model)
    architecture = getattr(ase_equinn, options.pop("name"))
    species = sorted(set(images[0].numbers.tolist()))
    potential = ase_equinn.Potential([architecture(species, CUTOFF, neighbours(images[0]), **options)])
    labelled = [Frame(atoms, atoms.info["REF_energy"], atoms.arrays["REF_forces"], None) for atoms in images]
    config = load_config({
        "data": {"train": "none"}, "output": "none", "loss": {"kind": "mse", "energy": 1, "forces": 1, "virial": 0},
        "training": {"batch_size": FRAMES, "learning_rate": 0.01, "epochs": 1},
    })  # fmt: skip
    samples = prepare(labelled, [CUTOFF])
    run = Run(config, potential, samples * STEPS, (labelled, samples), Clock(None, STEPS))
    with tempfile.TemporaryDirectory() as folder:
        fit(run, Path(folder) / "checkpoint.safetensors", after_step=after_step)


def mace(model, variant, images, after_step):
    """mace-torch's loader, loss, optimizer and step, with the defaults of its command and the moving average."""
    import torch
    from mace import data, tools
    from mace.modules import WeightedEnergyForcesLoss
    from mace.tools.scripts_utils import get_optimizer, get_params_options
    from mace.tools.torch_geometric.dataloader import DataLoader
    from mace.tools.train import take_step
    from torch_ema import ExponentialMovingAverage

    network = mace_model(model, images[0])
    arguments = tools.build_default_arg_parser().parse_args(["--name", "none"])
    optimizer = get_optimizer(arguments, get_params_options(arguments, network))
    average = ExponentialMovingAverage(network.parameters(), decay=arguments.ema_decay)
    keys = data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
    table = tools.AtomicNumberTable(sorted(set(images[0].numbers.tolist())))
    samples = [
        data.AtomicData.from_config(configuration, z_table=table, cutoff=CUTOFF)
        for configuration in data.config_from_atoms_list(images, keys)
    ]
    loader = DataLoader(samples * STEPS, batch_size=FRAMES, shuffle=True, drop_last=True)
    loss = WeightedEnergyForcesLoss(1.0, 1.0)
    wanted = {"forces": True, "virials": False, "stress": False}
    for batch in loader:
        take_step(network, loss, batch, optimizer, average, wanted, arguments.clip_grad, torch.device("cpu"))
        after_step()


def main():
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the packages print is no answer
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `equinn train` does; for the other package too
    import torch

    torch.set_num_threads(task["threads"])
    after_step, images = Stopwatch(answers), frames(task["structure"])
    after_step.n_atoms = sum(map(len, images))
    with contextlib.redirect_stdout(sys.stderr):
        globals()[task["package"]](task["model"], task["variant"], images, after_step)


if __name__ == "__main__":
    main()
