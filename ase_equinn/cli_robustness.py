"""`equinn holes`: where an energy surface falls instead of driving colliding atoms apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device, PotentialName


def holes(
    potential: PotentialName,
    structure: Annotated[
        Path | None,
        typer.Argument(
            metavar="STRUCTURE",
            help="A molecule. Default: that of the potential's check.xyz, or crystals of its elements.",
            show_default=False,
        ),
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Random structures of each element, and of mixtures.")] = 500,
    atoms: Annotated[str, typer.Option(help="In a random cell.")] = "2-12",
    temperature: Annotated[float, typer.Option(min=1, help="Of the dynamics, K.")] = 3000.0,
    picoseconds: Annotated[float, typer.Option("--ps", min=0, help="Of dynamics; 0: none.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the structures that are holes.", show_default=False)
    ] = None,
    device: Device = "auto",
):
    """Look for holes in the energy surface: random structures, colliding pairs, compression, 3000 K. Exit status 1 if any.

    A hole is an energy below the ground state, atoms that merge or attract at contact, numbers that are not finite.

    `equinn holes my_potential --json holes.json --out holes.xyz`
    """
    from .potential_file import write_atomic
    from .robustness import as_dict, find_holes, holes_table, save_holes

    with show.named_bar("holes") as progress:
        report = find_holes(
            potential, structure, n_cells=cells, sizes=_sizes(atoms), temperature=temperature, picoseconds=picoseconds,
            seed=seed, device=device, progress=progress,
        )  # fmt: skip
    show.out().print(holes_table(report))
    for hole in report.holes[:10]:
        show.out().print(show.escape(f"{hole.kind}: {hole.detail} ({hole.atoms.symbols})"), soft_wrap=True)
    if len(report.holes) > 10:
        show.out().print(f"and {len(report.holes) - 10} more")
    if json_file:
        write_atomic(json_file, (json.dumps(as_dict(report), indent=2) + "\n").encode())
    if out:
        save_holes(out, report)
    if report.holes:
        raise typer.Exit(1)


def _sizes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match or int(match[2] or match[1]) < int(match[1]) or int(match[1]) < 1:
        raise ValueError(f"--atoms must be a number or a range such as 2-12, got {text!r}")
    return int(match[1]), int(match[2] or match[1])
