"""Pictures of the bases: radial functions, the 2-D Bessel x Legendre basis, spherical harmonics, Wigner D matrices.

Every function writes a file and returns its path. Figures are made without pyplot, so no window, back end or style of
the caller is touched; a file is either its old content or all of the new. Colours stay apart for colour-blind readers.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from .angular import check_lmax, spherical_bessel_roots, spherical_harmonics
from .angular_bases import BesselLegendreBasis
from .irreps import Irreps
from .potential_file import write_atomic
from .radial import BASES, polynomial_envelope

FORMATS = (".png", ".pdf", ".svg")
DIVERGING = "RdBu_r"  # red positive, blue negative
POSITIVE, NEGATIVE = "#d6604d", "#4393c3"
MAX_DIM = 2000
_GREY = "0.45"
_TITLES = {
    "gaussian": r"Gaussian radial basis:  $\exp\left[-(r-\mu_k)^2 / 2\Delta^2\right]$",
    "bessel": r"Spherical Bessel radial basis:  $\sqrt{2/c}\;\sin(k\pi r/c)\,/\,r$",
    "chebyshev": r"Chebyshev radial basis:  $T_{k-1}(2r/c-1)$",
    "smooth_finite": r"Smooth finite radial basis:  $1.14\;\exp\left[2-2/(1-d_k^2)\right]$",
}


def _checked_path(output: str | Path, formats: tuple[str, ...] = FORMATS) -> Path:
    path = Path(output)
    if path.suffix.lower() not in formats:
        raise ValueError(f"the name of the picture must end in {', '.join(formats)}, got {str(output)!r}")
    return path


def _save(figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=160, facecolor="white")
    write_atomic(path, content.getvalue())
    return path


def plot_radial_basis(name: str, n: int, cutoff: float, output: str | Path) -> Path:
    """The n functions of a radial basis against distance, alone and under the polynomial envelope (p = 6).

    Args:
        name: a key of ``radial.BASES``: gaussian, bessel, chebyshev or smooth_finite.
        n: number of functions, >= 1.
        cutoff: Angstrom.
        output: file ending in .png, .pdf or .svg.

    Returns:
        The path of the file.

    Raises:
        ValueError: unknown name, n < 1, cutoff <= 0 or an unknown file ending, with the received value.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if name not in BASES:
        raise ValueError(f"the radial basis must be one of {', '.join(BASES)}, got {name!r}")
    basis, path = BASES[name](n, cutoff), _checked_path(output)
    r = np.linspace(0, 1.06 * basis.cutoff, 1001)
    values = basis(torch.from_numpy(r)).numpy()
    envelope = polynomial_envelope(torch.from_numpy(r), basis.cutoff).numpy()
    colors = colormaps["viridis"](np.linspace(0, 0.9, basis.n))

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    values[r > basis.cutoff] = 0.0  # a basis means nothing there
    low, high = min(values.min(), 0.0), max(values.max(), 1.0)
    for ax, title, factor in zip(axes, ("alone", "times the polynomial envelope, $p=6$"), (1.0, envelope[:, None])):
        shown = np.where(values == 0, np.nan, values * factor)  # exact zeros would only hide one another
        for k in range(basis.n):
            ax.plot(r, shown[:, k], color=colors[k], lw=2, label=f"$k={k + 1}$")
        ax.axhline(0, color=_GREY, lw=0.8, zorder=0)
        ax.axvline(basis.cutoff, color=_GREY, lw=1, ls=":")
        ax.text(basis.cutoff, high + 0.02 * (high - low), "cutoff  ", color=_GREY, ha="right", va="bottom", fontsize=9)
        ax.set(title=title, xlabel="distance $r$ (Å)", xlim=(0, r[-1]), ylim=(low - 0.05 * (high - low), None))
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].plot(r, envelope, color="black", ls="--", lw=1.2, label="envelope")
    axes[0].set_ylabel("value (Å$^{-3/2}$)" if name == "bessel" else "value")
    axes[0].set_ylim(top=high + 0.08 * (high - low))
    lines = axes[1].lines  # of many functions every second, third, ... is named, always the last; the envelope too
    named = sorted({*range(0, basis.n, -(-basis.n // 10)), basis.n - 1})
    figure.legend(handles=[*(lines[k] for k in named), lines[-1]], loc="outside right center", frameon=False)
    figure.suptitle(_TITLES[name])
    return _save(figure, path)


def plot_bessel_legendre(n: int, l: int, cutoff: float, output: str | Path) -> Path:
    """Polar contours of the 2-D basis j_l(z_ln r/c) P_l(cos a): a row per degree, a column per root.

    Args:
        n: number of roots per degree, >= 1.
        l: number of degrees, 1 to 9 (degrees 0 to l-1).
        cutoff: radius of the ball, Angstrom.
        output: file ending in .png, .pdf or .svg.

    Returns:
        The path of the file.

    Raises:
        ValueError: n or l < 1, l > 9, cutoff <= 0 or an unknown file ending, with the received value.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    basis, path = BesselLegendreBasis(n, l, cutoff), _checked_path(output)
    r, angle = np.linspace(0, basis.cutoff, 121), np.linspace(0, 2 * np.pi, 241)
    values = basis(*(torch.from_numpy(a) for a in np.meshgrid(r, np.cos(angle), indexing="ij"))).numpy()
    roots = spherical_bessel_roots(basis.l - 1, basis.n)

    figure = Figure(figsize=(max(2.5 * basis.n + 1.2, 5.2), 2.75 * basis.l + 0.9), layout="constrained")
    axes = figure.subplots(basis.l, basis.n, squeeze=False, subplot_kw={"projection": "polar"})
    for (degree, root), ax in np.ndenumerate(axes):
        field = values[..., degree * basis.n + root]
        field = field / np.abs(field).max()
        ax.contourf(angle, r, field, levels=np.linspace(-1, 1, 22), cmap=DIVERGING)
        ax.contour(angle, r, field, levels=[0.0], colors="black", linewidths=0.6)
        ax.set_title(f"$l={degree}$, $n={root + 1}$,  $z_{{ln}}={roots[degree, root]:.3f}$", fontsize=10)
        ax.set_xticks(np.radians([0, 90, 180, 270]), ["0°", "90°", "180°", "90°"], fontsize=7, color=_GREY)
        ax.set_yticks([basis.cutoff], [f"{basis.cutoff:g} Å"], fontsize=7, color=_GREY)
        ax.set_rlabel_position(45)
        ax.tick_params(pad=-1)
        ax.grid(False)
    scale, label = ScalarMappable(Normalize(-1, 1), DIVERGING), "value / largest magnitude"
    figure.colorbar(scale, ax=axes, shrink=0.6, ticks=[-1, 0, 1], label=label)
    figure.suptitle(r"$j_l(z_{ln}\,r/c)\;P_l(\cos\alpha)$" + f",  $c={basis.cutoff:g}$ Å")
    return _save(figure, path)


def _surfaces(lmax: int, fine: bool):
    """(l, m, xyz (3, p, 2p), Y/max|Y|): points at distance |Y| from the centre, polar axis y, the mesh finer with l."""
    for l in range(lmax + 1):
        n_polar = 65 if fine else 21 + 4 * l
        polar = np.linspace(1e-3, np.pi - 1e-3, n_polar)  # at the pole itself a face has no normal
        theta, phi = np.meshgrid(polar, np.linspace(0, -2 * np.pi, 2 * n_polar), indexing="ij")
        directions = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)])
        points = torch.from_numpy(np.moveaxis(directions, 0, -1))
        values = spherical_harmonics(l, points, normalize=False)[..., l * l :].numpy()
        for m, value in zip(range(-l, l + 1), np.moveaxis(values, -1, 0)):
            value = value / np.abs(value).max()
            yield l, m, np.abs(value) * directions, value


def plot_harmonics(lmax: int, output_png: str | Path | None, output_html: str | Path | None) -> list[Path]:
    """The real spherical harmonics to lmax as surfaces of radius |Y_lm|, red where positive and blue where negative.

    Args:
        lmax: highest degree, 0 to 8.
        output_png: picture (.png, .pdf or .svg), or None for none.
        output_html: interactive page that needs no network (.html), or None for none; needs plotly.

    Returns:
        The paths of the files.

    Raises:
        ValueError: lmax outside 0..8 or an unknown file ending, with the received value.
        ModuleNotFoundError: plotly is not installed but an HTML page is asked for.
    """
    lmax = check_lmax("plot_harmonics", lmax)
    png = None if output_png is None else _checked_path(output_png)
    html = None if output_html is None else _checked_path(output_html, (".html",))
    page = None if html is None else _harmonics_page(lmax)  # first: it fails where plotly is missing
    written = []
    if png is not None:
        written.append(_save(_harmonics_figure(lmax), png))
    if html is not None:
        write_atomic(html, page.encode())
        written.append(html)
    return written


def _harmonics_figure(lmax: int):
    from matplotlib.colors import LightSource, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cell = 1.9 if lmax <= 3 else 1.4
    width, height = max(cell * (2 * lmax + 1), 5.0), max(cell * (lmax + 1), 2.4) + 1.0
    figure, light = Figure(figsize=(width, height)), LightSource(azdeg=315, altdeg=45)
    top, step_x = 1 - 0.5 / height, 0.98 / (2 * lmax + 1)
    step_y = (top - 0.45 / height) / (lmax + 1)

    def axes(left, bottom, limit):
        ax = figure.add_axes((left, bottom, step_x, 0.86 * step_y), projection="3d", computed_zorder=False)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit))
        ax.set_box_aspect((1, 1, 1))
        ax.view_init(elev=22, azim=35)
        ax.set_axis_off()
        ax.patch.set_alpha(0)
        return ax

    # Matplotlib draws its third coordinate upwards: that is y, the polar axis of the harmonics.
    for l, m, (x, y, z), value in _surfaces(lmax, fine=lmax <= 3):
        left, bottom = 0.5 + (m - 0.5) * step_x, top - (l + 1) * step_y
        colors = np.where(value[..., None] > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
        axes(left, bottom + 0.14 * step_y, 0.64).plot_surface(
            z, x, y, facecolors=colors, rstride=1, cstride=1, lightsource=light, antialiased=False, lw=0
        )
        label = f"$Y_{{{l},{m}}}$" if lmax <= 3 else f"${l},\\,{m}$"
        figure.text(left + step_x / 2, bottom + 0.03 * step_y, label, ha="center", va="bottom", fontsize=11)
    if lmax:  # the top left of the pyramid is free
        triad = axes(0.01, top - step_y, 1.0)
        for name, (x, y, z) in zip("xyz", np.eye(3)):
            triad.quiver(0, 0, 0, z, x, y, color=_GREY, lw=1.2, arrow_length_ratio=0.2)
            triad.text(1.25 * z, 1.25 * x, 1.25 * y, f"${name}$", color=_GREY, ha="center", va="center")
    figure.suptitle(f"Real spherical harmonics, $l \\leq {lmax}$:  radius $|Y_{{l,m}}|$", y=1 - 0.1 / height, va="top")
    signs = [Patch(color=POSITIVE, label="positive"), Patch(color=NEGATIVE, label="negative")]
    figure.legend(handles=signs, loc="lower center", ncols=2, frameon=False)
    return figure


def _harmonics_page(lmax: int) -> str:
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the interactive page of the harmonics needs plotly: pip install plotly") from error

    figure, colors = go.Figure(), [[0.0, "#2166ac"], [0.5, "#f7f7f7"], [1.0, "#b2182b"]]
    # One scene for all: a browser keeps only about 16 WebGL contexts alive. Rows go down with l, columns right with m.
    for l, m, (x, y, z), value in _surfaces(lmax, fine=False):
        figure.add_surface(
            x=z.astype(np.float32), y=(x + 1.7 * m).astype(np.float32), z=(y - 1.9 * l).astype(np.float32),
            surfacecolor=value.astype(np.float32),
            cmin=-1, cmax=1, colorscale=colors, showscale=(l, m) == (0, 0),
            colorbar={"title": {"text": "Y / max|Y|"}, "len": 0.5, "thickness": 14, "tickvals": [-1, 0, 1]},
            name=f"l={l}, m={m}",
            hovertemplate=f"l = {l}, m = {m}<br>Y/max|Y| = %{{surfacecolor:.3f}}<extra></extra>",
            lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.2, "roughness": 0.6},
        )  # fmt: skip
    labels = [
        {"x": 0, "y": 1.7 * m, "z": -1.9 * l - 0.95, "text": f"{l}, {m}", "showarrow": False, "font": {"size": 11}}
        for l in range(lmax + 1) for m in range(-l, l + 1)
    ]  # fmt: skip
    figure.update_layout(
        title={"text": f"Real spherical harmonics, l ≤ {lmax} (label: l, m; polar axis y upwards)", "x": 0.5},
        scene={
            **{f"{name}axis": {"visible": False} for name in "xyz"}, "aspectmode": "data", "annotations": labels,
            "camera": {"eye": {"x": 2.0, "y": 0.35, "z": 0.45}, "projection": {"type": "orthographic"}},
        },
        margin={"l": 0, "r": 0, "t": 50, "b": 0},
    )  # fmt: skip
    return figure.to_html(full_html=True, include_plotlyjs=True)


def fixed_rotation() -> np.ndarray:
    """The proper rotation (3, 3) that ``plot_wigner`` shows: always the same one, with no zero and no special angle."""
    axis, angle = np.array([2.0, 1.0, -2.0]) / 3, 1.4
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def plot_wigner(irreps: str, output: str | Path) -> Path:
    """The block-diagonal matrix D(R) that rotates features of the given irreps, for one fixed rotation R.

    Args:
        irreps: such as ``"10x0e+5x1o+2x2e"``, of dimension 1 to 2000.
        output: file ending in .png, .pdf or .svg.

    Returns:
        The path of the file.

    Raises:
        ValueError: unreadable, empty or too large irreps, or an unknown file ending, with the received value.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    terms, path = Irreps(irreps), _checked_path(output)
    if not 1 <= terms.dim <= MAX_DIM:
        raise ValueError(f"the irreps must have dimension 1 to {MAX_DIM}, got {irreps!r} of dimension {terms.dim}")
    figure = Figure(figsize=(7.4, 6.6), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(terms.D(fixed_rotation()), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    start, ticks, labels = 0, [], []
    for term in terms:
        size = 2 * term.l + 1
        for copy in range(term.mul if terms.dim <= 200 else 0):
            corner = start + copy * size - 0.5
            ax.add_patch(Rectangle((corner, corner), size, size, fill=False, ec=_GREY, lw=0.6))
        ax.add_patch(Rectangle((start - 0.5, start - 0.5), term.dim, term.dim, fill=False, ec="black", lw=1.4))
        ticks.append(start + (term.dim - 1) / 2)
        labels.append(f"{term.mul}×{term.l}{'e' if term.p == 1 else 'o'}")
        start += term.dim
    ax.set_xticks(ticks, labels, rotation=90 if len(labels) > 8 else 0)
    ax.set_yticks(ticks, labels)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_xlabel(f"{terms.dim} components", labelpad=8)
    figure.colorbar(image, ax=ax, shrink=0.75, ticks=[-1, -0.5, 0, 0.5, 1], label="matrix element")
    figure.suptitle("Wigner matrix $D(R)$ of a rotation by 1.4 rad: one block per copy of an irrep")
    return _save(figure, path)
