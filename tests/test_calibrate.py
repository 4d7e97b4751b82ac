"""Calibration from frames and files, on copper with EMT's labels and an untrained potential."""

import numpy as np
import pytest
import torch
from labelled import copper, save

from ase_equinn import EquiCalculator, Potential, SchNet, read_header
from ase_equinn.calibrate import calibrate, calibrate_files, describe, judge_uncertainty
from ase_equinn.data import file_sha256, read_frames
from ase_equinn.evaluate_batches import load_potential
from ase_equinn.plot_uncertainty import plot_reliability
from ase_equinn.uncertainty_fit import judge


@pytest.fixture(scope="module")
def potential() -> Potential:
    """All but no forces: its errors are EMT's forces, which grow with the displacements from the lattice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Potential(SchNet([29], 4.0, 20.0, n_channels=8, n_layers=2), scale=1e-3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copper")
    images = copper(12, 0, rattle=0.01) + copper(12, 1, rattle=0.1)
    sets = {"train": copper(30, 2, rattle=0.01), "valid": images[::2], "test": images[1::2]}
    return {name: save(folder / f"{name}.xyz", found) for name, found in sets.items()}


def frames(files, name):
    return read_frames(files[name]).frames


def test_far_atoms_get_the_larger_errors(files, potential):
    """Trained on atoms near their sites: those further away have errors ten times as large, and so have the sigma."""
    steps = []
    sets = frames(files, "train"), frames(files, "valid")
    found = calibrate(potential, *sets, device="cpu", report=lambda *step: steps.append(step))
    assert steps[-1] == ("valid", 12, 12) and ("train", 30, 30) in steps
    judged = found.uncertainty.facts["valid"]
    assert judged["n_atoms"] == 48 and judged["rank_correlation"] > 0.7
    assert judged["sigma_rms"] == pytest.approx(judged["error_rms"], rel=0.5)
    tested = judge_uncertainty(found, frames(files, "test"), device="cpu")
    assert tested["rank_correlation"] > 0.6 and tested["coverage"][2]["fraction"] > 0.9
    calc, sigma, errors = EquiCalculator(found, device="cpu"), [], []
    for frame in frames(files, "test"):
        sigma.append(calc.get_property("forces_sigma", frame.atoms))
        errors.append(np.linalg.norm(calc.get_forces(frame.atoms) - frame.forces, axis=1))
    again = judge(np.concatenate(errors), np.concatenate(sigma))
    assert again["sigma_rms"] == pytest.approx(tested["sigma_rms"], rel=1e-3)  # float32 in another order
    assert again["error_rms"] == pytest.approx(tested["error_rms"], rel=1e-5)


def test_the_potential_given_stays_as_it_is(files, potential):
    before = potential.models.state_dict()
    found = calibrate(potential, frames(files, "train"), frames(files, "valid"), n_centres=4, device="cpu")
    assert potential.uncertainty is None and found is not potential
    assert found.uncertainty.centres[29].shape == (4, 8) and found.dtype == potential.dtype
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.models.state_dict().items())
    twice = calibrate(found, frames(files, "train"), frames(files, "valid"), n_centres=4, device="cpu")
    assert torch.equal(twice.uncertainty.centres[29], found.uncertainty.centres[29])
    assert twice.uncertainty.scale == found.uncertainty.scale


def test_files_in_and_a_file_out(files, potential, tmp_path):
    source = potential.save(tmp_path / "plain")
    arguments = [[files[name]] for name in ("train", "valid")]
    path, judged = calibrate_files(source, *arguments, tmp_path / "out", test=[files["test"]], device="cpu")
    assert set(judged) == {"valid", "test"}
    facts = read_header(path)["uncertainty"]["facts"]
    assert facts["test"] == judged["test"] and facts["files"]["train"] == [
        {"file": "train.xyz", "sha256": file_sha256(files["train"])}
    ]
    loaded = Potential.load(path)
    assert judge_uncertainty(loaded, frames(files, "test"), device="cpu") == judged["test"]
    for name, tensor in Potential.load(source).models.state_dict().items():
        assert torch.equal(loaded.models.state_dict()[name], tensor)


def test_descriptors_of_batches_are_those_of_single_structures(files, potential):
    images = frames(files, "train") * 5  # more atoms than a batch has
    evaluator = load_potential(potential, device="cpu", dtype="float64")
    numbers, found = describe(evaluator, images)
    assert numbers.tolist() == [29] * 600 and found.shape == (600, 8)
    calc = EquiCalculator(potential, device="cpu", dtype="float64")
    expected = np.concatenate([calc.get_descriptors(frame.atoms) for frame in images[:30]])
    np.testing.assert_allclose(found[:120].numpy(), expected, atol=1e-12)


def test_what_cannot_be_calibrated(files, potential):
    train, valid = frames(files, "train"), frames(files, "valid")
    with pytest.raises(ValueError, match="none of 12 frames has forces"):
        calibrate(potential, train, [frame._replace(forces=None) for frame in valid], device="cpu")
    with pytest.raises(ValueError, match="no frames to describe"):
        calibrate(potential, [], valid, device="cpu")
    with pytest.raises(ValueError, match="n_centres must be at least 1, got 0"):
        calibrate(potential, train, valid, n_centres=0)
    with pytest.raises(ValueError, match="has no uncertainties: equinn calibrate gives it some"):
        judge_uncertainty(potential, valid, device="cpu")
    both = Potential(SchNet([29, 79], 4.0, n_channels=8))
    with pytest.raises(ValueError, match="knows element 79, of which the training frames have no atom"):
        calibrate(both, train, valid, device="cpu")


def test_the_plot_shows_bins_and_coverage():
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.uniform(-2, 0, 400))
    judged = judge(np.abs(rng.standard_normal(400)) * sigma, sigma)
    judged["bins"][0]["error"] = 0.0  # atoms without an error, by symmetry
    bins, coverage = plot_reliability({"valid": judged, "test": judged}).axes
    x, y = bins.lines[0].get_data()
    np.testing.assert_allclose(x, [row["sigma"] for row in judged["bins"]])
    np.testing.assert_allclose(y[1:], [row["error"] for row in judged["bins"][1:]])
    assert y[0] > 0
    np.testing.assert_allclose(coverage.lines[0].get_ydata(), [row["fraction"] for row in judged["coverage"]])
    assert "rank correlation" in bins.get_legend().get_texts()[0].get_text()
