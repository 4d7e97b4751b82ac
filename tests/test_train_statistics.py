"""What the untrained potential takes from the data, and the loss, against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from labelled import copper, save

from ase_equinn.data import Frame, read_frames
from ase_equinn.data_batches import join, prepare
from ase_equinn.derivatives import derivatives
from ase_equinn.evaluate_files import predict
from ase_equinn.graph import edge_vectors
from ase_equinn.metrics import errors
from ase_equinn.nn_crowding import Crowding
from ase_equinn.train_config import ConfigError, LossConfig, load_config
from ase_equinn.train_loss import Residuals, energy_coefficient, loss, loss_of_predictions, penalty, residuals
from ase_equinn.train_statistics import (
    batch_size,
    build_potential,
    counts,
    force_scale,
    reference_energies,
    shifts,
    statistics,
)


def config_of(**more):
    model = {"name": "schnet", "cutoff": 4.0, "n_channels": 8, "n_layers": 1, "n_basis": 8}
    return load_config({"data": {"train": "a.xyz"}, "output": "x", "model": model} | more)


def frame(symbols, energy=None, forces=None):
    atoms = Atoms(symbols)
    atoms.positions[:, 0] = 2.0 * np.arange(len(atoms))
    return Frame(atoms, energy, forces, None)


E0 = {1: -13.6, 6: -1029.5, 8: -2042.0}


def energy_of(symbols):
    return sum(E0[z] for z in Atoms(symbols).numbers)


def test_least_squares_finds_the_energies_that_made_the_totals():
    frames = [frame(s, energy_of(s)) for s in ("H2", "CH4", "H2O", "CO2", "CH3OH")]
    found, origin, warnings = reference_energies(config_of(), frames, [], (1, 6, 8))
    assert found == pytest.approx(E0, rel=1e-9) and set(origin.values()) == {"least squares"} and not warnings


def test_given_and_isolated_energies_come_first_and_the_rest_is_fitted():
    """The config beats an isolated atom; what is known is subtracted before the fit."""
    frames = [frame(s, energy_of(s) + 2.0 * s.count("C")) for s in ("CH4", "CO2")]
    isolated = [frame("H", E0[1])._replace(origin="iso.xyz:0"), frame("O", 99.0)]
    config = config_of(reference_energies={"O": E0[8]})
    found, origin, _ = reference_energies(config, frames, isolated, (1, 6, 8))
    assert found == pytest.approx({1: E0[1], 6: E0[6] + 2.0, 8: E0[8]})
    assert origin == {1: "isolated atom, iso.xyz:0", 6: "least squares", 8: "config"}


def test_one_composition_gives_a_warning_and_right_totals():
    frames = [frame("H2O", energy_of("H2O")) for _ in range(4)]
    found, _, (warning,) = reference_energies(config_of(), frames, [], (1, 8))
    assert 2 * found[1] + found[8] == pytest.approx(energy_of("H2O"))
    assert "do not tell H, O apart" in warning and "isolated-atom frames" in warning


def test_unknown_element_in_the_config():
    with pytest.raises(ConfigError, match="'Xx' is not an element"):
        reference_energies(config_of(reference_energies={"Xx": 1.0}), [frame("H2", 1.0)], [], (1,))


def test_counts_and_scale():
    frames = [frame("CH4", 1.0, np.full((5, 3), 3.0)), frame("H2", 2.0, np.full((2, 3), -3.0))]
    assert counts(frames, (1, 6)).tolist() == [[4, 1], [2, 0]]
    assert force_scale(frames) == pytest.approx(3.0)
    assert force_scale([frame("H2", 1.0), frame("H2", 5.0)]) == pytest.approx(1.0)  # std of 0.5 and 2.5 eV/atom
    assert force_scale([frame("H2")]) == 1.0


@pytest.mark.parametrize(
    "n_frames, n_atoms, expected", [(200, 64, 2), (950, 9, 8), (450, 27, 5), (60, 9, 3), (5, 200, 1)]
)
def test_batch_size_follows_sizes(n_frames, n_atoms, expected):
    assert batch_size([frame(f"H{n_atoms}")] * n_frames) == expected


def test_untrained_energies_are_right_on_average(tmp_path):
    """Per-atom offsets of 5 eV in the labels are gone before the first step; neighbours are counted."""
    images = copper(6)
    for atoms in images:
        atoms.info["REF_energy"] += 5.0 * len(atoms)
    frames = read_frames(save(tmp_path / "a.xyz", images)).frames
    samples = prepare(frames, [4.0])
    found = statistics(config_of(), frames, [], samples)
    potential = build_potential(config_of(), found)
    difference = [p.energy - f.energy for p, f in zip(predict(potential, samples), frames)]
    assert abs(np.mean(difference)) < 1e-4  # float32 network
    assert found["avg_num_neighbors"] == np.mean([s.graphs[0].edge_index.shape[1] / 4 for s in samples])
    assert found["scale"] == pytest.approx(np.sqrt(np.mean([f.forces**2 for f in frames])))
    assert potential.models[0].hyperparameters["avg_num_neighbors"] == found["avg_num_neighbors"]


def test_shift_separates_species_where_the_data_do():
    """Energies made of the network's own plus an offset per species: the offsets are found."""
    config = config_of()
    frames = [frame(s) for s in ("H2", "CH4", "CO2", "H2O")]
    samples = prepare(frames, [4.0])
    found = {"species": [1, 6, 8], "avg_num_neighbors": 1.0, "scale": 1.0, "shift": dict.fromkeys("HCO", 0.0)}
    potential = build_potential(config, found | {"reference_energies": dict.fromkeys("HCO", 0.0)})
    offset = {1: 0.5, 6: -1.0, 8: 2.0}
    labelled = [
        f._replace(energy=p.energy + sum(offset[z] for z in f.atoms.numbers))
        for f, p in zip(frames, predict(potential, samples))
    ]
    assert shifts(potential, labelled, samples) == pytest.approx(offset, abs=1e-5)


def test_one_composition_shares_its_energy_by_bonds():
    """Of ethanol's binding energy carbon, oxygen and hydrogen get as much as they have atoms that touch them."""
    atoms = molecule("CH3CH2OH")
    frames = [Frame(atoms, None, None, None)]
    samples = prepare(frames, [4.0])
    found = {"species": [1, 6, 8], "avg_num_neighbors": 1.0, "scale": 1.0, "shift": dict.fromkeys("HCO", 0.0)}
    potential = build_potential(config_of(), found | {"reference_energies": dict.fromkeys("HCO", 0.0)})
    (p,) = predict(potential, samples)
    labelled = [frames[0]._replace(energy=p.energy - 33.0)]
    shift = shifts(potential, labelled, samples)
    graph = samples[0].graphs[0]
    species = potential.models[0].index(graph.numbers)
    crowding = Crowding([1, 6, 8], 4.0).double()(graph, edge_vectors(graph, samples[0].positions), species)[0]
    bonds = {z: float(crowding[graph.numbers == z].mean()) for z in (1, 6, 8)}
    assert bonds[6] > bonds[8] > bonds[1]
    total = sum(bonds[z] for z in atoms.numbers.tolist())
    assert shift == pytest.approx({z: -33.0 * bonds[z] / total for z in (1, 6, 8)}, rel=1e-4)


def test_weights_of_the_network_depend_on_the_seed_alone():
    found = {
        "species": [29],
        "avg_num_neighbors": 9.0,
        "scale": 1.0,
        "shift": {"Cu": 0.0},
        "reference_energies": {"Cu": 0.0},
    }
    state = torch.get_rng_state()
    one, two, other = (build_potential(config_of(seed=s), found).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one) and not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_penalties():
    x = torch.tensor([0.0, 0.05, -0.05, 0.3, -0.3], dtype=torch.float64)
    assert torch.equal(penalty(LossConfig(kind="mse"), x), x**2)
    huber = penalty(LossConfig(kind="huber", huber_delta=0.1), x)
    torch.testing.assert_close(huber, torch.tensor([0.0, 0.0025, 0.0025, 0.05, 0.05], dtype=torch.float64))


def test_the_energy_coefficient_moves_in_the_second_half():
    moving = LossConfig(energy=10.0, final_energy=1000.0)
    found = [energy_coefficient(moving, x) for x in (0.0, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(found, [10, 10, 100, 1000])
    assert [energy_coefficient(LossConfig(energy=10.0), x) for x in (0.0, 1.0)] == [10, 10]
    assert [energy_coefficient(LossConfig(energy=0.0, final_energy=4.0), x) for x in (0.5, 0.75, 1.0)] == [0, 2, 4]


def test_loss_by_hand(tmp_path):
    """Coefficients enter as they are: 2 dE^2 + 3 dF^2 + 5 dW^2; one frame has weight 0.5, the other no stress."""
    images = copper(2)
    del images[0].info["REF_stress"]
    images[1].info["config_type"] = "half"
    frames = read_frames(save(tmp_path / "a.xyz", images), weights={"half": 0.5}).frames
    batch = join(prepare(frames, [4.0]))
    ones = torch.ones(1, dtype=torch.float64)
    difference = Residuals(0.1 * ones.expand(2), 0.2 * ones.expand(8, 3), 0.3 * ones.expand(2, 3, 3))
    config = LossConfig(kind="mse", energy=2.0, forces=3.0, virial=5.0)
    expected = 2.0 * 0.01 * (1 + 0.5) / 2 + 3.0 * 0.04 * (1 + 0.5) / 2 + 5.0 * 0.09 * (0 + 0.5) / 2
    assert float(loss(config, batch, difference)) == pytest.approx(expected)


def test_loss_of_a_set_is_the_loss_of_one_large_batch(tmp_path):
    """Validation goes through predictions (stress), training through batches (virial): both give the same number."""
    images = copper(3)
    del images[1].info["REF_stress"], images[2].arrays["REF_forces"]
    frames = [read_frames(save(tmp_path / f"{k}.xyz", [atoms])).frames[0] for k, atoms in enumerate(images)]
    samples = prepare(frames, [4.0])
    config = config_of(training={"dtype": "float64"})
    potential = build_potential(config, statistics(config, frames, [], samples))
    batch = join(samples)
    direct = loss(config.loss, batch, residuals(batch, derivatives(potential, batch.graphs, batch.positions)))
    predictions = predict(potential, samples)
    assert loss_of_predictions(config.loss, samples, predictions) == pytest.approx(float(direct), rel=1e-10)
    found = errors(frames, predictions)
    difference = residuals(batch, derivatives(potential, batch.graphs, batch.positions))
    assert found["energy_rmse"] == pytest.approx(1000 * float(difference.energy.square().mean().sqrt()), rel=1e-10)


def test_a_constant_stress_of_the_labels_is_fitted_apart(tmp_path):
    """Labels are those of a potential plus a constant pressure: with it as offset the virial residuals vanish."""
    found = {"species": [29], "avg_num_neighbors": 10.0, "scale": 1.0, "reference_energies": {"Cu": 0.0}}
    potential = build_potential(config_of(), found | {"shift": {"Cu": 0.0}})
    frames = read_frames(save(tmp_path / "a.xyz", copper(2))).frames
    batch = join(prepare(frames, potential.cutoffs))
    result = derivatives(potential, batch.graphs, batch.positions)
    volumes = torch.tensor([frame.atoms.cell.volume for frame in frames], dtype=torch.float64)
    labels = batch._replace(virial=result.virial + 0.02 * volumes[:, None, None] * torch.eye(3, dtype=torch.float64))
    assert residuals(labels, result).virial.abs().max() > 0.1
    assert residuals(labels, result, 0.02).virial.abs().max() < 1e-12


def test_without_shift_an_isolated_atom_has_the_reference_energy(tmp_path):
    images = copper(4)
    frames = read_frames(save(tmp_path / "a.xyz", images)).frames
    config = config_of(
        shift=False, reference_energies={"Cu": 1.0}, model={"name": "mace", "irreps_hidden": "4x0e+4x1o"}
    )
    found = statistics(config, frames, [], prepare(frames, [5.0]))
    assert found["shift"] == {"Cu": 0.0}
    assert build_potential(config, found).isolated_energy(29) == pytest.approx(1.0, abs=1e-6)
