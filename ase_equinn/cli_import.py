"""`equinn import`: potentials that other programs have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Turn a model that another program has trained into a potential.",
    epilog="""
**Example**

`equinn import mace my_mace.model -o my_potential`
""",
)


@import_app.callback()
def programs():
    """Turn a model that another program has trained into a potential."""


@import_app.command()
def mace(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .model file of mace-torch.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the potential.", show_default=False)],
    head: Annotated[
        str | None, typer.Option(help="Which head; needed if there are several.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the potential in that folder.")] = False,
):
    """Import a MACE model: same energies, forces and stress. Nothing in the file is executed; mace-torch is not needed.

    `equinn import mace my_mace.model -o my_potential`
    """
    from .cli_output import header
    from .mace_import import import_mace
    from .potential import FILE_NAME, read_header

    if (out / FILE_NAME).exists() and not overwrite:
        raise ValueError(f"{out / FILE_NAME} exists: choose another folder, or --overwrite")
    potential = import_mace(model, head)
    path = potential.save(out)
    header(str(path), read_header(path), potential)
