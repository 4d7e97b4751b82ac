"""Figures of runs: what they show is compared with the numbers that went in."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from ase_equinn.plot_md import plot_energy, plot_rdf, plot_relaxation, plot_temperature, radial_distribution, read_log


def test_g_of_r_of_an_ideal_gas_is_one():
    """Independent points: 10 frames of 150 atoms give 1e5 pairs within 5 A, so the outer bins are good to a percent."""
    rng = np.random.default_rng(0)
    cell = np.array([[9.0, 0, 0], [2.0, 8.0, 0], [1.0, -1.0, 10.0]])
    frames = [Atoms("H150", positions=rng.random((150, 3)) @ cell, cell=cell, pbc=True) for _ in range(10)]
    r, g = radial_distribution(frames, 5.0, 5)
    assert np.allclose(r, [0.5, 1.5, 2.5, 3.5, 4.5])
    # N^2 instead of N(N - 1) lowers it by 1/N; the first bin holds few pairs
    assert np.allclose(g[1:], 1, atol=0.03)
    assert g[0] == pytest.approx(1, abs=0.15)


def test_g_of_r_counts_the_neighbours_of_a_crystal():
    """Its integral times 4 pi r^2 rho is the coordination: 4 and 12 in diamond, also from 2 atoms."""
    for atoms in (bulk("Si"), bulk("Si", cubic=True)):
        r, g = radial_distribution([atoms], 4.2, 420)
        counts = g * 4 * np.pi * r**2 * 0.01 * len(atoms) / atoms.get_volume()
        assert counts[r < 3].sum() == pytest.approx(4, rel=1e-3)
        assert counts[r > 3].sum() == pytest.approx(12, rel=1e-3)


def test_structures_without_a_volume_have_no_g_of_r():
    for frames in ([], [Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]])]):
        with pytest.raises(ValueError, match=rf"received {len(frames)}"):
            radial_distribution(frames)


@pytest.fixture
def log(tmp_path):
    """A run whose conserved energy of 10 atoms rises by 0.02 eV in 1 ps: 2 meV/atom/ps."""
    lines = [
        "step,time_fs,potential_energy,kinetic_energy,total_energy,conserved_energy,temperature,volume,pressure_GPa"
    ]
    for step in range(0, 1001, 100):
        lines.append(
            f"{step},{float(step)},-5.0,{0.5 + 2e-5 * step},-4.5,{-4.5 + 2e-5 * step},{300 + step / 10},100.0,"
        )
    path = tmp_path / "md.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_log_is_read_with_gaps(log):
    columns = read_log(log)
    assert columns["temperature"][-1] == 400
    assert np.isnan(columns["pressure_GPa"]).all()
    log.write_text("step,energy\n")
    with pytest.raises(ValueError, match="md.csv holds no rows"):
        read_log(log)


def test_energy_figure_states_the_slope(log):
    axes = plot_energy(log, 10).axes
    texts = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert "slope +2 meV/atom/ps" in texts
    kinetic = axes[0].lines[1].get_ydata()
    assert kinetic[-1] == pytest.approx(2.0)


def test_energy_figure_refuses_a_run_that_conserves_nothing(log):
    header, *lines = log.read_text().splitlines()
    blank = [",".join([*line.split(",")[:5], "", *line.split(",")[6:]]) for line in lines]
    log.write_text("\n".join([header, *blank]) + "\n")
    with pytest.raises(ValueError, match="no conserved energy"):
        plot_energy(log, 10)


def test_temperature_figure_states_the_mean(log):
    axis = plot_temperature({"NVT": log}, 300).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["300 K", "NVT, 375 K in the second half"]


def test_relaxation_figure_shows_energies_above_the_last(tmp_path):
    path = tmp_path / "relax.csv"
    path.write_text("step,energy,max_force,max_stress_GPa,volume\n0,-1.0,2.0,,\n1,-3.0,0.1,,\n2,-3.5,0.01,,\n")
    axes = plot_relaxation({"a": path}).axes
    assert np.allclose(axes[0].lines[0].get_ydata(), [2.5, 0.5])
    assert np.allclose(axes[1].lines[0].get_ydata(), [2.0, 0.1, 0.01])


def test_rdf_figure_marks_the_shells():
    atoms = bulk("Si", cubic=True)
    axis = plot_rdf({"rest": [atoms]}, atoms, 4.2).axes[0]
    shells = [segment[0, 0] for segment in axis.collections[0].get_segments()]
    assert np.allclose(shells, [2.351, 3.84], atol=1e-3)
