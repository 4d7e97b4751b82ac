"""`equinn plot`: bases, spherical harmonics and Wigner matrices as pictures."""

from __future__ import annotations

from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

plot_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Draw radial and angular bases, spherical harmonics, Wigner matrices.",
    epilog="""
**Examples**

`equinn plot basis bessel -n 5 --cutoff 5 -o bessel.png`

`equinn plot basis bessel-legendre -n 2 -l 3`

`equinn plot harmonics --lmax 3`

`equinn plot wigner --irreps 10x0e+5x1o+2x2e`
""",
)


class Basis(str, Enum):
    gaussian = "gaussian"
    bessel = "bessel"
    chebyshev = "chebyshev"
    smooth_finite = "smooth_finite"
    bessel_legendre = "bessel-legendre"


Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="File (.png, .pdf or .svg), named after what it shows if not given."),
]


@plot_app.command()
def basis(
    name: Annotated[
        Basis, typer.Argument(metavar="NAME", help=", ".join(item.value for item in Basis), show_default=False)
    ],
    n: Annotated[int, typer.Option("-n", "--n", help="Radial functions; bessel-legendre: roots per degree.")] = 5,
    l: Annotated[  # noqa: E741
        int | None, typer.Option("-l", "--l", help="Degrees of bessel-legendre [default: 3].", show_default=False)
    ] = None,
    cutoff: Annotated[float, typer.Option(help="Å.")] = 5.0,
    out: Out = None,
):
    """Draw a radial basis, or (bessel-legendre) the basis of distance and angle as polar contours."""
    from .plot_basis import plot_bessel_legendre, plot_radial_basis

    path = out or Path(f"{name.value}.png")
    if name is Basis.bessel_legendre:
        typer.echo(plot_bessel_legendre(n, 3 if l is None else l, cutoff, path))
    elif l is not None:
        raise ValueError(f"-l belongs to bessel-legendre; the basis {name.value} has no degrees")
    else:
        typer.echo(plot_radial_basis(name.value, n, cutoff, path))


@plot_app.command()
def harmonics(
    lmax: Annotated[int, typer.Option(help="Highest degree, 0 to 8.")] = 3,
    out: Out = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Interactive page; beside the picture if not given and plotly is installed.", show_default=False
        ),
    ] = None,
):
    """Draw the real spherical harmonics as surfaces: a picture, and a page to turn them with the mouse."""
    from .plot_basis import plot_harmonics

    picture = out or Path(f"harmonics-{lmax}.png")
    if html is None and find_spec("plotly"):
        html = picture.with_suffix(".html")
    for path in plot_harmonics(lmax, picture, html):
        typer.echo(path)


@plot_app.command()
def wigner(
    irreps: Annotated[str, typer.Option(help="Such as 10x0e+5x1o+2x2e.")] = "10x0e+5x1o+2x2e",
    out: Out = None,
):
    """Draw the block-diagonal matrix that rotates features of the given irreps."""
    from .plot_basis import plot_wigner

    typer.echo(plot_wigner(irreps, out or Path("wigner.png")))
