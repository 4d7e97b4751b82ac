"""A potential evaluated in batches gives what it gives one structure at a time."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from labelled import copper, label, save

from ase_equinn.data import read_frames
from ase_equinn.data_batches import prepare
from ase_equinn.evaluate_files import evaluate_files, predict
from ase_equinn.models.schnet import SchNet
from ase_equinn.plot import plot_learning_curve, plot_parity, save_figure
from ase_equinn.potential import Potential


@pytest.fixture(scope="module")
def potential():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SchNet((8, 29), 4.0, n_channels=8, n_layers=1, n_basis=8).double()
    return Potential([model], shift={8: -1.0, 29: -2.0})


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "a.xyz", [*copper(4), label(molecule("O2"), "molecule")])


def test_predictions_do_not_depend_on_batches(potential, file):
    """Float64: sums over atoms may be ordered differently, 1e-12 relative."""
    samples = prepare(read_frames(file).frames, potential.cutoffs, potential.species)
    together = predict(potential, samples)
    for i, p in enumerate(together):
        (single,) = predict(potential, [samples[i]])
        assert p.energy == pytest.approx(single.energy, rel=1e-12)
        np.testing.assert_allclose(p.forces, single.forces, atol=1e-12)
        if i < 4:
            np.testing.assert_allclose(p.stress, single.stress, atol=1e-12)
    assert together[4].stress is None and together[3].stress is not None
    small = predict(potential, samples, max_edges=1)
    assert [p.energy for p in small] == pytest.approx([p.energy for p in together], rel=1e-12)


def test_errors_vanish_on_the_potentials_own_numbers(potential, file, tmp_path):
    """Labels replaced by the predictions: what is left is the rounding of extxyz, 1e-8 eV/A in each force."""
    result = evaluate_files(potential, file)
    own = [
        frame._replace(energy=p.energy, forces=p.forces, stress=p.stress)
        for frame, p in zip(result.frames, result.predictions)
    ]
    from ase_equinn.data import write_frames

    write_frames(tmp_path / "own.xyz", own)
    found = evaluate_files(potential, tmp_path / "own.xyz").errors
    assert found["n_frames"] == 5
    for key in ("energy_mae", "force_mae", "stress_mae"):
        assert found[key] < 1e-4 < result.errors[key], key
    assert set(found["per_species"]) == {"Cu", "O"}


def test_unknown_element_is_named(potential, tmp_path):
    path = save(tmp_path / "w.xyz", [label(molecule("H2O"))])
    with pytest.raises(ValueError, match=r"w.xyz:0: atom 1 has atomic number 1 \(H\); supported: O, Cu"):
        evaluate_files(potential, path)


def test_plots_show_what_they_are_given(potential, file, tmp_path):
    result = evaluate_files(potential, file)
    figure = plot_parity({"test": (result.frames, result.predictions)})
    assert [axes.get_xlabel().split()[1] for axes in figure.axes] == ["energy", "force", "stress"]
    shown = figure.axes[0].get_lines()[1].get_xydata()
    np.testing.assert_allclose(shown[:, 0], [f.energy / len(f.atoms) for f in result.frames])
    np.testing.assert_allclose(shown[:, 1], [p.energy / len(p.forces) for p in result.predictions])
    assert f"{result.errors['force_mae']:.3g}" in figure.axes[1].get_legend_handles_labels()[1][0]
    bare = [f._replace(stress=None) for f in result.frames]
    assert len(plot_parity({"test": (bare, result.predictions)}).axes) == 2
    path = save_figure(figure, tmp_path / "parity.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_learning_curve_marks_the_best_epoch(tmp_path):
    rows = [
        {
            "epoch": k + 1, "learning_rate": 0.01 / (k + 1),
            "train_loss": 1.0 / (k + 1), "valid_loss": (k - 1.9) ** 2 + 1,
            "valid_energy_mae": 5.0 - k, "valid_force_mae": 50.0 - k, "valid_stress_mae": None,
        }
        for k in range(4)
    ]  # fmt: skip
    figure = plot_learning_curve(rows)
    labels = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    assert "best: epoch 3" in labels and "stress (meV/A^3)" not in labels
    assert save_figure(figure, tmp_path / "a.png").stat().st_size > 1000
