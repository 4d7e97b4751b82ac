"""`equinn distill`: training data from a committee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as show
from .cli_arguments import Device


def distill(
    potentials: Annotated[
        list[str],
        typer.Argument(
            metavar="POTENTIAL...",
            help="Members, or one calibrated committee: folder, file or name.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(help="Structures to start from: the training set, or dynamics; repeat for more.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the labelled structures.", show_default=False)],
    copies: Annotated[int, typer.Option(min=1, help="Of each structure.")] = 4,
    rattle: Annotated[float, typer.Option(min=0, help="Largest standard deviation of displacements, Å.")] = 0.1,
    strain: Annotated[float, typer.Option(min=0, help="The same of strains, where periodic.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    device: Device = "auto",
):
    """Label the surroundings of a training set with a committee's mean, for one network that knows what all of them know.

    `equinn distill seed0 seed1 seed2 seed3 --data train.xyz -o distilled.xyz`

    or, of a molecule, the frames of dynamics as they are:

    `equinn md seed0 train.xyz --ensemble nvt --temperature 300 --initial-temperature 300 --steps 50000`

    `equinn distill seed0 seed1 --data md/md.xyz --copies 1 --rattle 0 --strain 0 -o distilled.xyz`

    and then in config.yaml: `data: {train: [train.xyz, distilled.xyz], valid: valid.xyz}`
    """
    from .distill import distill_files

    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: choose another file, or --overwrite")
    with show.progress_bar("distill", 1) as advance:
        n = distill_files(
            potentials if len(potentials) > 1 else potentials[0], data, out, copies=copies, rattle=rattle, strain=strain,
            seed=seed, device=device, progress=lambda done, total: advance(done, "", total),
        )  # fmt: skip
    show.out().print(f"{n} structures written to {show.escape(str(out))}", soft_wrap=True)
