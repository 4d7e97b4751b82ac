"""`equinn lammps`: potentials inside other programs' runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ENGINES = "Run a potential in another program"


def lammps(
    script: Annotated[Path, typer.Argument(metavar="IN.LMP", help="A LAMMPS input; see below.", show_default=False)],
    potential: Annotated[str, typer.Option(help="Folder, file or shipped name.", show_default=False)],
    elements: Annotated[
        str | None,
        typer.Option(help="Of the atom types 1, 2, ...: Si,O. Default: the elements of the masses.", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=1, help="MPI processes to start.")] = 1,
    device: Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32 or float64.")] = "float32",
):
    """Run a LAMMPS input with a potential, on any number of MPI ranks.

    The input is an ordinary one in `units metal` whose line `pair_style equinn`, anywhere after the box exists, stands
    for the potential. Under `mpirun` every rank calls this command; `-n` does that for you.

    `equinn lammps in.lmp --potential silicon -n 4`
    """
    from .engines.lammps import run_script

    names = elements.replace(",", " ").split() if elements else None
    status = run_script(script, potential, elements=names, n_ranks=ranks, device=device, dtype=dtype)
    if status:
        raise typer.Exit(status)


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to `equinn`."""
    app.command(rich_help_panel=ENGINES)(lammps)
