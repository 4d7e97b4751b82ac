"""Training end to end on small EMT data: what comes out, budgets, kills and resumes."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from ase.io import read
from labelled import copper, label, same, save, tensors, three_sets

from ase_equinn import train_schedule
from ase_equinn.calculator import EquiCalculator
from ase_equinn.potential import Potential
from ase_equinn.train import train
from ase_equinn.train_checkpoint import CheckpointError
from ase_equinn.train_config import ConfigError

MODEL = {"name": "schnet", "cutoff": 4.0, "n_channels": 8, "n_layers": 1, "n_basis": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return three_sets(tmp_path_factory.mktemp("data"))


def config(sets, output, epochs=4, **more):
    training = {"epochs": epochs, "batch_size": 4, "learning_rate": 0.01} | more.pop("training", {})
    files = {"train": sets["train"], "valid": sets["valid"]} | more.pop("data", {})
    return {"data": files, "output": str(output), "model": MODEL, "training": training} | more


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class Stop(BaseException):
    """Stands for a kill: nothing may catch it."""


def stop_at(step):
    def after_step(run):
        if run.step == step:
            raise Stop

    return after_step


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of 60 epochs with a test set, shared by the tests that look at what it leaves."""
    folder = tmp_path_factory.mktemp("finished") / "copper"
    more = {"test": data["test"], "level_of_theory": "EMT"}
    settings = config(data, folder, epochs=60, data=more, training={"learning_rate": 0.03}, zbl=False)
    settings["model"] = MODEL | {"n_channels": 16}
    return folder, train(settings, quiet=True)


def test_training_learns(finished):
    """The validation errors of the potential in the folder are far below those before training."""
    folder, result = finished
    first = log(folder)[0]
    assert result.errors["valid"]["force_mae"] < 0.5 * float(first["valid_force_mae"])
    assert result.errors["valid"]["stress_mae"] < 0.5 * float(first["valid_stress_mae"])
    best = min(log(folder), key=lambda row: float(row["valid_loss"]))
    assert result.errors["valid"]["force_mae"] == pytest.approx(float(best["valid_force_mae"]))
    assert result.potential.metadata["training"]["best_epoch"] == int(best["epoch"])


def test_the_folder_is_complete_and_nothing_else_is_left(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "README.md", "train.yaml", "check.xyz", "log.csv", "data_report.json", "parity.png",
        "learning_curve.png",
    }  # fmt: skip
    assert not {"lightning_logs", "checkpoints"} & {path.name for path in folder.parent.iterdir()}
    assert not os.path.exists("lightning_logs")
    card = (folder / "README.md").read_text()
    assert "EMT" in card and "| test | 4 |" in card and "48 Cu" in card
    assert json.loads((folder / "data_report.json").read_text())["sets"]["train"]["frames"] == 12


def test_calculator_gives_the_check_structures_numbers(finished):
    """check.xyz is what the potential gives in float64; extxyz keeps 1e-8."""
    folder, _ = finished
    calculator = EquiCalculator(folder, dtype="float64")
    images = read(folder / "check.xyz", ":")
    assert len(images) == 4
    for atoms in images:
        wanted = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(wanted[0], abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), wanted[1], atol=2e-8)
        np.testing.assert_allclose(atoms.get_stress(), wanted[2], atol=1e-9)


def test_metadata_say_what_it_was_made_of(finished, data):
    from ase_equinn.data import file_sha256

    facts = finished[1].potential.metadata
    assert facts["level_of_theory"] == "EMT"
    assert facts["training_data"]["files"]["train"][0]["sha256"] == file_sha256(data["train"])
    assert facts["training_data"]["elements"] == {"Cu": 48} and facts["training_data"]["n_frames"] == 12
    assert facts["errors"].keys() == {"train", "valid", "test"}
    assert Potential.load(finished[0]).metadata == json.loads(json.dumps(facts))


def test_resolved_config_reproduces_the_potential(finished, tmp_path):
    folder, _ = finished
    text = (folder / "train.yaml").read_text().replace(str(folder), str(tmp_path / "again"))
    (tmp_path / "train.yaml").write_text(text)
    train(tmp_path / "train.yaml", quiet=True)
    assert same(tensors(folder), tensors(tmp_path / "again")) and log(folder) == log(tmp_path / "again")


def test_data_are_found_in_another_folder_by_hash(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("train", "valid"):
        with open(data[name], "rb") as file:
            (tmp_path / "elsewhere" / f"{name}.xyz").write_bytes(file.read())
    settings = config({"train": "gone/train.xyz", "valid": "gone/valid.xyz"}, tmp_path / "out", epochs=1)
    with pytest.raises(FileNotFoundError, match="'gone/train.xyz' was not found"):
        train(settings, quiet=True)
    assert not (tmp_path / "out").exists()
    train(settings, data_dir=tmp_path / "elsewhere", quiet=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


KILLED = """
    import json, os, signal, sys
    from ase_equinn.train import train
    def kill(run):
        if run.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
    train(json.loads(sys.argv[1]), quiet=True, after_step=kill)
"""


def test_killed_run_resumes_to_the_same_bits(data, tmp_path):
    """SIGKILL in the third of four epochs; the resumed run ends where an uninterrupted one ends, bit by bit."""
    train(config(data, tmp_path / "whole"), quiet=True)
    settings = config(data, tmp_path / "killed")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), json.dumps(settings)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(log(tmp_path / "killed")) == 2 and (tmp_path / "killed" / "checkpoint").exists()
    EquiCalculator(tmp_path / "killed")  # the best potential so far can be used already
    result = train(settings, resume=True, quiet=True)
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "killed"))
    assert log(tmp_path / "whole") == log(tmp_path / "killed") and len(log(tmp_path / "whole")) == 4
    assert result.errors == train(settings, resume=True, quiet=True).errors  # finished: nothing more happens


@pytest.mark.parametrize(("schedule", "optimizer"), [("plateau", "adamw"), ("constant", "muon")])
def test_every_part_of_the_state_survives(data, tmp_path, schedule, optimizer):
    """Stopped in each epoch once, with a float64 network and weight decay; validation forces have the wrong sign, so
    that no later epoch gains and the plateau schedule acts."""
    images = copper(4, seed=1)
    for atoms in images:
        atoms.arrays["REF_forces"] *= -1
    wrong = {"valid": save(tmp_path / "wrong.xyz", images)}
    training = {"schedule": schedule, "plateau_patience": 1, "dtype": "float64", "weight_decay": 0.01, "warmup": 0.0}
    training["optimizer"], loss = optimizer, {"energy": 0.0, "virial": 0.0}
    run = {"training": training, "loss": loss, "zbl": False}  # the core would right the signs
    train(config(data, tmp_path / "whole", data=wrong, **run), quiet=True)
    settings = config(data, tmp_path / "stopped", data=wrong, **run)
    for k, step in enumerate((2, 5, 8, 11)):
        with pytest.raises(Stop):
            train(settings, quiet=True, resume=k > 0, after_step=stop_at(step))
    train(settings, quiet=True, resume=True)
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "stopped"))
    assert log(tmp_path / "whole") == log(tmp_path / "stopped")
    rates = {row["learning_rate"] for row in log(tmp_path / "whole")}
    assert len(rates) == (3 if schedule == "plateau" else 1)


def test_ctrl_c_keeps_the_best_potential_and_can_be_resumed(data, tmp_path):
    def interrupt(run):
        if run.step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    nequip = {"name": "nequip", "cutoff": 4.0, "irreps_hidden": "8x0e+4x1o", "radial_mlp": [8]}
    train(config(data, tmp_path / "whole") | {"model": nequip}, quiet=True)
    handler = signal.getsignal(signal.SIGINT)
    settings = config(data, tmp_path / "stopped") | {"model": nequip}
    result = train(settings, quiet=True, after_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.stopped == "interrupted" and len(log(tmp_path / "stopped")) == 2
    assert result.potential.metadata["training"]["best_epoch"] in (1, 2)
    assert same(tensors(tmp_path / "stopped"), result.potential.state_dict())
    assert train(settings, quiet=True, resume=True).stopped == ""
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "stopped"))


class Time:
    """A clock that only steps move: one second each."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_time_budget_fits_schedule_and_end(data, tmp_path, monkeypatch):
    """40 s at 1 s a step, 3 s reserved: the learning rate reaches its final value with the last step."""
    clock, rates = Time(), []
    monkeypatch.setattr(train_schedule, "time", clock)

    def step(run):
        clock.now += 1.0
        rates.append(run.optimizer.param_groups[0]["lr"])

    settings = config(data, tmp_path / "out", training={"final_learning_rate": 0.01, "warmup": 0.1})
    result = train(settings, max_time="40s", quiet=True, after_step=step)
    assert result.stopped == "the time is up"
    assert 35 <= len(rates) <= 40  # more than the 12 steps of 4 epochs: with a budget only the clock counts
    assert max(rates) == pytest.approx(0.01, rel=0.05) and 2 <= int(np.argmax(rates)) <= 6
    assert rates[-1] < 0.02 * 0.01 and rates[-1] == min(rates[6:])
    assert int(log(tmp_path / "out")[-1]["step"]) == len(rates)


def test_time_budget_counts_what_was_spent_before_a_resume(data, tmp_path, monkeypatch):
    clock, steps = Time(), []
    monkeypatch.setattr(train_schedule, "time", clock)

    def step(run, last=None):
        clock.now += 1.0
        steps.append(run.step)
        if run.step == last:
            raise Stop

    settings = config(data, tmp_path / "out")
    with pytest.raises(Stop):
        train(settings, max_time="40s", quiet=True, after_step=lambda run: step(run, last=20))
    train(settings, max_time="40s", quiet=True, resume=True, after_step=step)
    assert steps[19] == 20 and steps[20] == 19  # epoch 7 (steps 19, 20, 21) is repeated
    assert 35 <= steps[-1] <= 40


def test_early_stopping(data, tmp_path):
    settings = config(
        data, tmp_path / "out", epochs=50, training={"early_stopping": 2, "learning_rate": 1e-12, "ema": 0.0}
    )
    result = train(settings, quiet=True)
    assert result.stopped == "no gain for 2 epochs"
    assert len(log(tmp_path / "out")) < 50


def test_an_existing_folder_is_not_overwritten(finished, data, tmp_path):
    folder, _ = finished
    before = tensors(folder)
    with pytest.raises(FileExistsError, match="holds a potential"):
        train(config(data, folder), quiet=True)
    assert same(before, tensors(folder))
    with pytest.raises(Stop):
        train(config(data, tmp_path / "out"), quiet=True, after_step=stop_at(5))
    with pytest.raises(FileExistsError, match="unfinished run"):
        train(config(data, tmp_path / "out"), quiet=True)


def test_resume_refuses_another_run(data, tmp_path):
    with pytest.raises(Stop):
        train(config(data, tmp_path / "out"), quiet=True, after_step=stop_at(5))
    with pytest.raises(CheckpointError, match="training.learning_rate was 0.01, now it is 0.02"):
        train(config(data, tmp_path / "out", training={"learning_rate": 0.02}), quiet=True, resume=True)
    with pytest.raises(CheckpointError, match="data.valid was"):
        train(config(data, tmp_path / "out", data={"valid": data["test"]}), quiet=True, resume=True)


def test_resume_without_a_checkpoint_starts_anew(data, tmp_path):
    """A run killed in its first epoch has no checkpoint: the same command starts it again."""
    with pytest.raises(Stop):
        train(config(data, tmp_path / "out"), quiet=True, after_step=stop_at(1))
    train(config(data, tmp_path / "out", epochs=1), quiet=True, resume=True)
    assert len(log(tmp_path / "out")) == 1


def test_without_validation_file_a_part_is_split_off(data, tmp_path, capsys):
    settings = config(data, tmp_path / "out", epochs=1)
    del settings["data"]["valid"]
    result = train(settings)
    assert result.errors["valid"]["n_frames"] == 1 and result.errors["train"]["n_frames"] == 11
    assert "no validation file: 1 of the training frames (seed 0)" in capsys.readouterr().out.replace("\n", " ")


def test_output_has_a_line_per_epoch_and_nothing_of_lightning(data, tmp_path, capfd):
    train(config(data, tmp_path / "out", epochs=3))
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines() if "|" in line and line.strip()[:1].isdigit()] == [
        "1",
        "2",
        "3",
    ]
    for word in ("GPU", "Tip", "barebones", "Warning", "max_epochs"):
        assert word not in out + err
    assert f"EquiCalculator('{tmp_path}/out')" in out.replace("\n", "")


def test_test_set_does_not_select(data, tmp_path):
    train(config(data, tmp_path / "a"), quiet=True)
    train(config(data, tmp_path / "b", data={"test": data["test"]}), quiet=True)
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_isolated_atoms_set_the_reference_and_are_not_trained_on(tmp_path):
    from ase import Atoms

    atom = label(Atoms("Cu", positions=[[0, 0, 0]]), "IsolatedAtom")
    atom.info["REF_energy"] = -7.5
    files = {
        "train": save(tmp_path / "t.xyz", [atom, *copper(5)]),
        "valid": save(tmp_path / "v.xyz", copper(2, seed=1)),
    }
    result = train(config(files, tmp_path / "out", epochs=1), quiet=True)
    assert result.potential.reference_energies == {29: -7.5}
    assert result.errors["train"]["n_frames"] == 5
    assert "| Cu | -7.500000 | isolated atom |" in (tmp_path / "out" / "README.md").read_text()


def test_missing_labels_need_no_option(tmp_path):
    """Energies in some frames, forces in others, no stress: training runs, and what is missing is null."""
    images = copper(8)
    for k, atoms in enumerate(images):
        del atoms.info["REF_stress"]
        if k % 2:
            del atoms.info["REF_energy"]
    files = {"train": save(tmp_path / "t.xyz", images), "valid": save(tmp_path / "v.xyz", images[:2])}
    result = train(config(files, tmp_path / "out", epochs=2), quiet=True)
    assert result.errors["valid"]["stress_mae"] is None and result.errors["valid"]["energy_mae"] is not None
    assert np.isfinite(result.errors["valid"]["force_mae"])


def test_zero_weight_frames_change_nothing(data, tmp_path):
    """Frames whose config_type has weight 0 give no gradient: wrong labels in them leave no trace."""
    good, results = copper(6), []
    for k, factor in enumerate((1.0, 5.0)):
        bad = copper(6, seed=7)
        for atoms in bad:
            atoms.info["config_type"] = "bad"
            atoms.info["REF_stress"] *= factor
        files = {"train": save(tmp_path / f"t{k}.xyz", good + bad), "valid": data["valid"]}
        train(config(files, tmp_path / f"out{k}", data={"config_type_weights": {"bad": 0.0}}), quiet=True)
        results.append(tensors(tmp_path / f"out{k}"))
    assert same(*results)
    with pytest.raises(ConfigError, match="no frame has config_type 'bda'; did you mean 'bad'"):
        train(config(files, tmp_path / "x", data={"config_type_weights": {"bda": 1.0}}), quiet=True)


def test_divergence_is_an_error(data, tmp_path):
    settings = config(data, tmp_path / "out", training={"learning_rate": 1e30, "warmup": 0.0, "gradient_clip": 0})
    with pytest.raises(FloatingPointError, match="the loss is .* lower training.learning_rate"):
        train(settings, quiet=True)


def test_global_state_is_left_alone(data, tmp_path):
    state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    train(config(data, tmp_path / "out", epochs=1), quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (dtype, threads)


@pytest.mark.gpu
def test_training_on_cuda(data, tmp_path):
    """Same config on both devices: errors agree to what float32 and a few steps allow."""
    found = []
    for device in ("cpu", "cuda"):
        settings = config(data, tmp_path / device, training={"device": device, "dtype": "float64"})
        found.append(train(settings, quiet=True).errors["valid"]["force_mae"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_pressure_that_energies_do_not_have_is_found(tmp_path):
    """The stress labels of compressed and stretched copper get 20 meV/A^3 more: the fit finds them, the potential lacks them."""
    sets = {}
    for name, n, seed in (("train", 12, 0), ("valid", 4, 1)):
        images = copper(n, seed=seed)
        for atoms in images:
            atoms.info["REF_stress"] = np.asarray(atoms.info["REF_stress"]) + 0.02 * np.eye(3)
        sets[name] = save(tmp_path / f"{name}.xyz", images)
    settings = config(sets, tmp_path / "out", epochs=100, training={"learning_rate": 0.02}, zbl=False)
    settings["model"] = MODEL | {"n_channels": 16}
    settings["loss"] = {"stress_offset": True, "energy": 300.0}
    result = train(settings, quiet=True)
    assert result.potential.metadata["training"]["stress_offset"] == pytest.approx(0.02, abs=0.006)
    assert "GPa, as a stress" in (tmp_path / "out" / "README.md").read_text()


def test_limits_come_from_labelled_structures(data, tmp_path):
    """Not from those that a committee labelled, which may crowd more."""
    crowded = copper(4, seed=5)
    for atoms in crowded:
        atoms.set_cell(0.8 * atoms.cell, scale_atoms=True)
        atoms.info["config_type"] = "distilled"
    model = {"name": "mace", "cutoff": 4.0, "irreps_hidden": "8x0e", "lmax": 1, "correlation": 1, "n_layers": 1}
    found = {}
    for name, files in (("alone", [data["train"]]), ("both", [data["train"], save(tmp_path / "more.xyz", crowded)])):
        settings = config(data, tmp_path / name, epochs=1, data={"train": files}, model=model)
        found[name] = train(settings, quiet=True).potential.models[0].limits.limits
    assert found["alone"].rho_max == found["both"].rho_max and found["alone"].near_max == found["both"].near_max
