"""`equinn properties`: an element's crystal and liquid, as a potential sees them."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device, PotentialName


class Crystal(str, Enum):
    diamond = "diamond"
    fcc = "fcc"
    bcc = "bcc"
    hcp = "hcp"


def properties(
    potential: PotentialName,
    symbol: Annotated[
        str | None, typer.Option(help="Element. Default: the one that the potential knows.", show_default=False)
    ] = None,
    crystal: Annotated[
        Crystal | None, typer.Option(help="Default: the element's reference state.", show_default=False)
    ] = None,
    structure: Annotated[
        Path | None, typer.Option(help="Or any file that ASE reads, a crystal of one element.", show_default=False)
    ] = None,
    solid_temperature: Annotated[
        float | None, typer.Option(help="Run the crystal at this, K.", show_default=False)
    ] = None,
    liquid_temperature: Annotated[
        float | None,
        typer.Option(help="Melt it at 1.75 times this, then run the liquid at this, K.", show_default=False),
    ] = None,
    md_time: Annotated[float, typer.Option(help="Of each run, ps.")] = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers.", show_default=False)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write energy over volume, phonon bands, g(r).", show_default=False)
    ] = None,
    device: Device = "auto",
):
    """Measure an element's crystal: lattice, elastic constants, vacancy, surfaces, phonons, and whether MD is stable.

    Exit status 1 if phonons are imaginary, a run of molecular dynamics was not stable, or a part failed.

    `equinn properties silicon --liquid-temperature 2000 --md-time 20 --plot silicon.png`
    """
    from .potential_file import write_atomic
    from .properties import DYNAMICS, as_dict, dynamics_rows, rows
    from .properties import properties as run

    if crystal and structure:
        raise ValueError("--crystal and --structure exclude each other")
    if structure and not structure.is_file():
        raise FileNotFoundError(f"no structure file {str(structure)!r}")
    with show.named_bar("properties") as progress:
        found = run(
            potential, symbol, structure=structure or (crystal and crystal.value), solid=solid_temperature,
            liquid=liquid_temperature, time=md_time, device=device, progress=progress,
        )  # fmt: skip
    show.table(f"{potential}: {found.name}", ["", "", "unit"], rows(found))
    if found.dynamics:
        columns = zip(DYNAMICS, *dynamics_rows(found), strict=True)
        show.table("Molecular dynamics at constant volume", [""] * (1 + len(found.dynamics)), columns)
    for note in found.failed + found.skipped:
        show.err().print(f"[yellow]{show.escape(note)}[/]", soft_wrap=True)
    if json_file:
        write_atomic(json_file, (json.dumps({"potential": potential, **as_dict(found)}, indent=2) + "\n").encode())
    if plot:
        from .plot import save_figure
        from .plot_properties import plot_properties

        save_figure(plot_properties(found), plot)
    unsound = found.failed or found.phonons and found.phonons.imaginary or not all(r.stable for r in found.dynamics)
    if unsound:
        raise typer.Exit(1)
