"""Arguments that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DType(str, Enum):
    float32 = "float32"
    float64 = "float64"


PotentialName = Annotated[
    str, typer.Argument(metavar="POTENTIAL", help="Folder, file or shipped name.", show_default=False)
]
Structure = Annotated[
    Path, typer.Argument(metavar="STRUCTURE", help="Any file that ASE reads; its last frame.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, cuda:N.")]
Precision = Annotated[DType, typer.Option("--dtype", help="Of the network; sums are float64 in any case.")]
