"""`equinn calibrate`: uncertainties for a potential."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show


def calibrate(
    potential: Annotated[
        str, typer.Argument(metavar="POTENTIAL", help="Folder, file or shipped name.", show_default=False)
    ],
    train: Annotated[
        list[Path], typer.Option(help="What it was trained on; repeat for more files.", show_default=False)
    ],
    valid: Annotated[
        list[Path], typer.Option(help="Labelled structures that it was not fitted to.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the calibrated potential.", show_default=False)],
    test: Annotated[
        list[Path] | None, typer.Option(help="Judge the uncertainties on these as well.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a reliability plot.", show_default=False)] = None,
    centres: Annotated[int, typer.Option(min=1, help="That stand for the training atoms of an element.")] = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the potential in that folder.")] = False,
    device: Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, cuda:N.")] = "auto",
):
    """Let a potential say how far each of its forces may be off, by how far the atom is from all training atoms.

    Forces get a `forces_sigma`, scaled so that it predicts their errors on the validation set;
    `EquiCalculator(..., guard="stop")` then ends a run that leaves the known.

    `equinn calibrate my_potential --train train.xyz --valid valid.xyz --plot reliability.png -o my_calibrated`
    """
    from .calibrate import calibrate_files
    from .potential import FILE_NAME

    if (out / FILE_NAME).exists() and not overwrite:
        raise ValueError(f"{out / FILE_NAME} exists: choose another folder, or --overwrite")
    with show.named_bar("calibrate") as progress:
        path, judged = calibrate_files(
            potential, train, valid, out, test=test or (), n_centres=centres, device=device, report=progress
        )
    show.uncertainties(judged)
    show.out().print(f"written to {show.escape(str(path))}", soft_wrap=True)
    if plot:
        from .plot import save_figure
        from .plot_uncertainty import plot_reliability

        save_figure(plot_reliability(judged), plot)
