"""`equinn lammps`: potentials inside other programs' runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device, PotentialName

ENGINES = "Run a potential in another program"


def lammps(
    script: Annotated[Path, typer.Argument(metavar="IN.LMP", help="A LAMMPS input, see above.", show_default=False)],
    potential: Annotated[str, typer.Option(help="Folder, file or shipped name.", show_default=False)],
    elements: Annotated[
        str | None,
        typer.Option(
            help="Of the atom types 1, 2, ...: Si,O. Default: the elements of the masses.", show_default=False
        ),
    ] = None,
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=1, help="MPI processes to start.")] = 1,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32 or float64.")] = "float32",
):
    """Run a LAMMPS input with a potential, on any number of MPI ranks.

    The input is an ordinary one in `units metal` with one line `pair_style equinn`, after the box and the masses, in
    place of pair_style and pair_coeff. `neighbor` and `comm_modify` come after it, if at all. The energy is in pe and
    etotal: `thermo_style custom step temp pe etotal press`. Fixes, minimize and restart files work as ever.

    Under `mpirun` every rank calls this command; `-n` does that for you.

    `equinn lammps in.lmp --potential silicon -n 4`
    """
    local = os.environ.get("MPI_LOCALNRANKS", "")  # mpirun's word for the ranks on this machine; torch reads the answer
    if local.isdigit():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(local))))
    from .engines.lammps import run_script

    names = elements.replace(",", " ").split() if elements else None
    status = run_script(script, potential, elements=names, n_ranks=ranks, device=device, dtype=dtype)
    if status:
        raise typer.Exit(status)


def ipi(
    structure: Annotated[
        Path, typer.Argument(metavar="STRUCTURE", help="Elements in the order of the server's.", show_default=False)
    ],
    potential: Annotated[str, typer.Option(help="Folder, file or shipped name.", show_default=False)],
    socket: Annotated[
        str, typer.Option(metavar="NAME", help="The <address> in i-PI's input; with --port a host.", show_default=False)
    ],
    port: Annotated[
        int | None, typer.Option(help="The <port> in i-PI's input: TCP. Without it a UNIX socket.", show_default=False)
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a server, also for one that was lost.")] = 60.0,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32 or float64.")] = "float32",
):
    """Serve an i-PI run: path integrals, replica exchange. Start as many as you have cores; they share the beads.

    `equinn ipi ethanol.xyz --potential my_potential --socket ethanol`
    """
    from .engines.ipi import serve

    count = serve(
        potential,
        structure,
        socket,
        port,
        wait=wait,
        device=device,
        dtype=dtype,
        report=lambda text: show.err().print(text),
    )
    show.out().print(f"{count} evaluations served")


def parity(
    potential: PotentialName,
    structure: Annotated[
        Path, typer.Argument(metavar="STRUCTURE", help="Any file that ASE reads.", show_default=False)
    ],
    frames: Annotated[int, typer.Option(min=1, help="Of the file; where it has fewer, displaced copies.")] = 3,
    engines: Annotated[
        str | None, typer.Option(help="Some of batch,torch-sim,i-pi,lammps-1,... Default: all.", show_default=False)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table.", show_default=False)] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32 or float64.")] = "float64",
):
    """Prove that every installed engine gives the same energies, forces and stresses. Exit status 1 if one does not.

    `equinn parity silicon structure.xyz --json parity.json`
    """
    from .parity import as_json, notes, parity_table
    from .parity import parity as run
    from .potential_file import write_atomic

    chosen = engines.split(",") if engines else None
    with show.named_bar("parity") as progress:
        found = run(
            potential, structure, n_frames=frames, engines=chosen, device=device, dtype=dtype, progress=progress
        )
    show.out().print(parity_table(found))
    for line in notes(found):
        show.out().print(show.escape(line))
    if json_file:
        write_atomic(json_file, as_json(found).encode())
    if not found.passed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to `equinn`."""
    for command in (ipi, lammps, parity):
        app.command(rich_help_panel=ENGINES)(command)
