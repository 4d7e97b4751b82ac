"""The command `equinn`: parses, calls, prints. What a command does is in the module that it imports when it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

import ase_equinn

from . import cli_engines
from . import cli_output as show
from .cli_arguments import Device, DType, PotentialName, Precision
from .cli_distill import distill
from .cli_import import import_app
from .cli_plot import plot_app
from .cli_properties import properties
from .cli_robustness import holes
from .cli_run import md, relax
from .cli_uncertainty import calibrate, committee_info

RUN, MAKE, LOOK = "Run a potential", "Make and judge a potential", "Look at what it is made of"
EPILOG = """
**Examples**

`equinn demo` relaxes, runs and measures silicon

`equinn info silicon` prints what a potential says about itself

`equinn relax silicon start.cif --cell full --out relaxed` relaxes positions and cell

`equinn relax silicon crystals.xyz --all --out relaxed` relaxes every frame, as one batch

`equinn md silicon relaxed/relaxed.xyz --ensemble nvt --temperature 300 --steps 10000`

`equinn train config.yaml --max-time 25min` makes a potential from your own data

`equinn eval my_potential test.xyz --json errors.json --plot parity.png`

`equinn check my_potential structure.xyz` tests forces, stress, symmetries and drift

`equinn properties silicon --liquid-temperature 2000 --plot silicon.png` measures an element's crystal and liquid

`equinn holes my_potential --out holes.xyz` looks for structures that collapse: random cells, collisions, 3000 K

`equinn import mace my_mace.model -o my_potential` turns a trained MACE model into a potential

`equinn ipi ethanol.xyz --potential my_potential --socket ethanol` serves an i-PI run

`equinn parity silicon structure.xyz` proves that all engines that are installed agree

`equinn calibrate my_potential --train train.xyz --valid valid.xyz -o my_calibrated` adds uncertainties of forces

`equinn calibrate seed0 seed1 seed2 --valid valid.xyz -o my_committee` makes one calibrated committee of three

`equinn bench silicon --sizes 64,512 --plot bench.png` measures what a step costs on this machine

`equinn lammps in.lmp --potential silicon -n 4` runs a LAMMPS input on four MPI ranks

`equinn plot harmonics --lmax 3` draws the spherical harmonics

**Conventions**

A POTENTIAL is a folder, a file `model.safetensors` or the name of a shipped potential; a STRUCTURE is any file that ASE
reads. Units are eV, Å, fs, K and GPa. Results go to standard output, progress and messages to standard error.

Exit status: 0 done; 1 a check failed or a relaxation did not converge; 2 an input that cannot be used.
"""


class Commands(TyperGroup):
    """Errors that a user can mend become one red line and exit status 2; `equinn --debug` shows where they arose."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = show.explain(error)
            if message is None or ctx.params.get("debug"):
                raise
            show.fail(message)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="equinn",
    cls=Commands,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(import_app, name="import", rich_help_panel=MAKE)
app.add_typer(plot_app, name="plot", rich_help_panel=LOOK)
app.command(rich_help_panel=MAKE)(calibrate)
app.command(rich_help_panel=MAKE)(distill)
app.command(rich_help_panel=MAKE)(holes)
app.command(rich_help_panel=MAKE)(properties)
cli_engines.register(app)


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(ase_equinn.__version__)
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
):
    """**ase_equinn**: E(3)-equivariant interatomic potentials as ASE calculators."""


@app.command(rich_help_panel=RUN)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for trajectories, logs, figures and results.json.")] = Path(
        "equinn-demo"
    ),
    potential: Annotated[str, typer.Option(help="Any potential that knows silicon.")] = "silicon",
    steps: Annotated[int, typer.Option(min=10, help="Of each of the two MD runs, 1 fs each.")] = 1000,
    device: Device = "auto",
):
    """Relax, run and measure silicon beside DFT: what this package does, in three minutes on two cores, no network.

    `equinn demo`
    """
    from .demo import demo as run
    from .demo import demo_table

    with show.named_bar("demo") as progress:
        report = run(out, potential, steps=steps, device=device, progress=progress)
    show.out().print(demo_table(report))
    show.out().print(show.escape(f"{report.seconds:.0f} s; trajectories, logs and figures are in {report.folder}"))


app.command(rich_help_panel=RUN)(relax)
app.command(rich_help_panel=RUN)(md)


@app.command(rich_help_panel=MAKE)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML; see below.", show_default=False)],
    max_time: Annotated[
        str | None,
        typer.Option(help="Fit the whole schedule into this wall-clock time: 90s, 25min, 2h.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run; at most one epoch is lost.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Look for data files here, by name and sha256.", show_default=False),
    ] = None,
):
    """Train a potential from extended XYZ files.

    The smallest config is

    `data: {train: train.xyz, valid: valid.xyz}`

    `output: my_potential`

    `members: 4` in it trains four networks with other seeds, one after the other, and makes their mean the potential: more
    exact where data are few, at four times the cost.

    Ctrl-C keeps the best potential so far. The output folder is ready for `EquiCalculator("my_potential")`.
    """
    from .train import train as run

    run(config, max_time=max_time, resume=resume, data_dir=data)


@app.command("eval", rich_help_panel=MAKE)
def evaluate(
    potential: PotentialName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Labelled structures.", show_default=False)],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the errors.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a parity plot.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write labels and predictions as extxyz.", show_default=False)
    ] = None,
    energy_key: Annotated[
        str | None, typer.Option(help="Default: REF_energy, else energy.", show_default=False)
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(help="Default: REF_forces, else forces.", show_default=False)
    ] = None,
    stress_key: Annotated[
        str | None, typer.Option(help="Default: REF_stress, else stress.", show_default=False)
    ] = None,
    virial_key: Annotated[
        str | None, typer.Option(help="Default: REF_virial, else virial.", show_default=False)
    ] = None,
    device: Device = "auto",
    dtype: Precision = DType.float32,
):
    """Compare a potential with reference energies, forces and stresses.

    `equinn eval silicon test.xyz --json errors.json --plot parity.png --out predictions.xyz`
    """
    from .data import Keys, write_frames
    from .evaluate_batches import load_potential
    from .evaluate_files import evaluate_files
    from .potential_file import write_atomic

    loaded = load_potential(potential, device=device, dtype=dtype.value)
    with show.progress_bar("eval", 1) as advance:
        result = evaluate_files(
            loaded, files, keys=Keys(energy_key, forces_key, stress_key, virial_key),
            report=lambda done, total: advance(done, total=total),
        )  # fmt: skip
    show.errors(result.errors)
    if json_file:
        write_atomic(json_file, (json.dumps(result.errors, indent=2) + "\n").encode())
    if out:
        write_frames(out, result.frames, result.predictions)
    if plot:
        from .plot import plot_parity, save_figure

        save_figure(plot_parity({potential: (result.frames, result.predictions)}), plot)


@app.command(rich_help_panel=MAKE)
def check(
    potential: PotentialName,
    structure: Annotated[
        Path | None, typer.Argument(metavar="STRUCTURE", help="Default: a frame that came with it, or a crystal.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of displacements, rotations and momenta.")] = 0,
    device: Device = "auto",
):
    """Prove a potential sound: exact derivatives and symmetries, no jumps, stable dynamics. Exit status 1 if one fails.

    `equinn check silicon structure.xyz --json check.json`
    """
    from .check import as_dict, check_table
    from .check import check as run
    from .potential_file import write_atomic

    with show.named_bar("check") as progress:
        results = run(potential, structure, device=device, seed=seed, progress=progress)
    show.out().print(check_table(results))
    if json_file:
        write_atomic(json_file, (json.dumps(as_dict(results), indent=2) + "\n").encode())
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command(rich_help_panel=MAKE)
def bench(
    potential: PotentialName,
    structure: Annotated[
        Path | None, typer.Argument(metavar="STRUCTURE", help="Repeated to each size. Default: a crystal.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Numbers of atoms.")] = "8,64,216,1000",
    seconds: Annotated[float, typer.Option(help="Measured for each size.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot over the sizes.", show_default=False)] = None,
    backend: Annotated[str, typer.Option(help="Of the operators: auto, llvm, triton, reference.")] = "auto",
    device: Device = "auto",
    dtype: Precision = DType.float32,
):
    """Measure what an MD step costs on this machine, by the number of atoms, and where the time goes.

    `equinn bench silicon --sizes 64,512 --plot bench.png`
    """
    from .bench import as_dict, bench_table, plot_bench
    from .bench import bench as run
    from .plot import save_figure
    from .potential_file import write_atomic

    counts = show.integers("--sizes", sizes)
    with show.named_bar("bench") as progress:
        found = run(
            potential, structure, sizes=counts, device=device, dtype=dtype.value, backend=backend, seconds=seconds,
            progress=progress,
        )  # fmt: skip
    show.out().print(bench_table(found))
    if json_file:
        write_atomic(json_file, (json.dumps(as_dict(found), indent=2) + "\n").encode())
    if plot:
        save_figure(plot_bench(found), plot)


@app.command(rich_help_panel=LOOK)
def info(
    potential: Annotated[str | None, typer.Argument(metavar="POTENTIAL", help="None lists the shipped ones.")] = None,
):
    """Print what a potential says about itself; without an argument, the shipped potentials."""
    from .potential import Potential, read_header, shipped_potentials

    if potential is None:
        show.shipped(shipped_potentials())
    elif "members" in (header := read_header(potential)):
        committee_info(potential, header)
    else:
        show.header(potential, header, Potential.load(potential))


def main() -> None:
    """The entry point. PyTorch's OpenMP threads shall sleep while they wait: beside another busy process, spinning ones
    make a step ten times slower. Set before anything imports torch; whoever has chosen a policy keeps it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
