"""`equinn calibrate`: uncertainties for a potential or a committee; what `equinn info` says of a committee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device


def calibrate(
    potentials: Annotated[
        list[str],
        typer.Argument(
            metavar="POTENTIAL...",
            help="Folder, file or shipped name; three or more become a committee.",
            show_default=False,
        ),
    ],
    valid: Annotated[
        list[Path],
        typer.Option(help="Labelled structures that none was fitted to; repeat for more.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for what is calibrated.", show_default=False)],
    train: Annotated[
        list[Path] | None,
        typer.Option(help="What a single potential was trained on; repeat for more.", show_default=False),
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Judge the uncertainties on these as well.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a reliability plot.", show_default=False)] = None,
    centres: Annotated[
        int | None,
        typer.Option(min=1, help="That stand for the training atoms of an element; default 128.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the potential in that folder.")] = False,
    device: Device = "auto",
):
    """Let a potential say how far each of its forces may be off: by how far the atom is from all training atoms.

    Or a committee, three or more potentials that differ in seed or data: by how far their forces differ. All go into
    one file, which `EquiCalculator`, `equinn md`, `relax`, `eval` and `check` take like a potential.

    Forces get a `forces_sigma`, scaled so that it predicts their errors on the validation set;
    `EquiCalculator(..., guard="stop")` then ends a run that leaves the known.

    `equinn calibrate my_potential --train train.xyz --valid valid.xyz --plot reliability.png -o my_calibrated`

    `equinn calibrate seed0 seed1 seed2 --valid valid.xyz -o my_committee`
    """
    from .calibrate import CENTRES, calibrate_files
    from .calibrate_committee import calibrate_committee_files
    from .potential import read_header
    from .potential_find import file_of

    if file_of(out).exists() and not overwrite:
        raise ValueError(f"{file_of(out)} exists: choose another folder, or --overwrite")
    committee = len(potentials) > 1 or "members" in read_header(potentials[0])
    for name, value in (("--train", train), ("--centres", centres)):
        if committee and value:
            raise ValueError(f"{name} is for a single potential: a committee is calibrated by --valid alone")
    if not committee and not train:
        raise ValueError("a single potential needs --train, the atoms that it knows (three or more make a committee)")
    more = {"test": test or (), "device": device}
    with show.named_bar("calibrate") as progress:
        if committee:
            path, judged = calibrate_committee_files(potentials, valid, out, report=progress, **more)
        else:
            centres = centres or CENTRES
            path, judged = calibrate_files(potentials[0], train, valid, out, n_centres=centres, report=progress, **more)
    show.uncertainties(judged)
    show.out().print(f"written to {show.escape(str(path))}", soft_wrap=True)
    if plot:
        from .plot import save_figure
        from .plot_uncertainty import plot_reliability

        save_figure(plot_reliability(judged), plot)


def committee_info(name: str, header: dict) -> None:
    """The header of a committee's file (potential_file.COMMITTEE_FIELDS)."""
    from ase.data import chemical_symbols

    from .potential_committee import read_potentials

    read_potentials(name)  # what a header says is shown only if its members can be built
    spread, members = header["spread"], header["members"]
    factors = ", ".join(f"{chemical_symbols[int(z)]} {factor:.3g}" for z, factor in spread["factors"].items())
    rows = [
        ["species", " ".join(chemical_symbols[z] for z in members[0]["species"])],
        ["sigma² (eV/Å)²", f"{spread['floor']:.3g}² + (factor · spread)², factors: {factors}"],
        ["uncertainties", show.uncertainty(spread)],
        ["written by", f"ase_equinn {header['code_version']}, format {header['format_version']}"],
        ["sha256", header["sha256"]],
    ]
    show.table(f"{name}: a committee of {len(members)}", ["", ""], rows)
    files = spread["facts"].get("files", {}).get("members", [])
    rows = [
        [k, " + ".join(model["architecture"] for model in member["models"]), member["cutoff"], member["dtype"]]
        + [files[k]["file"] if len(files) == len(members) else None]
        for k, member in enumerate(members)
    ]
    show.table("Members", ["", "models", "cutoff, Å", "dtype", "made from"], rows)
