"""`equinn relax` and `equinn md`: runs in ASE that survive a kill."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device, DType, PotentialName, Precision, Structure


class Ensemble(str, Enum):
    nve = "nve"
    nvt = "nvt"
    bussi = "nvt-bussi"
    nhc = "nvt-nhc"
    npt = "npt"


class Cell(str, Enum):
    fixed = "fixed"
    isotropic = "isotropic"
    full = "full"


class Optimizer(str, Enum):
    bfgs = "bfgs"
    lbfgs = "lbfgs"
    fire = "fire"


Resume = Annotated[bool, typer.Option("--resume", help="Continue a killed run: the same command again, with this.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")]


def relax(
    potential: PotentialName,
    structure: Structure,
    cell: Annotated[
        Cell, typer.Option(help="What moves besides the atoms: nothing, the volume, all six strains.")
    ] = Cell.fixed,
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.01,
    smax: Annotated[float, typer.Option(help="Largest stress left where the cell moves, GPa.")] = 0.02,
    pressure: Annotated[float, typer.Option(help="Applied, GPa.")] = 0.0,
    optimizer: Annotated[
        Optimizer, typer.Option(help="lbfgs; bfgs for few atoms; fire for rough starts.")
    ] = Optimizer.lbfgs,
    steps: Annotated[int, typer.Option(min=0, help="Most steps.")] = 500,
    out: Annotated[
        Path, typer.Option(help="Folder for relaxed.xyz, relax.csv, relax.xyz and the restart file.")
    ] = Path("relax"),
    restart_every: Annotated[int, typer.Option(help="Steps between restart files.")] = 10,
    every: Annotated[bool, typer.Option("--all", help="All frames of the file, side by side, to relaxed.xyz.")] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Precision = DType.float32,
):
    """Relax a structure: positions, and the cell if you wish. Or with --all many small ones as one batch.

    `equinn relax silicon start.cif --cell full --out relaxed`
    """
    from .calculator import EquiCalculator
    from .dynamics import RelaxSettings
    from .dynamics import relax as run

    settings = RelaxSettings(fmax, smax, cell.value, pressure, optimizer.value, restart_every)
    existing = show.existing(resume, overwrite)
    if every:
        return relax_every(structure, potential, settings, steps, out, existing, device, dtype.value)
    calculator = EquiCalculator(potential, device=device, dtype=dtype.value)
    with show.progress_bar("relax", steps) as advance:
        result = run(
            structure, calculator, settings, steps, output=out, existing=existing,
            progress=lambda step, force: advance(step, f"max force {force:.4f} eV/Å"),
        )  # fmt: skip
    show.relaxed(result, out)
    if not result.converged:
        raise typer.Exit(1)


def relax_every(structures, potential, settings, steps, out, existing, device, dtype) -> None:
    """`equinn relax --all`."""
    from .relax_batch import relax_all

    with show.progress_bar("relax", 1) as advance:
        results = relax_all(
            structures, potential, settings, steps, device=device, dtype=dtype, output=out, existing=existing,
            progress=lambda done, total: advance(done, total=total),
        )  # fmt: skip
    show.relaxed_all(results, out)
    if not all(result.converged for result in results):
        raise typer.Exit(1)


def md(
    potential: PotentialName,
    structure: Structure,
    ensemble: Annotated[
        Ensemble, typer.Option(help="nvt is Langevin, npt isotropic Martyna-Tobias-Klein.")
    ] = Ensemble.nve,
    temperature: Annotated[float | None, typer.Option(help="Target, K; for nve that of the initial momenta.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="In total, resumed or not.")] = 1000,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    pressure: Annotated[float, typer.Option(help="npt: target, GPa.")] = 0.0,
    thermostat_time: Annotated[float, typer.Option(help="Damping time, fs.")] = 100.0,
    barostat_time: Annotated[float, typer.Option(help="Damping time, fs.")] = 1000.0,
    initial_temperature: Annotated[
        float | None, typer.Option(help="Draw momenta at this, K; without it the structure's own are kept.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the momenta and of the thermostat's noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for md.csv, md.xyz and md.restart.npz.")] = Path("md"),
    log_every: Annotated[int, typer.Option(help="Steps between rows of md.csv.")] = 10,
    frame_every: Annotated[int, typer.Option(help="Steps between frames of md.xyz.")] = 100,
    restart_every: Annotated[int, typer.Option(help="Steps between restart files: what a kill costs at most.")] = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Precision = DType.float32,
):
    """Run molecular dynamics that continues bitwise after a kill.

    `equinn md silicon start.xyz --ensemble nvt --temperature 300 --steps 10000`
    """
    from .calculator import EquiCalculator
    from .dynamics import MDSettings
    from .dynamics import md as run

    settings = MDSettings(
        ensemble.value, temperature, timestep, pressure, thermostat_time, barostat_time, initial_temperature, seed,
        log_every, frame_every, restart_every,
    )  # fmt: skip
    calculator = EquiCalculator(potential, device=device, dtype=dtype.value)
    existing = show.existing(resume, overwrite)
    with show.progress_bar("md", steps) as advance:
        result = run(structure, calculator, settings, steps, output=out, existing=existing, progress=advance)
    show.ran(result)
