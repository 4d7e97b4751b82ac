"""The pictures hold the numbers that they claim, are complete files, and leave the caller's matplotlib alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ase_equinn import plot_basis
from ase_equinn.angular import spherical_harmonics
from ase_equinn.angular_bases import BesselLegendreBasis
from ase_equinn.irreps import Irreps
from ase_equinn.plot_basis import plot_bessel_legendre, plot_harmonics, plot_radial_basis, plot_wigner
from ase_equinn.radial import BASES, polynomial_envelope


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in order; the files are written all the same."""
    seen, save = [], plot_basis._save
    monkeypatch.setattr(plot_basis, "_save", lambda figure, path: (seen.append(figure), save(figure, path))[1])
    return seen


def check_picture(path, least=300):
    """A complete picture with something on it, and nothing else left in the folder."""
    pixels = imread(path)
    assert min(pixels.shape[:2]) > least and 0.02 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.9
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", BASES)
def test_radial_curves_are_the_basis_alone_and_under_the_envelope(name, figures, tmp_path):
    path = plot_radial_basis(name, 5, 4.0, tmp_path / "basis.png")
    check_picture(path)
    alone, damped = figures[0].axes[:2]
    assert "Å" in alone.get_xlabel() and alone.get_ylabel()
    basis = BASES[name](5, 4.0)
    for axis, envelope in ((alone, lambda r: 1), (damped, lambda r: polynomial_envelope(r, 4.0))):
        curves = [line for line in axis.lines if line.get_label().startswith("$k=")]
        assert len(curves) == 5
        for k, line in enumerate(curves):
            r, y = torch.from_numpy(np.asarray(line.get_xdata())), np.asarray(line.get_ydata())
            want = (basis(r)[:, k] * envelope(r)).numpy()
            shown = np.isfinite(y)
            assert shown.sum() > 200 and np.abs(y - want)[shown].max() < 1e-14
            assert not want[~shown & (r.numpy() <= 4.0)].any()  # only exact zeros are left out
    assert {line.get_label() for line in damped.lines} >= {"envelope"}


def test_bessel_legendre_grid_and_its_zero_lines(figures, tmp_path):
    """A row per degree, a column per root; the drawn zero lines are zeros of the basis, to the mesh of c/120."""
    check_picture(plot_bessel_legendre(2, 3, 5.0, tmp_path / "grid.png"))
    polar = [ax for ax in figures[0].axes if ax.name == "polar"]
    assert len(polar) == 6 and figures[0].axes[-1].get_ylabel() == "value / largest magnitude"
    for column, axis in enumerate(polar):
        assert axis.get_title().startswith(f"$l={column // 2}$, $n={column % 2 + 1}$")
        if column == 0:  # no zero inside the ball
            continue
        angle, r = np.concatenate([path.vertices for path in axis.collections[-1].get_paths()]).T
        points = torch.from_numpy(r.copy()), torch.from_numpy(np.cos(angle))
        values = BesselLegendreBasis(2, 3, 5.0)(*points)[:, column]
        peak = BesselLegendreBasis(2, 3, 5.0)(torch.linspace(0, 5, 100), torch.ones(100))[:, column].abs().max()
        assert len(r) > 50 and values.abs().max() < 2e-3 * peak


def test_surfaces_are_at_the_distance_of_the_magnitude_of_the_harmonics():
    seen = []
    for l, m, xyz, value in plot_basis._surfaces(3, fine=False):
        seen.append((l, m))
        points = torch.from_numpy(np.moveaxis(xyz, 0, -1).reshape(-1, 3))
        exact = spherical_harmonics(l, points)[:, l * l + l + m].numpy()
        length = points.norm(dim=1).numpy()
        far = length > 1e-8
        scale = np.abs(exact).max()
        assert np.abs(length - np.abs(value.ravel())).max() < 1e-12 and np.abs(value).max() == 1
        assert np.abs(value.ravel()[far] - exact[far] / scale).max() < 1e-6
    assert seen == [(l, m) for l in range(4) for m in range(-l, l + 1)]


def test_harmonics_as_picture_and_as_page_without_network(figures, tmp_path):
    png, html = plot_harmonics(1, tmp_path / "png" / "y.png", tmp_path / "html" / "y.html")
    check_picture(png)
    surfaces = [ax for ax in figures[0].axes if ax.name == "3d" and len(ax.collections) == 1]
    assert len(surfaces) == 4
    labels = [text.get_text() for text in figures[0].texts]
    assert "$Y_{0,0}$" in labels and "$Y_{1,-1}$" in labels
    page = html.read_text()
    assert page.count('"type":"surface"') >= 4 and "l=1, m=-1" in page
    assert '<script src="http' not in page and len(page) > 1_000_000  # plotly.js is inside


def test_harmonics_of_the_highest_degree_fit_one_picture(tmp_path):
    (png,) = plot_harmonics(0, tmp_path / "zero.png", None)
    check_picture(png)
    assert sum(1 for _ in plot_basis._surfaces(8, fine=False)) == 81


def test_wigner_picture_shows_the_matrix_and_its_blocks(figures, tmp_path):
    path = plot_wigner("10x0e+5x1o+2x2e", tmp_path / "d.png")
    check_picture(path)
    axis = figures[0].axes[0]
    matrix = np.asarray(axis.images[0].get_array())
    rotation = plot_basis.fixed_rotation()
    assert matrix.shape == (35, 35) and np.abs(matrix @ matrix.T - np.eye(35)).max() < 1e-12
    assert np.array_equal(matrix, Irreps("10x0e+5x1o+2x2e").D(rotation))
    assert np.abs(matrix[10:13, 10:13] - rotation).max() < 1e-13  # l = 1 is the rotation itself
    frames = [(p.get_x() + 0.5, p.get_width()) for p in axis.patches]
    assert {(10 + 3 * k, 3) for k in range(5)} <= set(frames) and {(0, 10), (10, 15), (25, 10)} <= set(frames)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["10×0e", "5×1o", "2×2e"]


def test_the_fixed_rotation_is_proper():
    rotation = plot_basis.fixed_rotation()
    assert np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-15 and np.linalg.det(rotation) == pytest.approx(1)
    assert np.trace(rotation) == pytest.approx(1 + 2 * np.cos(1.4)) and np.abs(rotation).min() > 0.02
    axis = np.array([2, 1, -2]) / 3
    assert np.abs(rotation @ axis - axis).max() < 1e-15


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".PNG"])
def test_other_formats(suffix, tmp_path):
    path = plot_wigner("1o", tmp_path / f"d{suffix}")
    start = path.read_bytes()[:5]
    assert start == {".pdf": b"%PDF-", ".svg": b"<?xml", ".PNG": b"\x89PNG\r"}[suffix]


@pytest.mark.parametrize("call, received", [
    (lambda out: plot_radial_basis("fourier", 5, 5.0, out), "'fourier'"),
    (lambda out: plot_radial_basis("bessel", 0, 5.0, out), "0"),
    (lambda out: plot_radial_basis("bessel", 5, -5.0, out), "-5.0"),
    (lambda out: plot_bessel_legendre(0, 3, 5.0, out), "0"),
    (lambda out: plot_bessel_legendre(2, 10, 5.0, out), "10"),
    (lambda out: plot_bessel_legendre(2, 3, 0.0, out), "0.0"),
    (lambda out: plot_harmonics(9, out, None), "9"),
    (lambda out: plot_harmonics(-1, out, None), "-1"),
    (lambda out: plot_harmonics(1, None, out), "png'"),
    (lambda out: plot_wigner("3y1", out), "3y1"),
    (lambda out: plot_wigner("", out), "''"),
    (lambda out: plot_wigner("5000x0e", out), "5000x0e"),
    (lambda out: plot_wigner("1o", out.with_suffix(".gif")), "gif'"),
    (lambda out: plot_radial_basis("bessel", 5, 5.0, out.with_suffix("")), "old'"),
])  # fmt: skip
def test_bad_input_is_refused_with_the_value_and_the_old_file_stays(call, received, tmp_path):
    old = tmp_path / "old.png"
    old.write_text("old")
    with pytest.raises(ValueError, match=received):
        call(old)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


def test_missing_plotly_says_what_to_install_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ModuleNotFoundError, match="pip install plotly"):
        plot_harmonics(1, tmp_path / "y.png", tmp_path / "y.html")
    assert not list(tmp_path.iterdir())
    assert plot_harmonics(0, tmp_path / "y.png", None) == [tmp_path / "y.png"]


def test_pyplot_and_its_back_end_are_never_touched(tmp_path):
    code = (
        "import sys; import ase_equinn.plot_basis as p; assert 'matplotlib' not in sys.modules\n"
        f"p.plot_wigner('1o', r'{tmp_path / 'd.png'}'); p.plot_bessel_legendre(1, 1, 5.0, r'{tmp_path / 'b.png'}')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules and 'plotly' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
