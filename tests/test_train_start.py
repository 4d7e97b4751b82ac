"""`start: potential`: a training that begins with a trained network, its scale, shifts and limits."""

import csv
import json
import lzma
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from labelled import copper, label, same, save, tensors, three_sets

from ase_equinn.calculator import EquiCalculator
from ase_equinn.data import file_sha256
from ase_equinn.mace_import import import_mace
from ase_equinn.models.schnet import SchNet
from ase_equinn.potential import Potential, PotentialFileError
from ase_equinn.potential_mean import mean_potential
from ase_equinn.terms.zbl import ZBL
from ase_equinn.train import train
from ase_equinn.train_checkpoint import CheckpointError
from ase_equinn.train_config import ConfigError, load_config

FIXTURES = Path(__file__).parent / "data" / "mace"
MODEL = {"name": "mace", "cutoff": 4.0, "irreps_hidden": "4x0e+4x1o", "lmax": 1, "correlation": 2}
TRAINING = {"epochs": 24, "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return three_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A trained potential: its folder."""
    folder = tmp_path_factory.mktemp("first") / "copper"
    loss = {"stress_offset": True}
    train(
        {"data": data, "output": str(folder), "model": MODEL, "training": TRAINING, "loss": loss, "seed": 3}, quiet=True
    )
    return folder


@pytest.fixture(scope="module")
def mean(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mean") / "copper"
    training = TRAINING | {"epochs": 2}
    train({"data": data, "output": str(folder), "model": MODEL, "training": training, "members": 2}, quiet=True)
    return folder


def config(data, output, start, **more):
    training = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-9, "schedule": "constant"}
    return {"data": data, "output": str(output), "start": str(start), "training": training} | more


def energies(potential, frames):
    found = []
    for atoms in frames:
        atoms = atoms.copy()
        atoms.calc = EquiCalculator(potential, device="cpu", dtype="float64")
        found.append(atoms.get_potential_energy())
    return np.array(found)


def test_without_a_step_of_size_the_potential_is_the_one_it_starts_from(first, data, tmp_path):
    """Weights, scale, core and limits; the shift by what the first still lacks on average."""
    result = train(config(data, tmp_path / "out", first, loss={"stress_offset": True}), quiet=True)
    before, after = Potential.load(first), result.potential
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, atol=2e-6, rtol=0)
    assert after.scale == before.scale and after.reference_energies == before.reference_energies
    assert after.models[1].hyperparameters == before.models[1].hyperparameters
    frames = read(data["train"], ":")
    labels = np.array([atoms.info["REF_energy"] for atoms in frames])
    old, new = energies(first, frames) - labels, energies(tmp_path / "out", frames) - labels
    np.testing.assert_allclose(new - new.mean(), old - old.mean(), atol=1e-4)
    assert abs(new.mean()) < 1e-4 < abs(old.mean())
    facts = after.metadata["training"]
    assert facts["stress_offset"] == pytest.approx(before.metadata["training"]["stress_offset"], abs=1e-7)
    assert facts["statistics"]["reference_energies_from"] == {"Cu": "start"}


def test_the_config_names_what_was_started_from(first, data, tmp_path):
    folder = train(config(data, tmp_path / "out", first), quiet=True).folder
    written = load_config(folder / "train.yaml")
    sha256 = file_sha256(first / "model.safetensors")
    assert written.start.sha256 == sha256 and written.model.cutoff == 4.0
    assert f"It began with the weights of `{first}` (sha256 {sha256})." in (folder / "README.md").read_text()
    again = written.model_dump() | {"output": str(tmp_path / "again")}
    assert same(tensors(train(again, quiet=True).folder), tensors(folder))


def test_it_goes_on_where_the_first_run_ended(first, data, tmp_path):
    """After four epochs it is far beyond where the first was after four."""
    result = train(config(data, tmp_path / "on", first, training={"epochs": 4, "batch_size": 4}), quiet=True)
    before, after = (list(csv.DictReader((folder / "log.csv").open())) for folder in (first, result.folder))
    assert float(after[-1]["valid_force_mae"]) < 0.6 * float(before[3]["valid_force_mae"])
    rates = [load_config(folder / "train.yaml").training.learning_rate for folder in (result.folder, first)]
    assert rates == pytest.approx([0.003, 0.01])


def test_a_training_that_makes_it_worse_gives_the_start_back(first, data, tmp_path):
    """As one on labels of other forces does: with twice the forces and the old ones for validation."""
    frames = read(data["train"], ":")
    for atoms in frames:
        atoms.arrays["REF_forces"] *= 2.0
        del atoms.info["REF_energy"], atoms.info["REF_stress"]
    sets = {"train": save(tmp_path / "twice.xyz", frames), "valid": data["valid"]}
    result = train(config(sets, tmp_path / "out", first, training={"epochs": 6, "batch_size": 4}), quiet=True)
    assert result.potential.metadata["training"]["best_epoch"] == 0
    for name, weight in Potential.load(first).state_dict().items():
        torch.testing.assert_close(result.potential.state_dict()[name], weight, atol=2e-6, rtol=0)
    assert "which these are" in (result.folder / "README.md").read_text()


def test_a_file_beside_the_config_or_in_the_data_folder_and_a_shipped_name(first, data, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes((first / "model.safetensors").read_bytes())
    text = (
        f"data: {{train: {data['train']}, valid: {data['valid']}}}\noutput: {tmp_path}/out\nstart: mine.safetensors\n"
    )
    (tmp_path / "config.yaml").write_text(text + "training: {epochs: 1}\n")
    assert train(tmp_path / "config.yaml", quiet=True).potential.scale == Potential.load(first).scale
    found = train(config(data, tmp_path / "below", "mine.safetensors"), data_dir=tmp_path, quiet=True)
    assert found.potential.scale == Potential.load(first).scale
    result = train(config(data, tmp_path / "copper", "copper", max_time="20s"), max_time="2s", quiet=True)
    assert result.potential.models[0].hyperparameters["cutoff"] == Potential.load("copper").models[0].cutoff


def test_a_mean_with_several_cores_gives_the_narrowest(first, data, tmp_path):
    """Networks that were trained apart may have cores of their own, as in the shipped `acac`."""
    one = Potential.load(first)
    both = mean_potential([one, Potential([one.models[0], ZBL([29], radii=[0.5])], shift=one.shift)])
    both.metadata = {"training": {"members": [{"seed": 0}]}}
    assert len(both.models) == 3
    both.save(tmp_path / "both")
    found = train(config(data, tmp_path / "out", tmp_path / "both"), quiet=True).potential
    assert found.models[1].radii == [0.5]


def test_a_name_that_means_two_potentials_is_refused(first, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copper").mkdir()
    (tmp_path / "copper" / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes())
    with pytest.raises(PotentialFileError, match="start: 'copper' is a shipped potential, and another one lies in"):
        train(config(data, tmp_path / "out", "copper"), quiet=True)
    assert not (tmp_path / "out").exists()


def test_members_take_the_networks_of_a_mean_in_turn(mean, data, tmp_path):
    folder = train(config(data, tmp_path / "out", mean, members=3), quiet=True).folder
    before = [Potential.load(mean / "members" / str(k)).models[0].state_dict() for k in range(2)]
    after = [Potential.load(folder / "members" / str(k)) for k in range(3)]
    for k, potential in enumerate(after):
        for name, weight in before[k % 2].items():
            torch.testing.assert_close(potential.models[0].state_dict()[name], weight, atol=2e-6, rtol=0)
        assert potential.scale == pytest.approx(Potential.load(mean / "members" / str(k % 2)).scale)


def test_an_imported_mace_with_a_core_of_its_own_begins_as_it_is(tmp_path):
    """Its pair repulsion reaches into the data and is scaled as the network is. Labels are its own numbers."""
    model = tmp_path / "sige.model"
    model.write_bytes(lzma.decompress((FIXTURES / "sige_L2_density.model.xz").read_bytes()))
    known = import_mace(model)
    assert isinstance(known.models[1], ZBL) and known.scale[1] != 1.0
    known.save(tmp_path / "sige")
    record, images = json.loads((FIXTURES / "records.json").read_text())["sige_L2_density"], []
    for seed in range(4):
        atoms = Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=True)
        atoms.rattle(0.02, seed=seed)
        atoms.calc = EquiCalculator(known, device="cpu", dtype="float64")
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        images.append(atoms)
    file = save(tmp_path / "own.xyz", images)
    result = train(config({"train": file, "valid": file}, tmp_path / "out", tmp_path / "sige"), quiet=True)
    assert result.potential.models[1].radii == known.models[1].radii
    size = np.abs(np.concatenate([atoms.arrays["REF_forces"] for atoms in images])).mean()
    assert result.errors["valid"]["force_mae"] < 1e-4 * 1000 * size


def test_limits_are_no_narrower_than_those_of_the_start_and_the_core_is_the_same(first, data, tmp_path):
    """On nearly perfect crystals alone, limits would be narrow and a core would be wide."""
    quiet = save(tmp_path / "calm.xyz", copper(4, rattle=0.001, strain=0.0))
    alone = {"data": {"train": quiet, "valid": data["valid"]}, "output": str(tmp_path / "alone"), "model": MODEL}
    own = train(alone | {"training": {"epochs": 1}}, quiet=True).potential
    on = train(config(data | {"train": quiet}, tmp_path / "on", first), quiet=True).potential
    before = Potential.load(first)
    assert own.models[1].cutoff > before.models[1].cutoff == on.models[1].cutoff
    wide, found = before.models[0].limits.limits, on.models[0].limits.limits
    assert own.models[0].limits.limits.rho_max[0] < wide.rho_max[0] == found.rho_max[0]
    assert own.models[0].limits.limits.rho_min[0] > wide.rho_min[0] == found.rho_min[0]
    assert found.high[0] >= wide.high[0] and found.low[0] <= wide.low[0]
    assert on.isolated_energy(29) == pytest.approx(before.reference_energies[29], abs=1e-6)


def test_labels_of_another_level_of_theory(first, data, tmp_path, capsys):
    """Moved by 50 eV per atom: warned of, followed; and with isolated atoms not warned of."""
    frames = read(data["train"], ":")
    for atoms in frames:
        atoms.info["REF_energy"] += 50.0 * len(atoms)
    moved = save(tmp_path / "moved.xyz", frames)
    sets = {"train": moved, "valid": moved}
    result = train(config(sets, tmp_path / "out", first))
    assert "another level of theory" in " ".join(capsys.readouterr().out.split())
    assert result.errors["valid"]["energy_mae"] < 1.5 * Potential.load(first).metadata["errors"]["train"]["energy_mae"]
    atom = label(Atoms("Cu"), "IsolatedAtom")
    atom.info["REF_energy"] += 50.0
    other = label(Atoms("Ni"), "IsolatedAtom")  # of which no structure has any
    sets["train"] = [moved, save(tmp_path / "atoms.xyz", [atom, other])]
    result = train(config(sets, tmp_path / "other", first))
    assert "another level of theory" not in " ".join(capsys.readouterr().out.split())
    assert result.potential.isolated_energy(29) == pytest.approx(atom.info["REF_energy"], abs=1e-5)
    assert result.potential.species == (29,)


def test_resumed_only_with_the_same_start(first, mean, data, tmp_path):
    class Stop(Exception):
        pass

    def stop(run):
        if run.step == 4:
            raise Stop

    training = {"epochs": 2, "batch_size": 4}
    wanted = config(data, tmp_path / "out", first, training=training)
    with pytest.raises(Stop):
        train(wanted, quiet=True, after_step=stop)
    with pytest.raises(CheckpointError, match="start was .*, now it is"):
        train(wanted | {"start": str(mean / "members" / "0")}, quiet=True, resume=True)
    on = train(wanted, quiet=True, resume=True)
    whole = train(wanted | {"output": str(tmp_path / "whole")}, quiet=True)
    assert same(tensors(on.folder), tensors(whole.folder))
    gone = wanted | {"start": str(tmp_path / "gone")}  # a finished run needs its start no more
    assert train(gone, quiet=True, resume=True).stopped == "finished before"


def test_bad_input_leaves_nothing(first, data, tmp_path):
    out = tmp_path / "out"
    water = save(tmp_path / "water.xyz", [label(Atoms("CuH", [[0, 0, 0], [0, 0, 1.5 + 0.05 * k]])) for k in range(4)])
    two = Potential([SchNet([29], 4.0, n_channels=4), SchNet([29], 4.0, n_channels=4)])
    two.save(tmp_path / "two.safetensors")
    Potential([ZBL([29])]).save(tmp_path / "core.safetensors")
    wanted = config(data, out, first)
    for change, error, message in [
        ({"start": "coppr"}, PotentialFileError, "start: 'coppr' is no file.*did you mean 'copper'"),
        ({"start": {"file": str(first), "sha256": "0" * 64}}, ConfigError, "start: .* is not the same potential: its sha256"),
        ({"start": str(tmp_path / "two.safetensors")}, ConfigError, "wanted is a network, .* got the sum of SchNet, SchNet"),
        ({"start": str(tmp_path / "core.safetensors")}, ConfigError, "wanted is a network, .* got the sum of ZBL"),
        ({"model": "nequip"}, ConfigError, "model.name: the network of start is 'mace', got 'nequip'"),
        ({"model": {"cutoff": 5.0}}, ConfigError, "model.cutoff: the network of start has 4.0, got 5.0"),
        ({"model": {"irreps_hidden": "8x0e"}}, ConfigError, "model.irreps_hidden: the network of start has .* got '8x0e'"),
        ({"model": {"layers": 3}}, ConfigError, "unknown key 'model.layers' of mace"),
        ({"data": data | {"train": [data["train"], water]}}, ConfigError, "the network knows Cu; the data hold H too"),
        ({"start": 3}, ConfigError, re.escape("start: ")),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            train(wanted | change, quiet=True)
        assert not out.exists()
    train(wanted | {"model": {"irreps_hidden": "4x0e + 4x1o", "lmax": 1}}, quiet=True)  # says the same
