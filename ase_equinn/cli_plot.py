"""`equinn plot`: bases, spherical harmonics and Wigner matrices as pictures."""

from __future__ import annotations

import typer

plot_app = typer.Typer(no_args_is_help=True, help="Draw radial and angular bases, spherical harmonics, Wigner matrices.")


@plot_app.command()
def basis():
    """Draw."""
